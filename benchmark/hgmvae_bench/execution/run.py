"""One run from settings to record: build, train, keep, score; or only the training of several."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hgmvae_bench.data import ImageData
from hgmvae_bench.evaluation.outputs import ModelCodec, RunOutputs
from hgmvae_bench.evaluation.restore import restore_codec
from hgmvae_bench.evaluation.scoring import score
from hgmvae_bench.execution.resource_meter import Meter, share
from hgmvae_bench.execution.tasks import Task
from hgmvae_bench.grid import Run
from hgmvae_bench.plugins.protocols import BenchmarkModel, MetricMissingError
from hgmvae_bench.storage.artifacts import artifact_files
from hgmvae_bench.storage.provenance import collect_provenance
from hgmvae_bench.storage.schema import MetricValue, Record, ScoreRecord, Status
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.training.build import build_model
from hgmvae_bench.training.checkpoints import Checkpoint
from hgmvae_bench.training.loop import EpochCallback, SeededModel, save_trained, train
from hgmvae_bench.training.network.encoders import parameter_count
from hgmvae_bench.training.precision import tf32
from hgmvae_bench.training.rng import RunRNG
from hgmvae_bench.utils.seeding import derive_seed


class TogetherError(RuntimeError):
    """A training of several seeds that failed; each by itself shows which of them is at fault."""


class RecordedElsewhereError(RuntimeError):
    """A run, or metrics of one, that another process has recorded first; its record stands."""


def perform(
    task: Task,
    data: ImageData,
    *,
    store: Store,
    device: torch.device,
    weights: Path | None = None,
    context: Mapping[str, Any] | None = None,
    on_epoch: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Record | ScoreRecord:
    """Do one task, whichever kind it is; arguments and errors as in `execute` and `rescore`."""
    do: Callable[..., Record | ScoreRecord] = (
        partial(execute, task.run, on_epoch=on_epoch)
        if task.stored is None
        else partial(rescore, task.stored, task.run)
    )
    return do(
        data,
        task.metrics,
        store=store,
        device=device,
        weights=weights,
        number=task.number,
        context=context,
    )


def train_together(
    runs: Sequence[Run],
    data: ImageData,
    *,
    store: Store,
    device: torch.device,
    stacked: bool = False,
    on_epoch: EpochCallback | None = None,
) -> None:
    """Train several seeds of a cell at once, and leave each in its checkpoint.

    `execute` finds it there: the rest of the run, its record too, is as if it had been trained
    alone. It need not be the same process, nor the same start of the grid.

    Args:
        runs: seeds of one cell.
        data: its dataset.
        store: where the checkpoints go.
        device: where to train.
        stacked: whether as one model of stacked weights, as `loop.train` says.
        on_epoch: called after every epoch of a run with its index, the epoch's number and the mean
            of every loss term.

    Raises:
        TogetherError: if anything goes wrong but the loss of a run, which only ends that run.
        torch.OutOfMemoryError: if the GPU's memory does not suffice.
    """
    training = runs[0].cell.training
    meter = Meter(device)
    try:
        seeded = [_seeded(run, data, store, device) for run in runs]
        with meter("training"):
            results = train(
                seeded,
                data.first_train_images(training.train_images).train_images,
                training,
                device=device,
                stacked=stacked,
                on_epoch=on_epoch,
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise TogetherError(f"{type(error).__name__}: {error}") from error
    trained = [(one, r) for one, r in zip(seeded, results, strict=True) if r.cost is None]
    for one, result in trained:
        cost = share(meter.stages["training"], len(trained))
        save_trained(one, result, cost | {"stacked": result.stacked})


@tf32(enabled=False)  # Training puts it to use where the settings ask for it.
def execute(
    run: Run,
    data: ImageData,
    metrics: Sequence[str],
    *,
    store: Store,
    device: torch.device,
    weights: Path | None = None,
    number: int | None = None,
    context: Mapping[str, Any] | None = None,
    on_epoch: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Record:
    """Do one run and store what it leaves; its record, which is written last, is returned.

    A training that an earlier call or `train_together` left in the checkpoint is taken up. Whatever
    goes wrong inside the run becomes its status: ``diverged`` or ``failed``, with the reason.

    Args:
        run: what to train.
        data: its dataset.
        metrics: what to compute.
        store: where everything goes.
        device: where to compute.
        weights: folder of pretrained weights for metrics, if any.
        number: of the record, in its name; the first that is free if not given.
        context: what the provenance says of the grid.
        on_epoch: called after every epoch with its number and the mean of every loss term.

    Raises:
        RecordedElsewhereError: if another process has recorded the run meanwhile.
        hgmvae_bench.storage.store.StoreError: if the results folder cannot be written.
        torch.OutOfMemoryError: if the GPU's memory does not suffice.
    """
    meter = Meter(device)
    status: Status = "complete"
    error: str | None = None
    values: dict[str, MetricValue] = {}
    history: dict[str, list[float]] = {}
    artifacts: dict[str, bytes] = {}
    n_parameters = 0
    resumed_after = 0
    try:
        seeded = _seeded(run, data, store, device)
        n_parameters = parameter_count(seeded.model.parameters())
        training = run.cell.training
        with meter("training"):
            [result] = train(
                [seeded],
                data.first_train_images(training.train_images).train_images,
                training,
                device=device,
                on_epoch=on_epoch and (lambda _, epoch, terms: on_epoch(epoch, terms)),
            )
        if result.cost is not None:
            meter.stages["training"] = dict(result.cost)
        history, resumed_after = result.history, result.resumed_after
        if result.divergence is not None:
            status, error = "diverged", result.divergence
        else:
            outputs = _outputs(run, seeded.model, data, store, device, weights)
            with meter("encoding"):
                artifacts = artifact_files(seeded.model, outputs.test_codes)
            with meter("scoring"):
                values = score(outputs, metrics)
    except torch.OutOfMemoryError:
        raise  # Not the run's fault.
    except MetricMissingError as reason:  # Of finite weights that overflow.
        status, error = "diverged", f"after training: {reason}"
    except Exception:
        status, error = "failed", traceback.format_exc()
    record = Record.of(
        run,
        status=status,
        error=error,
        metrics=values,
        history=history,
        n_parameters=n_parameters,
        seconds=meter.seconds,
        provenance={
            **collect_provenance(device),
            "stages": meter.stages,
            "resumed_after_epoch": resumed_after,
            **(context or {}),
        },
    )
    added = store.add(record, number, artifacts)
    Checkpoint(store.files, run.key).remove()
    if not added:
        raise RecordedElsewhereError(run.key)
    return record


def _seeded(run: Run, data: ImageData, store: Store, device: torch.device) -> SeededModel:
    """A run's model as it is before training, and what decides its training."""
    rng = RunRNG(derive_seed(run.key, "training"), device)
    with rng.activate():
        model = build_model(run.cell, data.input_dim)
    model.to(device)
    checkpoint = Checkpoint(store.files, run.key, device.type)
    return SeededModel(model, derive_seed(run.key, "batches"), rng, checkpoint)


def rescore(
    stored: StoredRun,
    run: Run,
    data: ImageData,
    metrics: Sequence[str],
    *,
    store: Store,
    device: torch.device,
    weights: Path | None = None,
    number: int | None = None,
    context: Mapping[str, Any] | None = None,
) -> ScoreRecord:
    """Compute metrics of a finished run from the weights that it left, and store them.

    Raises:
        hgmvae_bench.storage.artifacts.ArtifactError: if the weights cannot be read.
        RecordedElsewhereError: if another process has recorded metrics of the run meanwhile.
        hgmvae_bench.storage.store.StoreError: if the results folder cannot be written.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        codec = restore_codec(run, data, store=store, device=device)
        values = score(_outputs(run, codec.model, data, store, device, weights), metrics)
    record = ScoreRecord(
        key=run.key,
        record_sha256=stored.sha256,
        metrics=values,
        provenance=collect_provenance(device) | dict(context or {}),
    )
    if not store.add_scores(record, number):
        raise RecordedElsewhereError(run.key)
    return record


def _outputs(
    run: Run,
    model: BenchmarkModel,
    data: ImageData,
    store: Store,
    device: torch.device,
    weights: Path | None,
) -> RunOutputs:
    return RunOutputs(
        codec=ModelCodec(model, device),
        data=data.first_train_images(run.cell.training.train_images),
        dataset=run.cell.dataset,
        identity=run.key,
        device=device,
        weights=weights,
        cache=store.root / "cache",
    )
