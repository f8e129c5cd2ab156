"""The controls of a grid are scored once, stored, and shown beside the models."""

import json
import shutil

import pytest
import torch

from hgmvae_bench.analysis.render import to_csv, to_latex, to_text
from hgmvae_bench.analysis.tables import build_table
from hgmvae_bench.evaluation.controls import build_controls
from hgmvae_bench.evaluation.metrics import classifier
from hgmvae_bench.execution.controls import score_controls
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.storage.record_file import StoreError
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun

CPU = torch.device("cpu")
NAMES = ["mean-image", "pixel-noise", "real-halves", "real-train"]


@pytest.fixture(scope="module")
def grid(tiny_text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "STEPS", 10)
        text = tiny_text.replace("[sc, accuracy]", "[sc, ssim, fid-classifier-samples]")
        yield parse_grid(text, "tiny.yaml")


def score(grid, digits, store, **options):
    """Score the controls; return the metrics that each one got."""
    scored = []
    data = {("digits", 32): digits}
    score_controls(grid, data, store, device=CPU, on_scored=scored.append, **options)
    return {record.control: list(record.metrics) for record in scored}


@pytest.fixture(scope="module")
def scored(grid, digits, tmp_path_factory):
    """A results folder with every control of the grid, and the metrics of each."""
    store = Store(tmp_path_factory.mktemp("controls") / "r")
    return store.root, score(grid, digits, store)


@pytest.fixture
def store(scored, tmp_path):
    """A copy of the folder with every control of the grid."""
    root, _ = scored
    return Store(shutil.copytree(root, tmp_path / "r"))


def runs_of(grid, data_digest, fingerprint, values):
    runs = []
    for model, value in values.items():
        run = Run(grid.cell("digits", model, 2), 0, data_digest)
        metrics = {
            name: MetricValue(value=value, fingerprint=fingerprint[name]) for name in fingerprint
        }
        runs.append(StoredRun(Record.of(run, status="complete"), model, metrics))
    return runs


@pytest.fixture
def fingerprints(store):
    (pca,) = (c for c in store.controls().values() if c.control == "pca")
    return {name: value.fingerprint for name, value in pca.metrics.items()}


LABELS = {
    "real-halves": "Real (two halves)",
    "real-train": "Real (training images)",
    "mean-image": "Mean image",
    "pixel-noise": "Pixel noise",
    "pca": "PCA, L = 2",
}


def test_each_control_gets_its_applicable_metrics_once(scored, grid, store, digits, tmp_path):
    sample = "fid-classifier-samples"
    _, metrics = scored
    assert metrics == {
        "real-halves": [sample],
        "real-train": [sample],
        "mean-image": ["ssim", sample],
        "pixel-noise": ["ssim", sample],
        "pca": ["sc", "ssim", sample],
    }
    assert score(grid, digits, store) == {}
    known = store.controls()
    assert len(known) == 5
    for key, record in known.items():
        assert record.key == key
        assert record.label == f"digits, {LABELS[record.control]}"
        assert record.data_digest == digits.digest
        assert record.train_images == 128
        assert record.comparable == (record.control != "real-halves")
        assert record.provenance["packages"]["torch"]
    # The values are those of the control itself on the training images that the models see.
    seen = digits.first_train_images(128)
    (*_, pca) = build_controls(seen, "digits", [2], device=CPU, cache=tmp_path)
    (stored,) = (record for record in known.values() if record.control == "pca")
    expected = pca.score(["sc", "ssim"])
    assert {n: stored.metrics[n].value for n in expected} == {
        n: v.value for n, v in expected.items()
    }


def test_later_metrics_are_added_and_missing_ones_computed_again(grid, digits, store):
    assert score(grid, digits, store, metrics=["sc", "nmi"]) == {"pca": ["nmi"]}
    files = sorted(path.name for path in (store.root / "controls").iterdir())
    assert len(files) == 6
    assert sum(name.endswith(".scores-1.json") for name in files) == 1
    (pca,) = (c for c in store.controls().values() if c.control == "pca")
    assert list(pca.metrics) == ["sc", "ssim", "fid-classifier-samples", "nmi"]
    missing = {"db": MetricValue(missing="no weights")}
    store.add_control(pca.model_copy(update={"metrics": missing}))
    assert score(grid, digits, store) == {}
    assert score(grid, digits, store, metrics=["db"]) == {"pca": ["db"]}
    (pca,) = (c for c in store.controls().values() if c.control == "pca")
    assert pca.metrics["db"].value is not None


def test_a_damaged_control_is_named(store):
    path = next((store.root / "controls").iterdir())
    path.write_text(path.read_text().replace('"title": "', '"title": "x'))
    with pytest.raises(StoreError, match=r"controls/.*truncated or edited"):
        store.controls()


def test_controls_have_no_rank_and_change_no_entry_of_a_model(grid, store, digits, fingerprints):
    runs = runs_of(grid, digits.digest, fingerprints, {"vae": 0.25, "wae-imq": 0.75})
    spec, known = grid.table("1"), store.controls()
    alone, table = build_table(grid, spec, runs), build_table(grid, spec, runs, known.values())
    models = [entry for entry in table.entries if not entry.control]
    assert models == alone.entries
    assert {entry.rank for entry in table.entries if entry.control} == {None}
    added = {entry.model for entry in table.entries if entry.control}
    assert added == {f"control:{name}" for name in [*NAMES, "pca"]}
    (pca,) = (c for c in known.values() if c.control == "pca")
    assert {e.metric: e.mean for e in table.entries if e.model == "control:pca"} == {
        name: value.value for name, value in pca.metrics.items()
    }
    header, row = (
        next(line for line in to_text(table.formatted).splitlines() if line.startswith(start))
        for start in ("Model", "SSIM")
    )
    assert header.rstrip().endswith("PCA (control)")
    assert row.split()[-1] == f"{pca.metrics['ssim'].value:.3f}"
    assert "NaN" not in to_text(table.formatted) + to_latex(table.formatted)
    assert "control:pca" in to_csv(table.formatted)


def test_the_control_of_halves_is_a_footnote_because_it_uses_fewer_images(
    grid, store, digits, fingerprints
):
    runs = runs_of(grid, digits.digest, fingerprints, {"vae": 0.25})
    known = store.controls()
    table = build_table(grid, grid.table("1"), runs, known.values())
    (halves,) = (entry for entry in table.entries if entry.model == "control:real-halves")
    (record,) = (c for c in known.values() if c.control == "real-halves")
    value = record.metrics["fid-classifier-samples"].value
    assert halves.mean is None
    assert halves.note.startswith(f"{value:.3g}, of other images than the models'")
    assert halves.note in to_text(table.formatted)


def test_a_control_of_another_fingerprint_costs_only_its_value(grid, store, digits, fingerprints):
    other = {**fingerprints, "ssim": {"split": "test", "n_images": 100}}
    runs = runs_of(grid, digits.digest, other, {"vae": 0.25})
    table = build_table(grid, grid.table("1"), runs, store.controls().values())
    ssim = [entry for entry in table.entries if entry.metric == "ssim"]
    controls = [entry for entry in ssim if entry.control]
    assert controls
    for entry in controls:
        assert entry.mean is None
        assert "not comparable" in entry.note
    assert any("differ in" in entry.note for entry in controls)
    assert [entry.mean for entry in ssim if entry.model == "vae"] == [0.25]


def test_controls_of_other_images_are_left_out(grid, store, fingerprints):
    runs = runs_of(grid, "other data", fingerprints, {"vae": 0.25})
    table = build_table(grid, grid.table("1"), runs, store.controls().values())
    assert not [entry for entry in table.entries if entry.control]


def test_a_table_of_one_model_gets_an_axis_for_controls(grid, store, digits, fingerprints):
    runs = runs_of(grid, digits.digest, fingerprints, {"vae": 0.25})
    spec = grid.table("1").model_copy(update={"models": ["vae"], "columns": ["latent_dim"]})
    text = to_text(build_table(grid, spec, runs, store.controls().values()).formatted)
    assert "PCA (control)" in text


def test_the_record_names_the_images_and_the_fingerprints(store):
    path = next(p for p in (store.root / "controls").iterdir() if "pca" in p.name)
    content = json.loads(path.read_text())["content"]
    assert (content["dataset"], content["image_size"], content["latent_dim"]) == ("digits", 32, 2)
    assert content["metrics"]["sc"]["fingerprint"] == {
        "split": "test",
        "n_images": 360,
        "labels": "classes",
        "n_labels": 10,
    }
