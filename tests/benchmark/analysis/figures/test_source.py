"""Input of the figures, and the errors that name missing input."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import hgmvae_bench as hb
from hgmvae_bench.analysis.figures import FIGURES, FigureError
from hgmvae_bench.analysis.figures.source import MAX_TITLE_LENGTH, shorten_titles
from hgmvae_bench.plugins.protocols import UnknownNameError
from hgmvae_bench.storage.artifacts import ArtifactError
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun


def test_results_draw_a_figure(stored_models, lines):
    results = hb.Results(stored_models)
    figure = results.figure("3", metrics=["sc"])
    assert lines(figure.axes[0]).keys() == {"VAE", "WAE-IMQ"}
    with pytest.raises(UnknownNameError, match="did you mean samples"):
        results.figure("sample")


@pytest.mark.parametrize(
    ("name", "select", "message"),
    [
        ("3", {}, "digits has a value of sc, ch, db; compute them with `hgmvae-bench evaluate"),
        ("4", {"seed": 7}, "vae: no run with seed 7"),
        ("components", {}, "none of vae, wae-imq has components"),
        ("5b", {}, "shows one model and the grid has vae, wae-imq; select one"),
        ("ranks", {}, "at least three models"),
    ],
)
def test_errors_name_what_is_missing(source, name, select, message):
    if name == "3":
        runs = {k: StoredRun(r.record, r.sha256, {}) for k, r in source.runs.items()}
        source = replace(source, runs=runs)
    with pytest.raises(FigureError, match=message):
        FIGURES[name].draw(source.select(**select))


@pytest.mark.parametrize("name", ["3", "4", "training"])
def test_the_error_advises_to_retry_if_every_run_diverged(made_up, name):
    source = made_up([("vae", 4, seed) for seed in range(3)])
    without_history = {
        k: StoredRun(r.record.model_copy(update={"history": {}}), r.sha256, r.metrics)
        for k, r in source.runs.items()
    }
    source = replace(source, runs=without_history).select(models=["vae"], latent_dims=[4])
    with pytest.raises(FigureError, match=r"3 diverged: `hgmvae-bench run --retry-failed`"):
        FIGURES[name].draw(source)


def test_errors_name_missing_and_damaged_files(source, tmp_path):
    emptied = replace(source, store=Store(tmp_path), _loaded={})
    with pytest.raises(ArtifactError, match=r"model\.safetensors: "):
        FIGURES["5a"].draw(emptied)
    with pytest.raises(ArtifactError, match=r"codes\.safetensors: "):
        FIGURES["4"].draw(emptied)
    folder = tmp_path / "artifacts" / source.runs_to_draw()["vae"].record.key
    folder.mkdir(parents=True)
    (folder / "codes.safetensors").write_bytes(b"garbage")
    with pytest.raises(ArtifactError, match=r"codes\.safetensors: damaged"):
        FIGURES["4"].draw(emptied)


@pytest.mark.parametrize("name", ["5a", "5b", "6", "samples"])
def test_images_that_are_not_finite_are_refused_with_the_run(source, name):
    source = source.select(models=["vae"])
    run = source.runs_to_draw()["vae"]
    with torch.no_grad():
        next(source.codec("vae", run).model.decoder.parameters()).fill_(torch.nan)
    with pytest.raises(FigureError, match=f"{run.record.key} .*images are not all finite"):
        FIGURES[name].draw(source)


@pytest.mark.parametrize("name", ["4", "6"])
def test_codes_that_are_not_finite_are_refused_with_the_run(source, name, monkeypatch):
    codes = np.full((360, 2), np.nan, np.float32)
    monkeypatch.setattr("hgmvae_bench.storage.artifacts.load_codes", lambda folder: codes)
    with pytest.raises(FigureError, match=r"digits_vae_L2_s0.* codes are not all finite"):
        FIGURES[name].draw(source.select(models=["vae"]))


def test_component_probabilities_that_are_not_finite_are_refused_with_the_run(source, monkeypatch):
    codec = source.codec("vae", source.runs_to_draw()["vae"])
    probabilities = np.full((360, 3), np.nan, np.float32)
    monkeypatch.setattr(type(codec), "component_probabilities", lambda self, images: probabilities)
    with pytest.raises(FigureError, match=r"digits_vae_L2_s0.* probabilities are not all finite"):
        FIGURES["components"].draw(source)


def test_shortened_titles_stay_distinct():
    long = "A model with a title that is long"
    titles = {
        "a": f"{long} (a)",
        "b": f"{long} (b)",
        "c": f"{long}, first {long} (a)",
        "d": f"{long}, second {long} (a)",
        "e": "Short",
        "f": "_Hidden by matplotlib",
    }
    short = shorten_titles(titles)
    assert short["b"] == "A model with …at is long (b)"
    assert short["d"] == "A model with a title that… 4"
    assert short["e"] == "Short"
    assert short["f"] == " _Hidden by matplotlib"
    assert len(set(short.values())) == len(titles)
    assert max(map(len, short.values())) <= MAX_TITLE_LENGTH


def test_models_with_long_and_equal_titles_are_all_drawn(source, lines):
    long = "A model whose title is as long as a line"
    models = {name: {"model": name, "title": long} for name in ("vae", "wae-imq")}
    spec = {**source.grid.spec.model_dump(), "models": models}
    source = replace(source, grid=hb.make_grid(spec))
    panel = FIGURES["5a"].draw(source).axes[0]
    labels = [label.get_text().replace("\n", " ") for label in panel.get_yticklabels()]
    assert labels[0] == "original"
    assert [label.rpartition(" ")[2] for label in labels[1:]] == ["(vae)", "(wae-imq)"]
    figure = FIGURES["training"].draw(source)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == list(lines(figure.axes[0]))
    assert len(legend) == 2


def test_a_model_may_have_the_title_of_the_row_of_originals(source):
    models = {"vae": {"model": "vae", "title": "original"}}
    spec = {**source.grid.spec.model_dump(), "models": models}
    panel = FIGURES["5a"].draw(replace(source, grid=hb.make_grid(spec))).axes[0]
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert labels == ["original", "original", "WAE-IMQ"]


def test_results_draw_the_cells_of_their_own_grid(stored_models, source, lines):
    grid = source.grid.select(models=["vae"])
    figure = hb.Results(stored_models, grid).figure("3", metrics=["sc"])
    assert lines(figure.axes[0]).keys() == {"VAE"}
    with pytest.raises(UnknownNameError, match="wae-imq"):
        hb.Results(stored_models, grid).figure("3", model="wae-imq")


def test_a_run_is_not_drawn_on_other_data(source):
    run = source.runs_to_draw()["vae"]
    other = StoredRun(run.record.model_copy(update={"data_digest": "x"}), run.sha256, run.metrics)
    with pytest.raises(FigureError, match="was trained on other digits data"):
        source.data("vae", other)
