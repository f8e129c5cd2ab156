"""Input of the figures, and the errors that name missing input."""

from dataclasses import replace

import pytest

import hgmvae_bench as hb
from hgmvae_bench.analysis.figures import FIGURES, FigureError
from hgmvae_bench.plugins.protocols import UnknownNameError
from hgmvae_bench.storage.artifacts import ArtifactError
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun


def test_draw_figure_draws_from_a_folder(stored_models, lines):
    figure = hb.draw_figure(stored_models, "3", metrics=["sc"])
    assert lines(figure.axes[0]).keys() == {"VAE", "WAE-IMQ"}
    with pytest.raises(UnknownNameError, match="did you mean samples"):
        hb.draw_figure(stored_models, "sample")


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


def test_a_run_is_not_drawn_on_other_data(source):
    run = source.runs_to_draw()["vae"]
    other = StoredRun(run.record.model_copy(update={"data_digest": "x"}), run.sha256, run.metrics)
    with pytest.raises(FigureError, match="was trained on other digits data"):
        source.data("vae", other)
