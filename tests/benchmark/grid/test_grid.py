import dataclasses
import random

import pytest
import yaml

from hgmvae_bench.grid import GridError, Run, flatten, grid_names, load_grid, parse_grid, slugify
from hgmvae_bench.grid.cells import keyed_settings
from hgmvae_bench.plugins.protocols import UnknownNameError
from hgmvae_bench.plugins.registry import MODELS


def test_the_paper_grid_has_83_cells_and_830_runs():
    grid = load_grid("paper")
    assert len(grid.cells) == 83
    assert len(grid.cells) * grid.spec.seeds == 830
    assert [table.name for table in grid.spec.tables] == ["1", "2", "3", "4", "5"]
    entries = [
        len(t.datasets) * len(t.models) * len(t.latent_dims) * len(t.metrics)
        for t in grid.spec.tables
    ]
    # 392 published values, as many as the tables print.
    assert entries == [63, 16, 128, 105, 80]


def test_the_paper_grid_computes_the_svm_only_for_table_2():
    cells = [
        cell for cell, metrics in load_grid("paper").cells.items() if "svm-accuracy" in metrics
    ]
    assert len(cells) == 16
    assert {cell.latent_dim for cell in cells} == {8}


def test_the_ablations_share_their_runs_with_the_paper_grid():
    shared = load_grid("ablations").cells.keys() & load_grid("paper").cells.keys()
    assert {cell.model for cell in shared} == {"hgmvae-u", "hgmvae-u-nofisher", "gmvae"}
    assert {(cell.dataset, cell.latent_dim) for cell in shared} == {("mnist", 8)}


@pytest.mark.parametrize("name", grid_names())
def test_every_preset_is_valid(name):
    grid = load_grid(name)
    assert grid.spec.name == name
    assert all(metrics for metrics in grid.cells.values())


def test_keys_do_not_depend_on_order(tiny_text):
    content = yaml.safe_load(tiny_text)
    shuffled = dict(reversed(content.items()))
    for table in shuffled["tables"]:
        for values in (table["models"], table["metrics"]):
            random.Random(0).shuffle(values)

    def keys(text):
        grid = parse_grid(text, "g.yaml")
        return {Run(cell, seed, "data").key for cell in grid.cells for seed in range(2)}

    assert keys(tiny_text) == keys(yaml.safe_dump(shuffled, sort_keys=False))


def test_whatever_changes_a_result_changes_the_key(tiny_text):
    def key(*changes, seed=0, data="data"):
        text = tiny_text
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        return Run(next(iter(parse_grid(text, "g.yaml").cells)), seed, data).key

    base = key()
    changed = [
        key(("width: 2", "width: 3")),
        key(("epochs: 1", "epochs: 2")),
        key(("batch_size: 64", "batch_size: 65")),
        key(("train_images: 128", "train_images: 129")),
        key(("latent_dims: [2]", "latent_dims: [3]")),
        key(("[vae, wae-imq]", "[beta-vae]")),
        key(("seeds: 2", "seeds: 2\ndatasets: { digits: { image_size: 64 } }")),
        key(seed=1),
        key(data="other"),
    ]
    assert len({base, *changed}) == len(changed) + 1
    unchanged = [
        key(("name: tiny", "name: other")),
        key(("seeds: 2", "seeds: 5")),
        key(("metrics: [sc, accuracy]", "metrics: [db]")),
        key(("seeds: 2", "seeds: 2\nmodels: { vae: { title: Other } }")),
    ]
    assert set(unchanged) == {base}


def test_a_default_of_a_model_is_part_of_the_key(tiny_grid):
    cell = tiny_grid.cell("digits", "wae-imq", 2)
    assert cell.model_settings == dict(MODELS["wae-imq"].settings)
    settings = {**cell.model_settings, "reg_weight": 5.0}
    assert dataclasses.replace(cell, model_settings=settings).identity != cell.identity


def test_an_added_setting_enters_the_key_only_if_it_differs_from_its_default():
    @dataclasses.dataclass
    class Plugin:
        settings = {"old": 1.0, "added": None}  # noqa: RUF012
        added_settings = frozenset({"added"})

    assert keyed_settings(Plugin(), {}) == {"old": 1.0}
    assert keyed_settings(Plugin(), {"added": None}) == {"old": 1.0}
    assert keyed_settings(Plugin(), {"added": 3, "old": 2.0}) == {"old": 2.0, "added": 3}


def test_settings_that_were_added_to_the_suites_models_leave_their_keys_unchanged():
    cell = load_grid("paper").cell("mnist", "hgmvae-u", 8)
    assert cell.identity == "79ea6001380e7759"  # that of the committed records
    assert "posterior_components" not in cell.model_settings
    assert keyed_settings(MODELS["vade"], {}) == {
        "n_components": 10,
        "pretrain_epochs": 4,
        "mixture_fits": 1,
    }


def test_variants_of_one_model_are_different_cells_and_equal_ones_are_one(tiny_text):
    text = tiny_text.replace(
        "tables:",
        "models:\n"
        "  strong: { model: beta-vae, title: Strong, settings: { beta: 10 } }\n"
        "  usual: { model: beta-vae }\n"
        "tables:",
        1,
    ).replace("[vae, wae-imq]", "[beta-vae, usual, strong]")
    grid = parse_grid(text, "g.yaml")
    assert len(grid.cells) == 2
    assert grid.model_title("strong") == "Strong"
    assert grid.model_title("usual") == "β-VAE (usual)"
    assert grid.model_title("beta-vae") == "β-VAE (beta-vae)"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: 2", "seeds: 0", r"g.yaml:4: seeds: expected at least 1, got 0$"),
        ("seeds: 2", "sedes: 2", r"g.yaml:4: sedes: unknown key 'sedes'; did you mean seeds"),
        ("epochs: 1", "epoch: 1", r"g.yaml:6: training.epoch: .*'epoch'; did you mean epochs\?$"),
        ("seeds: 2", "models: { x: { setings: {} } }", r"g.yaml:4: .*; did you mean settings\?"),
        ("    rows:", "    row:", r"g.yaml:14: tables\[0\].row: .*; did you mean rows\?"),
        ("seeds: 2", "seeds: true", r"g.yaml:4: seeds: expected an integer, got True$"),
        ("batch_size: 64", "batch_size: yes", r"training.batch_size: expected an integer, got"),
        ("train_images: 128", "train_images: on", r"train_images: expected an integer, got 'on'"),
        ("epochs: 1", "learning_rate: true", r"learning_rate: expected a number, got True$"),
        ("epochs: 1", "learning_rate: high", r"learning_rate: expected a number, got 'high'$"),
        ("network: { width: 2 }", "network: 5", r"network: expected keys with .*width\), got 5$"),
        ("seeds: 2", "models: { x: 5 }", r"models.x: expected keys with .*settings\), got 5$"),
        ("latent_dims: [2]", "latent_dims: [2, 2]", r"names a latent_dim twice: \[2, 2\]$"),
        ("latent_dims: [2]", "latent_dims: 2", r"latent_dims: expected a list, got 2$"),
        ("width: 2", "width: wide", r"g.yaml:5: network.width: .*integer.*got 'wide'"),
        ("name: tiny", "tilte: x", r"g.yaml:1: name: this key is required"),
        ("name: tiny", "name: ../tiny", r"g.yaml:2: name: expected letters, .*, got '../tiny'$"),
        ('name: "1"', "name: a/b", r"g.yaml:8: tables\[0\].name: expected letters"),
        ("[vae, wae-imq]", "[vae, wae-img]", r"g.yaml:11: .*unknown model 'wae-img'.*wae-imq"),
        ("[digits]", "[digit]", r"g.yaml:10: .*unknown dataset 'digit'; did you mean digits"),
        ("[sc, accuracy]", "[sc, acuracy]", r"g.yaml:13: .*unknown metric 'acuracy'"),
        ("latent_dims: [2]", "latent_dims: [two]", r"g.yaml:12: tables\[0\].latent_dims\[0\]: "),
        ("rows: [metric]", "rows: [dataset]", r"g.yaml:8: tables\[0\]: .*2 values of metric"),
        ("rows: [metric]", "rows: []", r"g.yaml:14: tables\[0\].rows: .* at least one entry"),
        ("columns: [model]", "columns: []", r"g.yaml:15: tables\[0\].columns: .* at least one"),
        ("[vae, wae-imq]", "[vae, vae]", r"names a model twice"),
        ("seeds: 2", "seeds: 2\nseeds: 3", r"g.yaml:5: seeds: .*twice"),
        ("seeds: 2", "seeds: [", r"g.yaml:\d+: not valid YAML"),
        ("seeds: 2", "seeds: \a", r"g.yaml:4: not valid YAML: the character '\\x07'"),
        ("seeds: 2", "? [a, b]\n: c", r"g.yaml:4: not valid YAML: found unhashable key"),
        (
            "seeds: 2",
            "seeds: 2026-13-01",
            r"g.yaml:4: seeds: .* integer, got '2026-13-01'",
        ),
        ("seeds: 2", f"seeds: {'[' * 5000}", r"g.yaml: not valid YAML: nested too deeply"),
        ("seeds: 2", "seeds: &a { a: *a }", r"g.yaml:4: not valid YAML: an alias refers to"),
        (
            "seeds: 2",
            "models: { vae: { settings: { beta: 1 } } }",
            r"g.yaml:4: models.vae.settings.beta: unknown setting of vae 'beta'",
        ),
        (
            "seeds: 2",
            "models: { beta-vae: { settings: { beta: high } } }",
            r"g.yaml:4: models.beta-vae.settings.beta: expected a value like",
        ),
    ],
)
def test_an_error_names_file_line_and_key(tiny_text, old, new, message):
    assert old in tiny_text
    with pytest.raises(GridError, match=message):
        parse_grid(tiny_text.replace(old, new), "g.yaml")


def test_the_error_for_an_empty_file_lists_the_keys():
    with pytest.raises(GridError, match=r"^g.yaml:1: expected keys .*\(name, .*\), got nothing$"):
        parse_grid("", "g.yaml")


def test_numbers_may_have_an_exponent_without_a_point(tiny_text):
    text = tiny_text.replace("epochs: 1,", "epochs: 1, learning_rate: 1e-3,")
    assert parse_grid(text, "g.yaml").spec.training.learning_rate == 1e-3


def test_select_keeps_the_named_cells_and_refuses_unknown_names(tiny_grid):
    assert [c.model for c in tiny_grid.select(models=["vae"]).cells] == ["vae"]
    assert tiny_grid.select(seeds=7).spec.seeds == 7
    with pytest.raises(UnknownNameError, match=r"unknown model of grid tiny 'gmvae'"):
        tiny_grid.select(models=["gmvae"])
    with pytest.raises(UnknownNameError, match=r"unknown latent_dim of grid tiny '3'"):
        tiny_grid.select(latent_dims=[3])


def test_the_stored_grid_has_replaced_settings_but_every_cell(tiny_grid):
    selected = tiny_grid.select(models=["vae"], seeds=7, image_size=64)
    assert {cell.image_size for cell in selected.cells} == {64}
    kept = parse_grid(selected.text, "kept.yaml")
    assert kept.spec.seeds == 7
    assert [(cell.model, cell.image_size) for cell in kept.cells] == [("vae", 64), ("wae-imq", 64)]


def test_a_written_grid_reads_back_with_equal_cells(tiny_grid):
    assert list(parse_grid(tiny_grid.text, "g.yaml").cells) == list(tiny_grid.cells)


def test_filters_that_no_single_table_satisfies_are_refused():
    with pytest.raises(GridError, match="no cell passes the filters"):
        load_grid("paper").select(datasets=["celeba"], latent_dims=[2])


def test_a_missing_grid_file_and_an_unknown_grid_are_named(tmp_path):
    with pytest.raises(GridError, match=r"cannot read grid file .*none.yaml"):
        load_grid(str(tmp_path / "none.yaml"))
    with pytest.raises(UnknownNameError, match=r"unknown grid 'smoek'; did you mean smoke"):
        load_grid("smoek")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pythae:RAE_L3", "unknown pythae model 'RAE_L3'; did you mean RAE_L2"),
        ("pythae:VAEGAN", "pythae's VAEGAN cannot be run as 'pythae:VAEGAN': its training decides"),
        ("pythea:RAE_L2", "unknown model 'pythea'; did you mean pythae?"),
        ("vae:RAE_L2", "the model 'vae' takes no argument, got 'vae:RAE_L2'"),
    ],
)
def test_an_invalid_model_argument_is_refused_with_the_reason(tiny_text, tiny_grid, name, message):
    with pytest.raises(GridError, match=message):
        tiny_grid.with_models([name])
    with pytest.raises(GridError, match=rf"g.yaml:11: tables\[0\].models\[0\]: {message}"):
        parse_grid(tiny_text.replace("[vae, wae-imq]", f"['{name}', wae-imq]"), "g.yaml")


def test_long_names_give_keys_that_fit_into_a_file_name(tiny_grid):
    (first, *_) = tiny_grid.cells
    path = "folder:/" + "/".join(f"level-{i}" for i in range(60)) + "/faces"
    cell = dataclasses.replace(first, dataset=path)
    assert cell.slug == f"{slugify(path)}_vae_L2"
    assert slugify(path).endswith("level-59-faces")
    assert len(slugify(path)) <= 80


def test_models_are_added_to_every_table_once(tiny_grid):
    joined = tiny_grid.with_models(["vae", "pythae:RAE_L2"])
    assert [cell.model for cell in joined.cells] == ["vae", "wae-imq", "pythae:RAE_L2"]
    (cell,) = joined.select(models=["pythae:RAE_L2"]).cells
    # pythae's own defaults, and a key that is a file's name.
    assert cell.model_settings == {"embedding_weight": 1e-4, "reg_weight": 1e-7}
    assert cell.slug == "digits_pythae-RAE-L2_L2"
    assert joined.model_title("pythae:RAE_L2") == "RAE_L2"
    assert list(parse_grid(joined.text, "g.yaml").cells) == list(joined.cells)
    assert list(tiny_grid.with_models(["vae"]).cells) == list(tiny_grid.cells)
    assert tiny_grid.with_models(["pythae:RAE_L2"] * 2).text == joined.text


def test_merged_keys_are_no_duplicates(tiny_text):
    merged = tiny_text + (
        "models:\n  one: &one { model: vae, title: One }\n  two: { <<: *one, title: Two }\n"
    )
    spec = parse_grid(merged, "g.yaml").spec
    assert [(v.model, v.title) for v in spec.models.values()] == [("vae", "One"), ("vae", "Two")]


def test_nested_settings_are_flattened():
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": []}) == {"a.b": 1, "a.c.d": None, "e": []}


def test_variants_with_the_same_title_are_distinguished_by_name(tiny_text):
    text = tiny_text.replace("[vae, wae-imq]", "[vae, wide, deep]").replace(
        "tables:", "models: { wide: { model: swae }, deep: { model: swae } }\ntables:", 1
    )
    grid = parse_grid(text, "tiny.yaml")
    titles = [grid.model_title(name) for name in ("vae", "wide", "deep")]
    assert titles == ["VAE", "SWAE (wide)", "SWAE (deep)"]
