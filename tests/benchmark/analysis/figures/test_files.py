"""Figure files: formats, names and the command."""

import re
import shutil
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
import torch

from hgmvae_bench.analysis.figures import FIGURES, FigureError, FigureSource
from hgmvae_bench.analysis.figures.files import draw_all, write_figures
from hgmvae_bench.analysis.figures.style import STYLE, to_png, to_svg
from hgmvae_bench.grid import parse_grid
from hgmvae_bench.storage.store import Store

# Their own modules test their files.
NOT_IN_TINY_GRID = {"components", "factors", "ranks", "rate-distortion", "verdicts"}


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in NOT_IN_TINY_GRID])
def test_figures_of_the_tiny_grid_give_deterministic_files(
    source, assert_deterministic_files, name
):
    part = next(part for _, part in source.split(FIGURES[name].scope))
    # 100 points show the same as the default of 1,000 and make t-SNE ten times faster.
    options = {"3": {"metrics": ["sc"]}, "4": {"max_points": 100}}.get(name, {})
    assert_deterministic_files(lambda: FIGURES[name].draw(part, **options))


def test_names_are_drawn_as_text_not_as_formulas(made_up, lines):
    figure = FIGURES["3"].draw(made_up().select(models=["vae"]), metrics=["sc"])
    assert "a $\\frac{1}$ <b>name</b>" in lines(figure.axes[0])
    ElementTree.fromstring(to_svg(figure))


def test_drawing_leaves_global_settings_and_random_state_alone(source):
    before = dict(mpl.rcParams)
    torch.manual_seed(0)
    random_state = torch.random.get_rng_state()
    to_png(FIGURES["samples"].draw(replace(source, _loaded={})))
    assert dict(mpl.rcParams) == before
    assert before["font.size"] != STYLE["font.size"]
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_unknown_formats_are_refused(source, tmp_path):
    with pytest.raises(FigureError, match=r"x\.bmp: .*\.png or \.svg"):
        list(write_figures(FIGURES["training"], source, tmp_path / "x.bmp"))
    assert list(tmp_path.iterdir()) == []


def test_files_are_named_after_their_content(made_up, tmp_path):
    source = made_up().select(models=["vae"])
    written = dict(write_figures(FIGURES["training"], source, tmp_path / "out"))
    assert {path.name for path in written} == {
        f"figure-training-digits-L{L}.{suffix}" for L in (2, 4, 8) for suffix in ("png", "svg")
    }
    assert all(path.stat().st_size for path in written)


def test_several_figures_do_not_go_into_one_file(made_up, tmp_path):
    with pytest.raises(FigureError, match=r"one\.svg: .* 3 figures .*--latent-dim"):
        next(write_figures(FIGURES["training"], made_up(), tmp_path / "one.svg"))


def test_figures_that_cannot_be_drawn_come_with_the_reason(made_up):
    reasons = [str(error) for _, error in draw_all(FIGURES["5a"], made_up())]
    assert len(reasons) == 3
    assert all("was trained on other digits data" in reason for reason in reasons)


def test_similar_names_get_different_files(tmp_path, tiny_text):
    variants = """models:
  vae beta: { model: beta-vae, settings: { beta: 2 } }
  vae (beta): { model: beta-vae, settings: { beta: 3 } }
tables:"""
    text = tiny_text.replace("tables:", variants, 1)
    text = text.replace("[vae, wae-imq]", "[vae beta, vae (beta), vae]")
    source = FigureSource(parse_grid(text, "g.yaml"), Store(tmp_path), {}, tmp_path)
    kind = replace(FIGURES["training"], scope=("model",))
    names = [path.stem for path, _ in write_figures(kind, source, tmp_path)][::2]
    assert len(set(names)) == 3
    assert names[2] == "figure-training-vae"
    assert all(re.fullmatch(r"figure-training-vae-beta-[0-9a-f]{8}", name) for name in names[:2])
    # A filter does not change the names.
    filtered = write_figures(kind, source.select(models=["vae (beta)"]), tmp_path)
    assert names[1] in {path.stem for path, _ in filtered}


def test_the_command_prints_the_path_of_the_file(cli, stored_models, tmp_path):
    output = tmp_path / "a.svg"
    outcome = cli("figure", "5a", "--results", stored_models, "--output", output)
    assert outcome.exit_status == 0, outcome.stderr
    assert outcome.stdout == f"{output}\n"
    ElementTree.parse(output)


def test_the_command_draws_the_selected_cell_and_seed(cli, stored_models, tmp_path):
    options = ("--dataset", "digits", "--model", "vae", "--latent-dim", 2)

    def drawn(*seed):
        output = tmp_path / "a.png"
        outcome = cli(
            "figure", "5b", "--results", stored_models, *options, *seed, "--output", output
        )
        assert outcome.exit_status == 0, outcome.stderr
        return output.read_bytes()

    assert drawn() == drawn("--seed", 0) != drawn("--seed", 1)


def test_a_seed_that_was_not_run_is_named(cli, stored_models, tmp_path):
    command = ("figure", "5b", "--results", stored_models, "--model", "vae", "--output", tmp_path)
    outcome = cli(*command, "--seed", 7)
    assert outcome.exit_status == 2
    assert "seed 7" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_exits_with_1_if_some_figures_cannot_be_drawn(cli, stored_models, tmp_path):
    results = shutil.copytree(stored_models, tmp_path / "r")
    for folder in (results / "artifacts").glob("digits_wae-imq_*"):
        shutil.rmtree(folder)
    outcome = cli("figure", "5b", "--results", results, "--output", tmp_path / "out")
    assert outcome.exit_status == 1
    assert outcome.stderr.startswith("not drawn: ")
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"figure-5b-digits-L2-vae"}


def test_the_command_fails_if_nothing_can_be_drawn(cli, stored_models):
    outcome = cli("figure", "components", "--results", stored_models)
    assert outcome.exit_status == 2
    assert "none of vae, wae-imq has components" in outcome.stderr
    assert not (stored_models / "figures").exists()
