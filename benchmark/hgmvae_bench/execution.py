"""One run from settings to record: build, train, keep, score."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hgmvae_bench.artifacts import load_weights, save_codes, save_weights
from hgmvae_bench.data import ImageData
from hgmvae_bench.data.catalogue import resolve_dataset
from hgmvae_bench.evaluation import score
from hgmvae_bench.grid import Cell, Run
from hgmvae_bench.networks import Network, parameter_count
from hgmvae_bench.outputs import ModelCodec, Outputs
from hgmvae_bench.plugins import MODELS, BenchmarkModel, PluginError
from hgmvae_bench.provenance import provenance
from hgmvae_bench.records import MetricValue, Record, ScoreRecord, Status
from hgmvae_bench.seeding import derive_seed
from hgmvae_bench.store import Store, StoredRun
from hgmvae_bench.training import OnEpoch, train


@dataclass
class _Stopwatch:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = time.perf_counter() - start


def build_model(cell: Cell, input_dim: tuple[int, int, int]) -> BenchmarkModel:
    """Build a cell's model with parameters drawn from torch's global generator.

    Raises:
        ValueError: if the images or a setting do not fit the model.
        PluginError: if what the plug-in builds is not a model of the suite.
    """
    model = MODELS[cell.model].build(
        input_dim=input_dim,
        latent_dim=cell.latent_dim,
        reconstruction_loss=resolve_dataset(cell.dataset).reconstruction_loss,
        network=Network(input_dim, cell.network.width),
        settings=cell.model_settings,
    )
    # Not isinstance: a protocol looks attributes up statically, and torch keeps modules elsewhere.
    members = {*BenchmarkModel.__annotations__, *vars(BenchmarkModel)}
    lacking = [m for m in sorted(members) if not m.startswith("_") and not hasattr(model, m)]
    if lacking:
        raise PluginError(
            f"the model '{cell.model}' builds a {type(model).__name__} without "
            f"{', '.join(lacking)}; see hgmvae_bench.plugins.BenchmarkModel"
        )
    return model


def execute(
    run: Run,
    data: ImageData,
    metrics: Sequence[str],
    *,
    store: Store,
    device: torch.device,
    weights: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> Record:
    """Do one run and store what it leaves; its record, which is written last, is returned.

    Whatever goes wrong inside the run becomes its status: ``diverged`` or ``failed``, with the
    reason.

    Raises:
        hgmvae_bench.store.StoreError: if the results folder cannot be written.
    """
    stopwatch = _Stopwatch()
    status: Status = "complete"
    error: str | None = None
    values: dict[str, MetricValue] = {}
    history: dict[str, list[float]] = {}
    n_parameters = 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(run.key, "training"))
        try:
            model = build_model(run.cell, data.input_dim)
            model.to(device)
            n_parameters = parameter_count(model.parameters())
            training = run.cell.training
            with stopwatch("training"):
                result = train(
                    model,
                    data.first_train_images(training.train_images).train_images,
                    training,
                    batch_seed=derive_seed(run.key, "batches"),
                    device=device,
                    on_epoch=on_epoch,
                )
            history = result.history
            if result.divergence is not None:
                status, error = "diverged", result.divergence
            else:
                outputs = _outputs(run, model, data, store, device, weights)
                with store.writing_artifacts(run.key) as folder, stopwatch("encoding"):
                    save_weights(model, folder)
                    save_codes(outputs, folder)
                with stopwatch("scoring"):
                    values = score(outputs, metrics)
        except Exception:
            status, error = "failed", traceback.format_exc()
    record = Record.of(
        run,
        status=status,
        error=error,
        metrics=values,
        history=history,
        n_parameters=n_parameters,
        seconds=stopwatch.seconds,
        provenance=provenance(device),
    )
    store.add(record)
    return record


def rescore(
    stored: StoredRun,
    run: Run,
    data: ImageData,
    metrics: Sequence[str],
    *,
    store: Store,
    device: torch.device,
    weights: Path | None = None,
) -> ScoreRecord:
    """Compute metrics of a finished run from the weights that it left, and store them.

    Raises:
        hgmvae_bench.artifacts.ArtifactError: if the weights cannot be read.
        hgmvae_bench.store.StoreError: if the results folder cannot be written.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model = build_model(run.cell, data.input_dim)
        load_weights(model, store.artifacts(run.key))
        model.to(device)
        values = score(_outputs(run, model, data, store, device, weights), metrics)
    record = ScoreRecord(
        key=run.key, record_sha256=stored.sha256, metrics=values, provenance=provenance(device)
    )
    store.add_scores(record)
    return record


def _outputs(
    run: Run,
    model: BenchmarkModel,
    data: ImageData,
    store: Store,
    device: torch.device,
    weights: Path | None,
) -> Outputs:
    return Outputs(
        codec=ModelCodec(model, device),
        data=data.first_train_images(run.cell.training.train_images),
        dataset=run.cell.dataset,
        identity=run.key,
        device=device,
        weights=weights,
        cache=store.root / "cache",
    )
