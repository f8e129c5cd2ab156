from datetime import UTC, datetime
from pathlib import Path

import pytest

from hgmvae_bench.execution.plan import make_plan
from hgmvae_bench.grid import Run
from hgmvae_bench.storage.leases import Leases
from hgmvae_bench.storage.merge import MergeError, merge
from hgmvae_bench.storage.record_file import StoreError
from hgmvae_bench.storage.schema import ControlRecord, MetricValue, Record, ScoreRecord
from hgmvae_bench.storage.store import Store
from hgmvae_bench.utils.temporary import CACHE_TEMPORARY


class Data:
    digest = "d" * 64


def record(grid, n, value=0.5, status="complete", day=1):
    """Record of the ``n``-th run of the tiny grid."""
    runs = [Run(cell, seed, Data.digest) for cell in grid.cells for seed in range(2)]
    metrics = {"sc": MetricValue(value=value)} if status == "complete" else {}
    finished = datetime(2026, 1, day, tzinfo=UTC)
    return Record.of(runs[n], status=status, metrics=metrics, error=None, finished_at=finished)


def machine(root, grid, *records):
    """Results folder of one machine with these records."""
    store = Store(root)
    store.add_grid(grid)
    for content in records:
        store.add(content)
        with store.replacing_artifacts(content.key) as folder:
            (folder / "model").write_text(str(content.metrics))
    return root


def newest_records(root):
    return {key: run.record for key, run in Store(root).runs().items()}


def test_the_folders_of_two_machines_merge_into_a_complete_one(tiny_grid, tmp_path):
    records = [record(tiny_grid, n) for n in range(4)]
    a = machine(tmp_path / "a", tiny_grid, *records[:2])
    b = machine(tmp_path / "b", tiny_grid, *records[2:])
    for source in (a, b):
        assert len(merge(source, tmp_path / "all").copied) == 2
    assert newest_records(tmp_path / "all") == {r.key: r for r in records}
    for r in records:
        assert (Store(tmp_path / "all").artifact_folder(r.key) / "model").is_file()
    grid = Store(tmp_path / "all").grid()
    plan = make_plan(grid, {("digits", 32): Data}, Store(tmp_path / "all").runs())
    assert plan.train == []
    assert len(plan.score) == 4  # The accuracy is missing.


def test_merging_again_changes_nothing(tiny_grid, tmp_path):
    a = machine(tmp_path / "a", tiny_grid, record(tiny_grid, 0))
    merge(a, tmp_path / "b")
    files = sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*"))
    again = merge(a, tmp_path / "b")
    assert len(again.identical) == 1
    assert again.copied == again.superseded == again.kept == again.differing_grids == []
    assert sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*")) == files


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        ({"value": 0.1, "day": 1}, {"value": 0.2, "day": 2}, 0),
        ({"status": "failed", "day": 1}, {"value": 0.2, "day": 2}, 1),
        ({"value": 0.1, "day": 2}, {"status": "diverged", "day": 1}, 0),
        ({"status": "diverged", "day": 2}, {"status": "failed", "day": 1}, 1),
    ],
)
def test_precedence_does_not_depend_on_the_order_of_merging(
    tiny_grid, tmp_path, first, second, winner
):
    records = [record(tiny_grid, 0, **first), record(tiny_grid, 0, **second)]
    folders = [machine(tmp_path / str(i), tiny_grid, r) for i, r in enumerate(records)]
    for target, order in (("x", (0, 1)), ("y", (1, 0))):
        reports = [merge(folders[i], tmp_path / target) for i in order]
        assert newest_records(tmp_path / target) == {records[winner].key: records[winner]}
        assert len(reports[1].superseded if order[1] == winner else reports[1].kept) == 1
        artifact = Store(tmp_path / target).artifact_folder(records[0].key) / "model"
        assert artifact.read_text() == str(records[winner].metrics)


def test_files_that_a_process_is_writing_to_the_cache_are_not_copied(tiny_grid, tmp_path):
    source = machine(tmp_path / "a", tiny_grid, record(tiny_grid, 0))
    for name in (
        "features/whole.safetensors",
        f"{CACHE_TEMPORARY}/12-ab/half.safetensors",
        f"{CACHE_TEMPORARY}/12-ab.lock",
        "classifiers/.digits.lock",
    ):
        path = source / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")
    merge(source, tmp_path / "b")
    copied = [path for path in (tmp_path / "b" / "cache").rglob("*") if path.is_file()]
    assert [path.name for path in copied] == ["whole.safetensors"]


def test_later_scores_are_copied_once(tiny_grid, tmp_path):
    content = record(tiny_grid, 0)
    a = machine(tmp_path / "a", tiny_grid, content)
    merge(a, tmp_path / "b")
    sha256 = Store(a).runs()[content.key].sha256
    score = ScoreRecord(key=content.key, record_sha256=sha256, metrics={"db": MetricValue(value=2)})
    Store(a).add_scores(score)
    for _ in range(2):
        merge(a, tmp_path / "b")
        (run,) = Store(tmp_path / "b").runs().values()
        assert {name: metric.value for name, metric in run.metrics.items()} == {"sc": 0.5, "db": 2}
        assert run.scorings == 1


def test_no_merge_replaces_a_value_by_a_missing_metric(tiny_grid, tmp_path):
    content = record(tiny_grid, 0)
    no_weights = MetricValue(missing="no weights")
    added = {
        "a": [{"fid": MetricValue(value=12)}, {"kid": no_weights}],
        "b": [{"fid": no_weights, "kid": MetricValue(value=3)}, {"db": MetricValue(value=2)}],
    }
    for name, scorings in added.items():
        store = Store(machine(tmp_path / name, tiny_grid, content))
        sha256 = store.runs()[content.key].sha256
        for n, metrics in enumerate(scorings):
            provenance = {"machine": f"{name}{n}"}
            score = ScoreRecord(key=content.key, record_sha256=sha256, metrics=metrics)
            store.add_scores(score.model_copy(update={"provenance": provenance}))
    for target, order in (("x", "ab"), ("y", "ba")):
        for name in order:
            merge(tmp_path / name, tmp_path / target)
        (run,) = Store(tmp_path / target).runs().values()
        values = {name: metric.value for name, metric in run.metrics.items()}
        assert values == {"sc": 0.5, "fid": 12, "kid": 3, "db": 2}
    # The missing metrics are copied, each with its own provenance.
    merge(tmp_path / "b", tmp_path / "a")
    copied = [Store(tmp_path / "a").score_record(f"{content.key}.scores-{n}.json") for n in (3, 4)]
    assert [list(score.metrics) for score in copied] == [["kid"], ["db"]]
    assert [score.provenance["machine"] for score in copied] == ["b0", "b1"]


def control(**metrics):
    return ControlRecord(
        key="digits_mean-image_0",
        control="mean-image",
        title="Mean image",
        dataset="digits",
        image_size=32,
        train_images=None,
        data_digest=Data.digest,
        latent_dim=None,
        comparable=True,
        metrics=metrics,
    )


def test_metrics_of_a_control_that_both_folders_have_are_combined(tiny_grid, tmp_path):
    no_weights = MetricValue(missing="no weights")
    scorings = {
        "a": [control(ssim=MetricValue(value=1), lpips=no_weights)],
        "b": [control(lpips=MetricValue(value=2)), control(ssim=no_weights)],
    }
    for name, records in scorings.items():
        store = Store(machine(tmp_path / name, tiny_grid, record(tiny_grid, 0)))
        for content in records:
            store.add_control(content)
    for target, order in (("x", "ab"), ("y", "ba")):
        for name in order:
            merge(tmp_path / name, tmp_path / target)
        (merged,) = Store(tmp_path / target).controls().values()
        values = {name: metric.value for name, metric in merged.metrics.items()}
        assert values == {"ssim": 1, "lpips": 2}
        files = sorted((tmp_path / target / "controls").iterdir())
        merge(tmp_path / "b", tmp_path / target)
        assert sorted((tmp_path / target / "controls").iterdir()) == files


def test_a_damaged_control_stops_the_merge_before_anything_is_copied(tiny_grid, tmp_path):
    a = machine(tmp_path / "a", tiny_grid, record(tiny_grid, 0))
    Store(a).add_control(control())
    (path,) = (a / "controls").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StoreError, match=path.name):
        merge(a, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_every_record_of_a_run_is_copied(tiny_grid, tmp_path):
    attempts = [record(tiny_grid, 0, status="failed"), record(tiny_grid, 0)]
    a = machine(tmp_path / "a", tiny_grid, *attempts)
    merge(a, tmp_path / "b")
    assert len(list((tmp_path / "b" / "records").iterdir())) == 2
    assert newest_records(tmp_path / "b") == {attempts[1].key: attempts[1]}


def test_the_same_results_at_another_time_are_equivalent(tiny_grid, tmp_path):
    early, late = (record(tiny_grid, 0, day=day) for day in (1, 2))
    a, b = machine(tmp_path / "a", tiny_grid, late), machine(tmp_path / "b", tiny_grid, early)
    report = merge(a, b)
    assert report.equivalent == [early.key]
    assert report.superseded == report.kept == []
    report = merge(b, a)
    assert report.equivalent == [early.key]
    assert newest_records(a) == newest_records(b) == {early.key: early}


def test_a_different_grid_of_the_same_name_is_reported_and_not_copied(tiny_grid, tmp_path):
    a = machine(tmp_path / "a", tiny_grid, record(tiny_grid, 0))
    b = machine(tmp_path / "b", tiny_grid.select(seeds=1))
    kept = (b / "grids" / "tiny.yaml").read_text()
    assert merge(a, b).differing_grids == ["tiny"]
    assert (b / "grids" / "tiny.yaml").read_text() == kept


def test_a_damaged_record_stops_the_merge_before_anything_is_copied(tiny_grid, tmp_path):
    a = machine(tmp_path / "a", tiny_grid, record(tiny_grid, 0), record(tiny_grid, 1))
    path = sorted((a / "records").iterdir())[1]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StoreError, match=path.name):
        merge(a, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_folders_that_cannot_be_merged_are_an_error(tmp_path, tiny_grid):
    with pytest.raises(MergeError, match="nowhere is not a results folder"):
        merge(tmp_path / "nowhere", tmp_path / "b")
    a = machine(tmp_path / "a", tiny_grid, record(tiny_grid, 0))
    with pytest.raises(MergeError, match="cannot be merged into itself"):
        merge(a, tmp_path / "." / "a")


@pytest.mark.parametrize("refused", ["model", "run.log", "tiny.yaml"])
def test_an_unreadable_file_is_an_error_that_names_it(tiny_grid, tmp_path, monkeypatch, refused):
    content = record(tiny_grid, 0)
    store = Store(machine(tmp_path / "a", tiny_grid, content))
    store.log_path(content.key).parent.mkdir()
    store.log_path(content.key).write_text("a word")
    read = Path.read_bytes

    def refuse(self):
        if self.name == refused.replace("run", content.key):
            raise PermissionError(13, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StoreError, match=r"/a/.*: cannot be read: Permission denied"):
        merge(tmp_path / "a", tmp_path / "b")


def test_a_run_that_another_process_works_on_is_not_copied(tiny_grid, tmp_path):
    a = machine(tmp_path / "a", tiny_grid, record(tiny_grid, 0), record(tiny_grid, 1, day=2))
    target = machine(tmp_path / "b", tiny_grid)
    busy = record(tiny_grid, 1).key
    with Leases(Store(target).files, "another") as leases:
        leases.acquire(f"{busy}.json")
        with pytest.raises(MergeError, match=rf"another process works on {busy} .*merge again"):
            merge(a, target)
        assert not (target / "artifacts" / busy).exists()
        # The other process ends and has recorded the run.
        machine(target, tiny_grid, record(tiny_grid, 1, value=0.7))
    assert merge(a, target).superseded == []
    assert newest_records(target)[busy].metrics["sc"].value == 0.7
    assert [path.name for path in (target / "leases").iterdir()] == [f"{busy}.json.0"]


def test_a_run_that_another_process_retries_is_not_replaced(tiny_grid, tmp_path):
    failed, complete = record(tiny_grid, 0, status="failed", day=1), record(tiny_grid, 0, day=2)
    source = machine(tmp_path / "a", tiny_grid, complete)
    target = machine(tmp_path / "b", tiny_grid, failed)
    artifact = Store(target).artifact_folder(failed.key) / "model"
    with Leases(Store(target).files, "another") as leases:
        leases.acquire(f"{failed.key}.retry-1.json")
        with pytest.raises(MergeError, match=rf"another process works on {failed.key} "):
            merge(source, target)
    assert newest_records(target)[failed.key].status == "failed"
    assert artifact.read_text() == str(failed.metrics)
    # The process is gone: its lease does not count any more.
    assert merge(source, target).superseded == [failed.key]
    assert newest_records(target)[failed.key] == complete
    assert list((target / "leases").iterdir()) == []


def test_artifacts_stay_if_their_replacement_cannot_be_renamed(tmp_path, monkeypatch):
    store = Store(tmp_path)
    with store.replacing_artifacts("run") as folder:
        (folder / "model").write_text("old")
    rename = Path.rename

    def refuse(self, target):
        if (self / "model").is_file() and (self / "model").read_text() == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with (
        pytest.raises(StoreError, match="Input/output error"),
        store.replacing_artifacts("run") as folder,
    ):
        (folder / "model").write_text("new")
    assert (store.artifact_folder("run") / "model").read_text() == "old"
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["run"]
