"""Small datasets in the on-disk formats of the originals, and a local HTTP server."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep tests from the cache and the data of the user who runs them."""
    monkeypatch.delenv("HGMVAE_BENCH_CACHE", raising=False)
    monkeypatch.delenv("HGMVAE_BENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    return tmp_path / "user-cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty data folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def paint() -> Callable[..., Path]:
    """Make an image file whose pixels follow from a number."""

    def paint(path: Path, number: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return paint


@pytest.fixture
def celeba(root: Path, paint: Callable[..., Path]) -> Path:
    """Twelve images in CelebA's layout: the first eight train, two validation, two test."""
    folder = root / "celeba"
    names = [f"{number:06}.jpg" for number in range(1, 13)]
    for number, name in enumerate(names):
        paint(folder / "img_align_celeba" / name, number, size=(178, 218))
    splits = [0] * 8 + [1] * 2 + [2] * 2
    (folder / "list_eval_partition.txt").write_text(
        "".join(f"{name} {split}\n" for name, split in zip(names, splits, strict=True))
    )
    attributes = "".join(f"{name}  1 -1\n" for name in names)
    (folder / "list_attr_celeba.txt").write_text(f"12\nBald Smiling \n{attributes}")
    return folder


CHAIR_IDS = [f"{number:032x}" for number in range(0xABC, 0xABC + 10)]


@pytest.fixture
def chairs(root: Path) -> Path:
    """Ten chairs with three views each; the red value of every pixel is the chair's number."""
    folder = root / "rendered_chairs"
    for number, chair in enumerate(CHAIR_IDS):
        renders = folder / chair / "renders"
        renders.mkdir(parents=True)
        for view in range(3):
            name = f"image_{view:03}_p{20 + view % 2 * 10:03}_t{view * 11:03}_r096.png"
            Image.new("RGB", (600, 600), (number, view, 255)).save(renders / name)
    (folder / "all_chair_names.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    return folder


@dataclass
class Server:
    """Content and behaviour of a local HTTP server.

    Attributes:
        files: content by path.
        break_after: number of body bytes after which each of the next connections breaks.
        announces_length: whether answers have a Content-Length.
        n_requests: requests so far.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    break_after: list[int] = field(default_factory=list)
    announces_length: bool = True
    n_requests: int = 0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()
    # pooch waits for seconds before it tries again.
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.n_requests += 1
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            if state.announces_length:
                self.send_header("Content-Length", str(len(content)))
            else:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            end = state.break_after.pop(0) if state.break_after else len(content)
            self.wfile.write(content[:end])
            if end < len(content):
                self.wfile.flush()
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    yield state
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with room for one MB."""
    import subprocess

    folder = tmp_path / "small-disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
