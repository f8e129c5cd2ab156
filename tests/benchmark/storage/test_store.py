import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hgmvae_bench.storage.record_file import StoreError
from hgmvae_bench.storage.schema import MetricValue, Record, ScoreRecord
from hgmvae_bench.storage.store import Store
from hgmvae_bench.utils.atomic_files import LocalFiles, write_atomically

OLD_RECORDS = Path(__file__).parent / "old_records"

SETTINGS = {
    "dataset": {"name": "digits", "image_size": 32},
    "model": {"name": "vae", "settings": {}},
    "latent_dim": 8,
    "network": {},
    "training": {},
}


def record(key="run", **content):
    content = {"cell": "c", "seed": 0, "settings": SETTINGS, "data_digest": "d", **content}
    return Record(key=key, **{"status": "complete", **content})


def value(number):
    return MetricValue(value=number, fingerprint={"n_images": 10}, seconds=0.5)


def test_a_record_is_read_as_it_was_written(tmp_path):
    written = record(metrics={"sc": value(0.25)}, history={"loss": [2.0, 1.5]})
    Store(tmp_path).add(written)
    run = Store(tmp_path).runs()["run"]
    assert run.record == written
    assert run.metrics == written.metrics


def test_a_record_file_is_plain_json(tmp_path):
    Store(tmp_path).add(record())
    content = json.loads((tmp_path / "records" / "run.json").read_text())["content"]
    assert content["schema_version"] == 1
    assert content["settings"] == SETTINGS


def test_a_retry_keeps_the_old_record_and_the_newest_counts(tmp_path):
    store = Store(tmp_path)
    for status in ("failed", "diverged", "complete"):
        store.add(record(status=status))
    assert sorted(p.name for p in (tmp_path / "records").iterdir()) == [
        "run.json",
        "run.retry-1.json",
        "run.retry-2.json",
    ]
    assert store.runs()["run"].record.status == "complete"


def test_scores_count_for_the_record_that_they_belong_to(tmp_path):
    store = Store(tmp_path)
    store.add(record(metrics={"sc": value(0.1)}))
    sha256 = store.runs()["run"].sha256
    store.add_scores(ScoreRecord(key="run", record_sha256=sha256, metrics={"db": value(2)}))
    store.add_scores(ScoreRecord(key="run", record_sha256=sha256, metrics={"db": value(3)}))
    store.add_scores(ScoreRecord(key="run", record_sha256="another", metrics={"db": value(4)}))
    metrics = store.runs()["run"].metrics
    assert {name: metric.value for name, metric in metrics.items()} == {"sc": 0.1, "db": 3}


def test_a_missing_metric_does_not_replace_a_value(tmp_path):
    store = Store(tmp_path)
    store.add(record(metrics={"sc": value(0.1), "db": MetricValue(missing="first reason")}))
    sha256 = store.runs()["run"].sha256
    nothing = {name: MetricValue(missing="second reason") for name in ("sc", "db", "fid")}
    store.add_scores(ScoreRecord(key="run", record_sha256=sha256, metrics=nothing))
    metrics = store.runs()["run"].metrics
    assert metrics["sc"] == value(0.1)
    assert metrics["db"].missing == metrics["fid"].missing == "second reason"


def test_a_metric_has_either_a_value_or_a_reason():
    assert MetricValue.of(float("nan"), {}, 0).missing == "the value is nan"
    with pytest.raises(ValueError, match="either a value or a reason"):
        MetricValue()
    with pytest.raises(ValueError, match="either a value or a reason"):
        MetricValue(value=1, missing="why")


def test_an_error_message_that_does_not_decode_can_be_recorded(tmp_path):
    odd = os.fsdecode(b"no such file: \xff")
    written = record(error=odd, metrics={"sc": MetricValue(missing=odd)})
    Store(tmp_path).add(written)
    assert Store(tmp_path).runs()["run"].record == written
    assert written.error == r"no such file: \udcff"


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-20],
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: raw.replace(b'"seed": 0', b'"seed": 1'),
        lambda raw: b'{"not": "a record"}\n',
    ],
)
def test_a_truncated_or_edited_record_is_an_error_that_names_it(tmp_path, damage):
    store = Store(tmp_path)
    store.add(record())
    path = tmp_path / "records" / "run.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match=r"run\.json: truncated or edited"):
        store.runs()


def test_a_record_of_an_unknown_schema_version_is_an_error_that_names_it(tmp_path):
    Store(tmp_path).add(record().model_copy(update={"schema_version": 99}))
    with pytest.raises(StoreError, match=r"run\.json.*schema_version"):
        Store(tmp_path).runs()


@pytest.mark.parametrize("path", sorted(OLD_RECORDS.glob("*.json")), ids=lambda p: p.stem)
def test_records_of_every_older_schema_version_stay_readable(tmp_path, path):
    (tmp_path / "records").mkdir()
    key = json.loads(path.read_text())["content"]["key"]
    (tmp_path / "records" / f"{key}.json").write_bytes(path.read_bytes())
    (run,) = Store(tmp_path).runs().values()
    assert run.record.status == "complete"
    assert run.metrics["sc"].value is not None


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    # Root may write anywhere, so a file takes the place of the folder.
    (tmp_path / "blocked").write_text("")
    with pytest.raises(StoreError, match=r"blocked.*cannot be written"):
        Store(tmp_path / "blocked").add(record())
    assert [path.name for path in tmp_path.iterdir()] == ["blocked"]


def test_an_unreadable_file_is_an_error_that_names_it(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.add(record())
    run = store.runs()["run"]
    store.add_scores(ScoreRecord(key="run", record_sha256=run.sha256, metrics={}))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(LocalFiles, "read", refuse)
    for read in (
        store.runs,
        store.repair,
        lambda: store.score_record("run.scores-1.json"),
    ):
        with pytest.raises(StoreError, match=r"run.*\.json: cannot be read: Permission denied"):
            read()
    (tmp_path / "controls").mkdir()
    (tmp_path / "controls" / "c.json").write_text("")
    with pytest.raises(StoreError, match=r"c\.json: cannot be read: Permission denied"):
        store.controls()
    for folder in ("records", "controls"):
        blocked = tmp_path / "blocked"
        blocked.mkdir(exist_ok=True)
        (blocked / folder).write_text("")
        with pytest.raises(StoreError, match=rf"{folder}: cannot be read: Not a directory"):
            (Store(blocked).controls if folder == "controls" else Store(blocked).runs)()


def test_artifacts_are_replaced_completely_or_not_at_all(tmp_path):
    store = Store(tmp_path)
    with store.replacing_artifacts("run") as folder:
        (folder / "weights").write_text("first")
    with pytest.raises(ZeroDivisionError), store.replacing_artifacts("run") as folder:
        (folder / "weights").write_text("second")
        raise ZeroDivisionError
    assert (store.artifact_folder("run") / "weights").read_text() == "first"
    assert [p.name for p in (tmp_path / "artifacts").iterdir()] == ["run"]


# Forks a process per delay, kills it that long after its first record, and prints what it wrote.
WRITER = """
import json, os, signal, sys, time
from pathlib import Path
from hgmvae_bench.storage.schema import Record
from hgmvae_bench.storage.store import Store
settings = {"dataset": {"name": "digits", "image_size": 32}, "model": {"name": "vae"},
            "latent_dim": 8, "network": {}, "training": {"x": "y" * 20_000}}
written = {}
for milliseconds in map(int, sys.argv[2:]):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        store = Store(Path(sys.argv[1]) / str(milliseconds))
        for i in range(100_000):
            store.add(Record(key=f"run{i}", cell="c", seed=i, settings=settings,
                             data_digest="d", status="complete"))
            os.write(writer, b"run%d\\n" % i)
    os.close(writer)
    with os.fdopen(reader) as output:
        first = output.readline()
        time.sleep(milliseconds / 1000)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        written[milliseconds] = [first.strip(), *output.read().split()]
print(json.dumps(written))
"""


def test_kill_9_while_writing_loses_no_record_that_was_written(tmp_path):
    delays = ["3", "11", "23", "41", "67"]
    command = [sys.executable, "-c", WRITER, tmp_path, *delays]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    written = json.loads(output)
    assert list(written) == delays
    for milliseconds, keys in written.items():
        store = Store(tmp_path / milliseconds)
        assert keys[0] == "run0"
        assert set(keys) <= set(store.runs())
        store.remove_temporaries()
        assert not list((store.root / "records").glob(".*"))


def test_repair_moves_damaged_files_aside_and_no_others(tmp_path):
    store = Store(tmp_path)
    for key in ("whole", "cut", "newer"):
        store.add(record(key=key, **({"seed": 3} if key == "cut" else {})))
    cut = tmp_path / "records" / "cut.json"
    cut.write_bytes(cut.read_bytes()[:-30])
    (tmp_path / "records" / "notes.txt").write_text("mine")
    assert sorted(path.name for path in store.repair()) == ["cut.json", "notes.txt"]
    assert set(store.runs()) == {"whole", "newer"}
    assert (tmp_path / "damaged" / "records" / "notes.txt").read_text() == "mine"
    # A second repair keeps the file that was moved first.
    store.add(record(key="cut"))
    cut.write_bytes(b"")
    assert store.repair() == [tmp_path / "damaged" / "records" / "cut.json.1"]
    assert (tmp_path / "damaged" / "records" / "cut.json").stat().st_size > 0


def test_repair_moves_all_records_of_a_run_whose_newest_is_damaged(tmp_path):
    store = Store(tmp_path)
    for key in ("again", "scored", "retried"):
        store.add(record(key=key, status="failed"))
        store.add(record(key=key))
        sha256 = store.runs()[key].sha256
        store.add_scores(ScoreRecord(key=key, record_sha256=sha256, metrics={"db": value(2)}))
    damaged = ["again.retry-1.json", "scored.scores-1.json", "retried.json"]
    for name in damaged:
        path = tmp_path / "records" / name
        path.write_bytes(path.read_bytes()[:-9])
    moved = [path.name for path in store.repair()]
    assert sorted(moved) == sorted([*damaged, "again.json", "again.scores-1.json"])
    # The damaged record is moved last, so that an interrupted repair finds it again.
    assert moved.index("again.retry-1.json") > moved.index("again.json")
    runs = store.runs()
    assert {key: run.record.status for key, run in runs.items()} == {
        "scored": "complete",
        "retried": "complete",
    }
    assert dict(runs["scored"].metrics) == {}
    assert runs["retried"].metrics["db"] == value(2)


def test_repair_keeps_records_of_another_version(tmp_path):
    Store(tmp_path).add(record().model_copy(update={"schema_version": 99}))
    assert Store(tmp_path).repair() == []
    with pytest.raises(StoreError) as caught:
        Store(tmp_path).runs()
    assert "--repair" not in str(caught.value)


def test_one_error_names_every_damaged_record(tmp_path):
    for key in ("a", "b", "c"):
        Store(tmp_path).add(record(key=key))
        (tmp_path / "records" / f"{key}.json").write_text("{}")
    with pytest.raises(StoreError, match=r"(?s)(\.json: truncated.*){3}--repair"):
        Store(tmp_path).runs()


def test_a_renamed_record_does_not_count_for_another_run(tmp_path):
    Store(tmp_path).add(record(key="a_s0"))
    (tmp_path / "records" / "a_s0.json").rename(tmp_path / "records" / "a_s1.json")
    with pytest.raises(StoreError, match=r"a_s1\.json.*a_s0"):
        Store(tmp_path).runs()


def test_the_first_of_two_processes_records_a_run(tmp_path):
    store = Store(tmp_path)
    assert store.add(record(seed=1), number=0)
    assert not store.add(record(seed=2), number=0)
    assert store.runs()["run"].record.seed == 1
    assert store.add(record(seed=2), number=1)
    assert store.runs()["run"].record.seed == 2
    assert list((tmp_path / "records").glob(".*")) == []


def test_artifacts_belong_to_the_record_that_was_written(tmp_path, monkeypatch):
    store = Store(tmp_path)
    assert store.add(record(), 0, {"weights": b"first"})
    assert not store.add(record(), 0, {"weights": b"second"})
    assert (store.artifact_folder("run") / "weights").read_bytes() == b"first"
    # The other process records the run after this one has checked.
    monkeypatch.setattr(Store, "has_record_file", lambda self, name: False)
    assert not store.add(record(), 0, {"weights": b"second"})
    assert not store.artifact_folder("run").exists()
    assert store.add(record(), 1, {"weights": b"again"})
    assert (store.artifact_folder("run") / "weights").read_bytes() == b"again"


def test_temporary_files_of_live_processes_are_kept(tmp_path):
    ours, theirs = Store(tmp_path, "ours"), Store(tmp_path, "theirs")
    with theirs.replacing_artifacts("run") as folder:
        (folder / "weights").write_text("half")
        ours.remove_temporaries(living={"theirs"})
        assert folder.is_dir()
    with theirs.files.temporary_file(tmp_path / "records" / "x", b"half") as temporary:
        ours.remove_temporaries(living=set())
        assert not temporary.exists()


@pytest.mark.parametrize("operation", ["write", "create"])
def test_a_write_is_repeated_if_another_process_removes_its_temporary_file(
    tmp_path, monkeypatch, operation
):
    files, sweeps = LocalFiles(tmp_path, "new"), iter([True, True, False])
    synchronised = os.fsync

    def sweep(handle):
        if next(sweeps, False):
            LocalFiles(tmp_path).remove_temporaries("leases", living=set())
        synchronised(handle)

    monkeypatch.setattr(os, "fsync", sweep)
    getattr(files, operation)("leases/new.alive", b"whole")
    assert list(sweeps) == []
    assert [path.name for path in (tmp_path / "leases").iterdir()] == ["new.alive"]
    assert files.read("leases/new.alive") == b"whole"


def test_a_write_fails_if_its_temporary_file_is_removed_every_time(tmp_path, monkeypatch):
    files = LocalFiles(tmp_path, "new")
    monkeypatch.setattr(
        os, "fsync", lambda _: LocalFiles(tmp_path).remove_temporaries("leases", living=set())
    )
    with pytest.raises(FileNotFoundError):
        files.write("leases/new.alive", b"whole")
    assert list((tmp_path / "leases").iterdir()) == []


def test_written_files_have_the_usual_permissions(tmp_path):
    write_atomically(tmp_path / "written", b"")
    (tmp_path / "other").write_bytes(b"")
    modes = {name: (tmp_path / name).stat().st_mode for name in ("written", "other")}
    assert modes["written"] == modes["other"]


def test_an_unsuccessful_run_names_its_log_if_that_can_be_read(tmp_path):
    store = Store(tmp_path)
    store.add(record(status="failed", error="no inverse"))
    assert store.runs()["run"].log is None
    store.log_path("run").parent.mkdir()
    store.log_path("run").write_text("Traceback")
    assert store.runs()["run"].log == "logs/run.log"
    store.log_path("run").unlink()
    store.log_path("run").parent.rmdir()
    store.log_path("run").parent.write_text("a file in the place of the folder")
    assert store.runs()["run"].log is None
