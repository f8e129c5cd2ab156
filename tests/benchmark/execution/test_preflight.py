"""Every command refuses a grid that cannot be run before anything is trained."""

import re
import sys

import pytest

from hgmvae_bench.data import DataError
from hgmvae_bench.execution import preflight
from hgmvae_bench.execution.isolation import map_isolated
from hgmvae_bench.execution.preflight import available_data, check_cells, load_data
from hgmvae_bench.grid import GridError, Run, parse_grid
from hgmvae_bench.grid.overrides import override
from hgmvae_bench.plugins.local_files import using_plugins
from hgmvae_bench.plugins.objects import wrap_plugins
from hgmvae_bench.storage.schema import Record
from hgmvae_bench.storage.store import Store
from hgmvae_bench.utils.errors import UserError

COMMANDS = {
    "run": ["run"],
    "plan": ["plan"],
    "check": ["check", "--update", "--baseline", "b.json"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "train_images: 128",
            "train_images: 99999",
            r"tiny.yaml:6: training.train_images: digits has only 1437 .* got 99999$",
        ),
        (
            "seeds: 2",
            "datasets: { digits: { image_size: 33 } }",
            r"tiny.yaml:4: datasets.digits.image_size: image_size 33 is not a multiple of 8$",
        ),
        (
            "seeds: 2",
            "datasets: { small: { dataset: digits, image_size: 8 } }",
            r"tiny.yaml:4: datasets.small.image_size: image side 8 px does not fit the network",
        ),
        (
            "seeds: 2",
            "models: { x: { model: gmvae, settings: { n_components: -3 } } }",
            r"tiny.yaml:4: models.x.settings.n_components: expected a.* [01], got -3$",
        ),
        (
            "seeds: 2",
            "models: { x: { model: gmvae, settings: { n_components: 1000000000 } } }",
            r"tiny.yaml:4: models.x.settings.n_components: .* 10,000, got 1000000000$",
        ),
        (
            "seeds: 2",
            "models: { x: { model: hgmvae-u, settings: { subcomponents: 1000000000 } } }",
            r"tiny.yaml:4: models.x.settings: subcomponents is too large; .* at most 10,000$",
        ),
        ("[vae, wae-imq]", "[hgmvae-u]", r"tiny.yaml:6: training.epochs: hgmvae-u: .*too few"),
        ("[vae, wae-imq]", "[vade]", r"tiny.yaml:6: training.epochs: vade: .*epoch"),
        ("[vae, wae-imq]", "[pythae]", r".*models.pythae: .* needs the name of a model, as in"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused_with_its_line_and_key(
    cli, tiny_text, tmp_path, command, old, new, message
):
    assert old in tiny_text
    text = tiny_text.replace(old, new)
    text = text.replace("[digits]", "[small]") if "small:" in new else text
    text = text.replace("[vae, wae-imq]", "[x]") if "x:" in new else text
    (tmp_path / "tiny.yaml").write_text(text)
    outcome = cli(*COMMANDS[command], "--grid", "tiny.yaml", "--results", "r", cwd=tmp_path)
    assert outcome.exit_status == 2
    assert re.search(rf"^error: {message}", outcome.stderr, re.MULTILINE), outcome.stderr
    assert not (tmp_path / "r" / "records").exists()


def test_a_grid_that_does_not_fit_is_refused_also_if_its_runs_are_recorded(
    cli, tiny_text, tmp_path, digits
):
    """Nothing has to be trained, but the controls cannot be computed."""
    grid = parse_grid(tiny_text.replace("train_images: 128", "train_images: 99999"), "tiny.yaml")
    store = Store(tmp_path / "r")
    store.add_grid(grid)
    for cell in grid.cells:
        for seed in range(2):
            store.add(Record.of(Run(cell, seed, digits.digest), status="failed", error="too few"))
    (tmp_path / "tiny.yaml").write_text(grid.text)
    for command in (["run", "--grid", "tiny.yaml"], ["evaluate", "--metrics", "ssim"]):
        outcome = cli(*command, "--results", "r", cwd=tmp_path)
        assert outcome.exit_status == 2
        assert "digits has only 1437 training images" in outcome.stderr


def test_missing_data_is_named_with_the_datasets_that_can_be_run(tiny_text, tmp_path):
    text = tiny_text.replace("[digits]", "[digits, mnist]")
    grid = parse_grid(text.replace("rows: [metric]", "rows: [metric, dataset]"), "tiny.yaml")
    with pytest.raises(DataError, match=r"(?s)mnist: .*add --dataset digits"):
        load_data(grid, tmp_path)
    data, missing = available_data(grid, tmp_path)
    assert (list(data), list(missing)) == ([("digits", 32)], ["mnist"])
    # The models of the missing dataset are checked too.
    check_cells(grid, grid.cells, data)


class Unbuildable:
    """A model that cannot be built in the way that its setting names."""

    title, reference, settings = "Unbuildable", "none", {"way": "exits"}

    def build(self, *, settings, **_):
        import ctypes
        import os
        import time

        ways = {
            "exits": lambda: sys.exit(3),
            "vanishes": lambda: os._exit(4),
            "crashes": lambda: ctypes.string_at(0),
            "hangs": lambda: time.sleep(1000),
        }
        ways[settings["way"]]()


def test_models_that_end_or_block_the_process_are_refused_by_name(tiny_text, monkeypatch):
    reasons = {
        "exits": "it exits with status 3",
        "vanishes": "the process died: exit status 4",
        "crashes": "the process died: SIGSEGV",
        "hangs": "not finished within 3 s",
    }
    # The limit includes the start of the process, but the fork server is started before.
    assert list(map_isolated(int, ["0"], seconds=120)) == [0]
    monkeypatch.setattr(preflight, "BUILD_SECONDS", 3.0)
    models = "".join(f"  {w}: {{ model: bad, settings: {{ way: {w} }} }}\n" for w in reasons)
    text = tiny_text.replace("tables:", f"models:\n{models}tables:", 1)
    text = text.replace("[vae, wae-imq]", f"[vae, {', '.join(reasons)}]")
    with using_plugins(wrap_plugins({"bad": Unbuildable()})):
        grid = parse_grid(text, "tiny.yaml")
        with pytest.raises(GridError) as refused:
            check_cells(grid, grid.cells, {})
    lines = str(refused.value).splitlines()
    assert len(lines) == len(reasons)
    for line, (way, reason) in zip(lines, reasons.items(), strict=True):
        assert f"models.{way}: " in line
        assert line.endswith(reason)


def test_every_error_is_listed_once(tiny_text):
    models = (
        "models:\n"
        "  a: { model: gmvae, settings: { n_components: 0 } }\n"
        "  b: { model: beta-vae, settings: { beta: -1 } }\n"
    )
    text = tiny_text.replace("tables:", f"{models}tables:", 1).replace("[vae, wae-imq]", "[a, b]")
    text = text.replace("latent_dims: [2]", "latent_dims: [2, 3]")
    grid = parse_grid(text.replace("rows: [metric]", "rows: [metric, latent_dim]"), "tiny.yaml")
    with pytest.raises(UserError) as refused:
        check_cells(grid, grid.cells, {})
    assert [line.split(": ")[1] for line in str(refused.value).splitlines()] == [
        "models.a.settings.n_components",
        "models.b.settings.beta",
    ]


def test_any_error_of_a_model_is_refused_with_its_type(tiny_grid):
    name = "pythae:DisentangledBetaVAE"
    grid = tiny_grid.with_models([name]).select(models=[name])
    changed = override(grid, {"model.warmup_epoch": -1})
    with pytest.raises(GridError, match=r"DisentangledBetaVAE.* cannot be built: AssertionError: "):
        check_cells(changed, changed.cells, {})
