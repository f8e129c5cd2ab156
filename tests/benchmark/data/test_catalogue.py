from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from hgmvae_bench.cli.data import app
from hgmvae_bench.data import DataError, catalogue
from hgmvae_bench.data.catalogue import check, fetch, resolve_dataset
from hgmvae_bench.data.digits import DIGITS
from hgmvae_bench.plugins.protocols import DatasetPlugin, UnknownNameError
from hgmvae_bench.plugins.registry import Registry


def run(*arguments: str | Path, env: dict[str, str] | None = None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


def test_a_name_without_argument_is_the_registered_one() -> None:
    assert resolve_dataset("digits") is DIGITS


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean mnist"):
        resolve_dataset("mnits")
    with pytest.raises(UnknownNameError, match="did you mean folder"):
        resolve_dataset("folders:x")
    with pytest.raises(ValueError, match="'mnist' takes no argument"):
        resolve_dataset("mnist:1")


class Bare:
    """A third party's dataset with what the protocol asks for and no more."""

    title = "Theirs"
    reference = "Somebody 2020"
    image_size = 8
    channels = 1
    reconstruction_loss = "bce"

    def load(self, root: Path, *, image_size: int):
        if root.name == "empty":
            raise DataError(f"nothing in {root}")
        return DIGITS.load(root, image_size=image_size)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = SimpleNamespace(name="theirs", value="theirs:Bare", load=Bare, dist=None)
    registry = Registry("dataset", "hgmvae_bench.datasets", DatasetPlugin, lambda group: [entry])
    monkeypatch.setattr(catalogue, "DATASETS", registry)


def test_a_plug_in_without_fetch_and_check_is_loaded_to_check_it(
    bare: None, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"Theirs: its plug-in cannot download it.* .Somebody 2020"):
        fetch("theirs", tmp_path)
    assert check("theirs", tmp_path).files[0].detail == "1,797 images load"
    assert not check("theirs", tmp_path / "empty").complete


def test_check_reports_complete_data(tmp_path: Path) -> None:
    result = run("check", "digits", "--data", tmp_path)
    assert result.exit_code == 0
    assert "Digits is complete" in result.output


def test_check_reports_missing_data(tmp_path: Path) -> None:
    result = run("check", "mnist", "--data", tmp_path)
    assert result.exit_code == 1
    assert result.stdout.count("\nmissing") + result.stdout.startswith("missing") == 4
    assert "MNIST is incomplete" in result.output
    assert f"data fetch mnist --data {tmp_path}" in result.output


def test_the_environment_names_the_data_folder(tmp_path: Path) -> None:
    result = run("check", "mnist", env={"HGMVAE_BENCH_DATA": str(tmp_path)})
    assert str(tmp_path / "MNIST") in result.output


def test_the_default_data_folder_is_in_the_user_cache(own_cache: Path) -> None:
    assert str(own_cache / "hgmvae-bench" / "data") in run("check", "mnist").output


@pytest.mark.parametrize(
    "arguments",
    [("check", "mnits"), ("fetch", "mnist:1"), ("check", "folder:x?channels=7"), ("check",)],
)
def test_invalid_arguments_exit_with_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_fetch_keeps_existing_data(tmp_path: Path) -> None:
    result = run("fetch", "digits", "--data", tmp_path)
    assert result.exit_code == 0
    assert result.output.strip() == f"digits is in {tmp_path}"


def test_fetch_without_network_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://nowhere.invalid/"])
    result = run("fetch", "mnist", "--data", tmp_path)
    assert result.exit_code == 1
    assert result.output.strip().count("\n") == 0
    assert "http://nowhere.invalid/train-images-idx3-ubyte.gz" in result.output
    assert isinstance(result.exception, SystemExit)


def test_listing_datasets_imports_nothing_heavy() -> None:
    script = (
        "import sys; import hgmvae_bench.cli.data, hgmvae_bench.data.catalogue\n"
        "from hgmvae_bench.plugins.registry import DATASETS\n"
        "assert len([DATASETS[name].title for name in DATASETS]) >= 7\n"
        "print([m for m in ('torch', 'torchvision', 'numpy', 'PIL', 'sklearn') "
        "if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.parametrize("name", ["digits"])
def test_a_declared_split_size_is_that_of_the_data(name, tmp_path):
    dataset = catalogue.resolve_dataset(name)
    data = dataset.load(tmp_path, image_size=dataset.image_size)
    assert isinstance(dataset, catalogue.HasSplitSizes)
    assert (dataset.n_train_images, dataset.n_test_images) == (
        len(data.train_images),
        len(data.test_images),
    )


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "celeba", "3d-chairs"])
def test_every_dataset_of_the_paper_declares_its_split_sizes(name):
    assert isinstance(catalogue.resolve_dataset(name), catalogue.HasSplitSizes)
