"""Pretrained weights are located, downloaded and verified, and never run code."""

from __future__ import annotations

import functools
import hashlib
import http.server
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hgmvae_bench.evaluation.metrics import weights
from hgmvae_bench.evaluation.metrics.weights import PretrainedWeights
from hgmvae_bench.plugins.protocols import MetricMissingError

real_download = weights.download.__wrapped__


class Bomb:
    """Object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "given" / "net-1234.pth"
    path.parent.mkdir()
    torch.save({"layer.weight": torch.arange(3.0)}, path)
    return path


def published(path: Path, url: str = "https://example.org/net-1234.pth") -> PretrainedWeights:
    return PretrainedWeights("Net", url, hashlib.sha256(path.read_bytes()).hexdigest()[:8])


def test_weights_are_read_from_the_given_folder(file) -> None:
    state = published(file).load(file.parent)
    assert state["layer.weight"].tolist() == [0, 1, 2]


def test_weights_are_read_from_the_cache_of_torch_hub(file, hub, tmp_path) -> None:
    hub.mkdir(parents=True)
    weights_file = published(file)
    file.rename(hub / file.name)
    for folder in (None, tmp_path / "empty"):
        assert weights_file.load(folder).keys() == {"layer.weight"}


def test_missing_file_is_reported_with_its_address_and_target(file, tmp_path, hub) -> None:
    weights_file = published(file)
    with pytest.raises(MetricMissingError) as caught:
        weights_file.load(tmp_path)
    for part in ("net-1234.pth", "https://example.org/net-1234.pth", str(tmp_path), "no network"):
        assert part in str(caught.value)
    with pytest.raises(MetricMissingError, match=str(hub)):
        weights_file.load(None)


@pytest.mark.parametrize("content", [b"", b"something else"], ids=["empty", "other"])
def test_file_with_another_hash_is_refused(file, content) -> None:
    weights_file = published(file)
    file.write_bytes(content)
    with pytest.raises(MetricMissingError, match=f"{file} is not the published file"):
        weights_file.load(file.parent)


def test_code_in_a_file_never_runs(file, tmp_path) -> None:
    """Not even in a file with the right hash: 8 hex digits can be forged."""
    trace = tmp_path / "trace"
    torch.save({"layer.weight": Bomb(trace)}, file)
    with pytest.raises(MetricMissingError, match="does not hold plain weights"):
        published(file).load(file.parent)
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize(
    "content", [pickle.dumps([1], 2), b"no pickle at all"], ids=["list", "text"]
)
def test_file_of_another_format_is_refused(file, content) -> None:
    file.write_bytes(content)
    with pytest.raises(MetricMissingError, match="does not hold"):
        published(file).load(file.parent)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"layer": 3}], ids=["list", "number"])
def test_content_other_than_named_tensors_is_refused(file, content) -> None:
    torch.save(content, file)
    with pytest.raises(MetricMissingError, match="tensors by name"):
        published(file).load(file.parent)


@pytest.fixture
def server(file) -> Iterator[str]:
    """Address of a server of the folder of ``file``."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Write no log."""

    handler = functools.partial(Quiet, directory=str(file.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_missing_file_is_downloaded_to_the_cache(file, hub, server, monkeypatch) -> None:
    monkeypatch.setattr(weights, "download", real_download)
    weights_file = published(file, f"{server}/net-1234.pth")
    assert weights_file.load(None)["layer.weight"].tolist() == [0, 1, 2]
    assert (hub / "net-1234.pth").read_bytes() == file.read_bytes()
    assert [path.name for path in hub.iterdir()] == ["net-1234.pth"]


def test_failed_download_is_reported(file, hub, server, monkeypatch) -> None:
    monkeypatch.setattr(weights, "download", real_download)
    weights_file = published(file, f"{server}/other.pth")
    with pytest.raises(MetricMissingError, match=r"cannot be downloaded \(.*404"):
        weights_file.load(None)


def test_an_unwritable_folder_of_torch_hub_is_reported(file, hub, monkeypatch) -> None:
    monkeypatch.setattr(weights, "download", real_download)
    hub.mkdir(parents=True)
    hub.chmod(0o555)
    with pytest.raises(MetricMissingError, match=rf"\(cannot write {hub}/net-1234.pth"):
        published(file, "https://example.org/net-1234.pth").load(None)


def test_the_reason_names_the_folder_for_a_download_by_hand(file, hub, server, monkeypatch) -> None:
    monkeypatch.setattr(weights, "download", real_download)
    with pytest.raises(MetricMissingError, match=f"into {hub}$"):
        published(file, f"{server}/other.pth").load(None)
    with pytest.raises(MetricMissingError, match=r"into nowhere/weights$"):
        published(file, f"{server}/other.pth").load(Path("nowhere/weights"))
