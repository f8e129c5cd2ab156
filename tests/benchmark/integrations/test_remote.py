"""Remote results on moto's S3 server on loopback and in fsspec's memory file system."""

import dataclasses
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile

from hgmvae_bench.grid import Run
from hgmvae_bench.storage.remote import RemoteError, RemoteResults, is_url, local_copy
from hgmvae_bench.storage.schema import Record
from hgmvae_bench.storage.store import Store


@pytest.fixture(scope="module")
def s3():
    """URL of an S3 server with a bucket; the environment variables point to it."""
    moto = pytest.importorskip("moto.server", reason="moto's server is not installed")
    s3fs = pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["s3://bucket", "memory://bucket"])
def url(request, tmp_path):
    """URL of an empty remote folder."""
    if request.param.startswith("s3"):
        request.getfixturevalue("s3")
    return f"{request.param}/{tmp_path.name}"


def machine(url, folder):
    """Remote results of one machine with its own local copy."""
    return RemoteResults(url, folder)


def record(tiny_grid, seed, **content):
    run = Run(next(iter(tiny_grid.cells)), seed, "digest")
    return Record.of(run, status="complete", **content)


def add(store, record, weights=b"weights"):
    with store.replacing_artifacts(record.key) as folder:
        (folder / "model.safetensors").write_bytes(weights)
    store.add(record)


def objects(url):
    fs, base = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return {path.removeprefix(f"{base}/"): fs.cat_file(path) for path in fs.find(base)}


def test_urls_are_distinguished_from_folders():
    assert is_url("s3://bucket/results")
    assert not is_url("results/local")


def test_objects_outside_the_folders_of_results_are_not_downloaded(tmp_path):
    url = f"memory://bucket/{tmp_path.name}"
    fs, base = fsspec.core.url_to_fs(url)
    for name in ("records/../../outside.txt", "records-old/x.json", "notes.txt", "records/a.json"):
        fs.store[f"{base}/{name}"] = MemoryFile(fs, f"{base}/{name}", b"content")
    machine(url, tmp_path / "copies" / "here").pull()
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["here"]
    files = {path.name for path in (tmp_path / "copies").rglob("*") if path.is_file()}
    assert files == {"a.json", "remote.url", "remote.json"}


def test_another_machine_reads_what_one_has_uploaded(url, tiny_grid, tmp_path):
    here, there = machine(url, tmp_path / "here"), machine(url, tmp_path / "there")
    here.pull()
    written = record(tiny_grid, 0)
    add(Store(here.root), written)
    Store(here.root).add_grid(tiny_grid)
    (here.root / "cache").mkdir(exist_ok=True)
    (here.root / "cache" / "large").write_bytes(b"not uploaded")
    here.push()
    assert set(objects(url)) == {
        f"records/{written.key}.json",
        f"artifacts/{written.key}/model.safetensors",
        "grids/tiny.yaml",
    }

    there.pull()
    store = Store(there.root)
    assert store.runs()[written.key].record == written
    assert store.grid().spec.name == "tiny"
    # Weights are downloaded only when they are needed.
    assert not (there.root / "artifacts").exists()
    weights = store.fetch_artifacts(written.key) / "model.safetensors"
    assert weights.read_bytes() == b"weights"


def test_the_first_upload_of_a_run_counts_for_both_machines(url, tiny_grid, tmp_path):
    first, second = machine(url, tmp_path / "first"), machine(url, tmp_path / "second")
    first.pull()
    second.pull()
    add(Store(first.root), record(tiny_grid, 0, n_parameters=1), b"first")
    add(Store(second.root), record(tiny_grid, 0, n_parameters=2), b"second")
    # The second machine has listed the files before the first uploads.
    assert second.remote_files == set()
    first.push_records()
    second.push_records()
    for one in (first, second):
        ((key, run),) = Store(one.root).runs().items()
        assert run.record.n_parameters == 1
        # The weights belong to the record that counts.
        assert (Store(one.root).fetch_artifacts(key) / "model.safetensors").read_bytes() == b"first"
    assert objects(url)[f"artifacts/{key}/model.safetensors"] == b"first"
    third = machine(url, tmp_path / "third")
    third.pull()
    assert len(Store(third.root).runs()) == 1


def test_a_record_is_uploaded_after_its_artifacts(tiny_grid, tmp_path, monkeypatch):
    url = "memory://order"
    remote = machine(url, tmp_path)
    remote.pull()
    written = record(tiny_grid, 0)
    add(Store(remote.root), written)
    fs, _ = fsspec.core.url_to_fs(url)
    order = []
    pipe = type(fs).pipe_file
    monkeypatch.setattr(
        type(fs),
        "pipe_file",
        lambda self, path, *a, **k: (order.append(path), pipe(self, path, *a, **k)),
    )
    remote.push()
    assert [path.rpartition("/")[2] for path in order] == [
        "model.safetensors",
        f"{written.key}.json",
    ]


def test_a_key_with_a_dot_is_uploaded_completely(url, tiny_grid, tmp_path):
    cell = dataclasses.replace(next(iter(tiny_grid.cells)), dataset="folder:/images/v1.2")
    here, there = machine(url, tmp_path / "here"), machine(url, tmp_path / "there")
    here.pull()
    written = Record.of(Run(cell, 0, "digest"), status="complete")
    add(Store(here.root), written)
    (here.root / "records" / "notes.txt").write_text("no record")
    here.push()
    assert set(objects(url)) == {
        f"records/{written.key}.json",
        f"artifacts/{written.key}/model.safetensors",
    }
    there.pull()
    weights = Store(there.root).fetch_artifacts(written.key) / "model.safetensors"
    assert weights.read_bytes() == b"weights"


def test_the_next_command_uploads_what_could_not_be_uploaded(tiny_grid, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    url = "memory://refused"
    fs, _ = fsspec.core.url_to_fs(url)

    def refuse(*_, **__):
        raise PermissionError("read only")

    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "pipe_file", refuse)
        with (
            pytest.raises(RemoteError, match="next command uploads"),
            local_copy(url) as root,
        ):
            add(Store(root), record(tiny_grid, 0))
    assert not fs.exists("/refused/records")
    with local_copy(url):
        pass
    assert len(fs.find("/refused/records")) == 1


def test_local_changes_that_were_not_uploaded_are_kept_and_uploaded(url, tmp_path):
    here, there = machine(url, tmp_path / "here"), machine(url, tmp_path / "there")
    table, log = Path("tables/tiny/table-1.csv"), Path("logs/run.log")

    def write(one, path, text):
        (one.root / path).parent.mkdir(parents=True, exist_ok=True)
        (one.root / path).write_text(text)

    here.pull()
    write(here, table, "first")
    here.push()
    # The next changes are not uploaded; another machine synchronizes and changes nothing.
    write(here, table, "second")
    write(here, log, "a word")
    there.pull()
    there.push()
    assert objects(url) == {table.as_posix(): b"first"}
    # The next command uploads them.
    again = machine(url, here.root)
    again.pull()
    assert (here.root / table).read_text() == "second"
    again.push()
    assert objects(url) == {table.as_posix(): b"second", log.as_posix(): b"a word"}
    # A synchronized local file is replaced by a newer remote one.
    there.pull()
    write(there, table, "third")
    there.push()
    again.pull()
    assert (here.root / table).read_text() == "third"


def test_a_damaged_object_is_an_error_that_names_it(url, tiny_grid, tmp_path):
    here = machine(url, tmp_path / "here")
    here.pull()
    written = record(tiny_grid, 0)
    add(Store(here.root), written)
    here.push()
    fs, base = fsspec.core.url_to_fs(url)
    path = f"{base}/records/{written.key}.json"
    fs.pipe_file(path, fs.cat_file(path)[:-20])
    there = machine(url, tmp_path / "there")
    there.pull()
    with pytest.raises(Exception, match=f"{written.key}.json: truncated or edited"):
        Store(there.root).runs()


def test_an_unknown_url_scheme_is_an_error_that_names_it():
    with pytest.raises(RemoteError, match="nowhere://x: ValueError: Protocol not known"):
        RemoteResults.at("nowhere://x").pull()


@pytest.mark.slow
def test_a_grid_runs_into_a_bucket_and_continues_on_another_machine(s3, cli, tiny_text, tmp_path):
    def on_machine(home, *arguments):
        fsspec.core.url_to_fs("s3://bucket")[0].invalidate_cache()
        home = str(tmp_path / home)
        place = ("--results", "s3://bucket/grid")
        return cli(*arguments, *place, cwd=tmp_path, XDG_CACHE_HOME=home)

    (tmp_path / "tiny.yaml").write_text(tiny_text)
    grid = ("run", "--grid", "tiny.yaml", "--model", "vae", "--workers", 1)
    done = on_machine("one", *grid)
    assert done.exit_status == 0, done.stderr + done.stdout
    names = objects("s3://bucket/grid")
    assert sum(name.startswith("records/") for name in names) == 2
    assert sum(name.startswith("artifacts/") for name in names) == 4
    assert "tables/tiny/table-1.csv" in names

    again = on_machine("two", "evaluate", "--metrics", "nmi", "--workers", 1)
    assert again.exit_status == 0, again.stderr + again.stdout
    scores = [name for name in objects("s3://bucket/grid") if ".scores-1" in name]
    assert sum(name.startswith("records/") for name in scores) == 2
    table = on_machine("one", "table", 1)
    assert table.exit_status == 0, table.stderr
    assert "Clustering" in table.stdout
