"""Execution of a run in this process: build, train, store the weights, score, record."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from hgmvae_bench.data import ImageData
from hgmvae_bench.evaluation.outputs import ModelCodec, RunOutputs
from hgmvae_bench.evaluation.restore import restore_codec
from hgmvae_bench.evaluation.scoring import score
from hgmvae_bench.execution.resource_meter import ResourceMeter, per_run_share
from hgmvae_bench.execution.tasks import RunContext, Task
from hgmvae_bench.grid import Run
from hgmvae_bench.plugins.protocols import BenchmarkModel, MetricMissingError
from hgmvae_bench.storage.artifacts import ArtifactError, artifact_files
from hgmvae_bench.storage.provenance import collect_provenance
from hgmvae_bench.storage.schema import MetricValue, Record, ScoreRecord, Status
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.training.build import build_model
from hgmvae_bench.training.checkpoints import Checkpoint
from hgmvae_bench.training.loop import EpochCallback, SeededModel, save_trained, train
from hgmvae_bench.training.network.encoders import parameter_count
from hgmvae_bench.training.precision import tf32
from hgmvae_bench.training.rng import RunRNG
from hgmvae_bench.utils.seeding import derive_seed
from hgmvae_bench.utils.text import shorten_message

OnRunEpoch = Callable[[int, Mapping[str, float]], None]
"""Called after every epoch of a run with the epoch's number and the mean of every loss term."""


class JointTrainingError(RuntimeError):
    """A joint training failed. Each of its seeds has to be run separately."""


class AlreadyRecordedError(RuntimeError):
    """Another process has recorded the run, or its metrics, first; that record stays."""


def execute_task(
    task: Task, data: ImageData, context: RunContext, *, on_epoch: OnRunEpoch
) -> Record | ScoreRecord:
    """Train and score a run, or score a finished one; errors as in `execute_run` and `rescore`."""
    if task.stored is not None:
        return rescore(task.stored, task.run, data, task.metrics, context, number=task.number)
    return execute_run(task.run, data, task.metrics, context, number=task.number, on_epoch=on_epoch)


def train_jointly(
    runs: Sequence[Run],
    data: ImageData,
    context: RunContext,
    *,
    on_epoch: EpochCallback | None = None,
) -> None:
    """Train several seeds of a cell in this process and save each as a finished checkpoint.

    `execute_run` continues from there, in any process and in any later start. The record is the
    same as if the seed had been trained separately.

    Args:
        runs: seeds of one cell.
        data: the cell's dataset.
        context: settings that all runs of the grid share; ``stacked`` selects one model of stacked
            weights, as `hgmvae_bench.training.loop.train` describes.
        on_epoch: called after every epoch of a run with the run's index, the epoch's number and the
            mean of every loss term.

    Raises:
        JointTrainingError: if the training fails. A diverged run does not end the others.
        torch.OutOfMemoryError: if the GPU has too little memory.
    """
    training, device = runs[0].cell.training, torch.device(context.device)
    meter = ResourceMeter(device)
    try:
        seeded = [build_seeded_model(run, data, context) for run in runs]
        with meter("training"):
            results = train(
                seeded,
                data.first_train_images(training.train_images).train_images,
                training,
                device=device,
                stacked=context.stacked,
                on_epoch=on_epoch,
            )
    except torch.OutOfMemoryError:
        raise
    except (Exception, SystemExit) as error:
        traceback.print_exc()  # The separate runs may succeed; this keeps the cause in the log.
        reason = shorten_message(f"{type(error).__name__}: {error}")
        raise JointTrainingError(reason) from error
    trained = [(seed, r) for seed, r in zip(seeded, results, strict=True) if r.cost is None]
    for seed, result in trained:
        cost = per_run_share(meter.stages["training"], len(trained))
        save_trained(seed, result, cost | {"stacked": result.stacked})


@dataclass
class _Outcome:
    """Result of a run, filled in stage by stage.

    Attributes:
        status: outcome of the run.
        error: the reason, unless it is complete.
    """

    status: Status = "complete"
    error: str | None = None
    metrics: dict[str, MetricValue] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    n_parameters: int = 0
    resumed_after: int = 0


@tf32(enabled=False)  # The training enables it where the settings ask for it.
def execute_run(
    run: Run,
    data: ImageData,
    metrics: Sequence[str],
    context: RunContext,
    *,
    number: int = 0,
    on_epoch: OnRunEpoch | None = None,
) -> Record:
    """Train and score a run, store its artifacts, and store its record last.

    The training continues from the checkpoint that an earlier call or `train_jointly` left. An
    error inside the run becomes its status, ``diverged`` or ``failed``, with the reason.

    Args:
        run: the run.
        data: its dataset.
        metrics: names of the metrics to compute.
        context: settings that all runs of the grid share.
        number: number in the record's name; 0 for a run's first record.
        on_epoch: called after every epoch with its number and the mean of every loss term.

    Raises:
        AlreadyRecordedError: if another process has recorded the run meanwhile.
        hgmvae_bench.storage.store.StoreError: if the results folder cannot be written.
        torch.OutOfMemoryError: if the GPU has too little memory.
    """
    store, device = context.store, torch.device(context.device)
    meter, outcome = ResourceMeter(device), _Outcome()
    try:
        _train_and_score(run, data, metrics, context, meter, outcome, on_epoch)
    except torch.OutOfMemoryError:
        raise  # Other runs use the same memory: the run is repeated with fewer of them.
    except MetricMissingError as reason:  # The weights are finite, but the codes overflow.
        outcome.status, outcome.error = "diverged", f"after training: {reason}"
    except (Exception, SystemExit):  # A model may call sys.exit.
        outcome.status, outcome.error = "failed", shorten_message(traceback.format_exc())
    record = Record.of(
        run,
        status=outcome.status,
        error=outcome.error,
        metrics=outcome.metrics,
        history=outcome.history,
        n_parameters=outcome.n_parameters,
        seconds=meter.seconds,
        provenance={
            **collect_provenance(device),
            "stages": meter.stages,
            "resumed_after_epoch": outcome.resumed_after,
            **context.provenance,
        },
    )
    added = store.add(record, number, outcome.artifacts)
    Checkpoint(store.files, run.key).remove()
    if not added:
        raise AlreadyRecordedError(run.key)
    return record


def _train_and_score(
    run: Run,
    data: ImageData,
    metrics: Sequence[str],
    context: RunContext,
    meter: ResourceMeter,
    outcome: _Outcome,
    on_epoch: OnRunEpoch | None,
) -> None:
    """Train a run and score it; ``outcome`` has the results of every finished stage."""
    seeded = build_seeded_model(run, data, context)
    outcome.n_parameters = parameter_count(seeded.model.parameters())
    training = run.cell.training
    with meter("training"):
        [result] = train(
            [seeded],
            data.first_train_images(training.train_images).train_images,
            training,
            device=torch.device(context.device),
            on_epoch=on_epoch and (lambda _, epoch, terms: on_epoch(epoch, terms)),
        )
    if result.cost is not None:
        meter.stages["training"] = dict(result.cost)
    outcome.history, outcome.resumed_after = result.history, result.resumed_after
    if result.divergence is not None:
        outcome.status, outcome.error = "diverged", result.divergence
        return
    outputs = _outputs(run, seeded.model, data, context)
    with meter("encoding"):
        outcome.artifacts = artifact_files(seeded.model, outputs.test_codes)
    with meter("scoring"):
        outcome.metrics = score(outputs, metrics)


def rescore(
    stored: StoredRun,
    run: Run,
    data: ImageData,
    metrics: Sequence[str],
    context: RunContext,
    *,
    number: int,
) -> ScoreRecord:
    """Compute metrics of a finished run from its stored weights, and store them.

    If the weights cannot be read, the metrics are recorded as missing with that reason.

    ``number`` is the number in the record's name; 1 for a run's first scores.

    Raises:
        AlreadyRecordedError: if another process has recorded metrics of the run meanwhile.
        hgmvae_bench.storage.store.StoreError: if the results folder cannot be written.
    """
    store, device = context.store, torch.device(context.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            codec = restore_codec(run, data, store=store, device=device)
        except ArtifactError as error:
            # Records travel: the reason names the file within the results folder.
            reason = str(error).replace(f"{store.root}{os.sep}", "")
            values = {name: MetricValue(missing=reason) for name in metrics}
        else:
            values = score(_outputs(run, codec.model, data, context), metrics)
    record = ScoreRecord(
        key=run.key,
        record_sha256=stored.sha256,
        metrics=values,
        provenance=collect_provenance(device) | dict(context.provenance),
    )
    if not store.add_scores(record, number):
        raise AlreadyRecordedError(run.key)
    return record


def build_seeded_model(run: Run, data: ImageData, context: RunContext) -> SeededModel:
    """Build the untrained model of a run, with its seeds and its checkpoint."""
    device = torch.device(context.device)
    rng = RunRNG(derive_seed(run.key, "training"), device)
    with rng.activate():
        model = build_model(run.cell, data.input_dim)
    model.to(device)
    checkpoint = Checkpoint(context.store.files, run.key, device.type)
    return SeededModel(model, derive_seed(run.key, "batches"), rng, checkpoint)


def _outputs(run: Run, model: BenchmarkModel, data: ImageData, context: RunContext) -> RunOutputs:
    device = torch.device(context.device)
    return RunOutputs(
        codec=ModelCodec(model, device),
        data=data.first_train_images(run.cell.training.train_images),
        dataset=run.cell.dataset,
        identity=run.key,
        device=device,
        weights=context.weights,
        cache=context.store.root / "cache",
    )
