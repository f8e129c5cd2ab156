"""Trainers of the speed measurement: the suite, a bare loop, and pythae's trainer."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from hgmvae_bench.data.pixels import to_unit
from hgmvae_bench.execution.worker_process import process_context
from hgmvae_bench.grid import Cell
from hgmvae_bench.plugins.protocols import BenchmarkModel
from hgmvae_bench.training.build import build_model
from hgmvae_bench.training.network.conv import Downsampling, Upsampling
from hgmvae_bench.training.precision import autocast_networks
from hgmvae_bench.training.rng import RunRNG
from hgmvae_bench.training.stacking import SingleModel, StackedModels
from hgmvae_bench.training.trainer import Trainer
from hgmvae_bench.utils.temporary import process_folder

PAST_ALL_STAGES = 10**6
"""Epoch number that models receive: all their training stages are over, every term counts."""

Epoch = Callable[[], None]
"""Function that trains for one pass over the images."""


def _shape(images: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = images.shape
    return channels, height, width


def new_trainer(cell: Cell, images: Tensor, device: torch.device, seed: int) -> Trainer:
    """Make the suite's trainer of one model on its device."""
    single = SingleModel(*_new_model(cell, images, device, seed))
    return Trainer(single, images, cell.training, batch_seeds=[seed], device=device)


def _new_model(
    cell: Cell, images: Tensor, device: torch.device, seed: int
) -> tuple[BenchmarkModel, RunRNG]:
    rng = RunRNG(seed, device)
    with rng.activate():
        return build_model(cell, _shape(images)).to(device), rng


def train_epoch(trainers: Sequence[Trainer]) -> None:
    """Train several models for an epoch, in turns."""
    for _ in zip(*(trainer.steps(PAST_ALL_STAGES) for trainer in trainers), strict=True):
        pass
    for trainer in trainers:
        trainer.finish_epoch()


def stacked_seeds(cell: Cell, images: Tensor, device: torch.device, joint_seeds: int) -> Epoch:
    """Make an epoch of several seeds as one model of stacked weights (``run --stack-seeds``).

    Raises:
        StackingError: if the cell's model cannot be stacked.
    """
    on_device, seeds = images.to(device), range(joint_seeds)
    made = [_new_model(cell, images, device, seed) for seed in seeds]
    stack = StackedModels([model for model, _ in made], [rng for _, rng in made])
    batch = to_unit(on_device[: cell.training.batch_size])
    stack.verify(batch, cell.training.precision, epoch=PAST_ALL_STAGES, dataset_size=len(images))
    trainer = Trainer(stack, on_device, cell.training, batch_seeds=seeds, device=device)
    return partial(train_epoch, [trainer])


@contextmanager
def concurrent_seeds(
    cell: Cell, images: Tensor, device: torch.device, joint_seeds: int, threads: int
) -> Iterator[Epoch]:
    """Make an epoch of several seeds as ``run`` trains them.

    On a GPU one process trains them in turns. On a CPU each has a process with its share of the
    threads.
    """
    if device.type == "cuda":
        on_device = images.to(device)
        trainers = [new_trainer(cell, on_device, device, seed) for seed in range(joint_seeds)]
        yield lambda: train_epoch(trainers)
        return
    context = process_context(device.type)
    processes, pipes = [], []
    for seed in range(joint_seeds):
        ours, theirs = context.Pipe()
        work = theirs, cell, images, seed, max(1, threads // joint_seeds)
        with theirs:
            processes.append(context.Process(target=train_on_demand, args=work, daemon=True))
            processes[-1].start()
        pipes.append(ours)

    def epoch() -> None:
        for pipe in pipes:
            pipe.send("train")
        for pipe in pipes:
            pipe.recv()

    try:
        yield epoch
    finally:
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.close()
            process.join()


def train_on_demand(pipe: Connection, cell: Cell, images: Tensor, seed: int, threads: int) -> None:
    """Train a model for an epoch at each message until the pipe is closed; runs in a process."""
    torch.set_num_threads(threads)
    trainer = new_trainer(cell, images, torch.device("cpu"), seed)
    with contextlib.suppress(EOFError):
        while message := pipe.recv():
            train_epoch([trainer])
            pipe.send(message)


def bare_loop(cell: Cell, images: Tensor, device: torch.device) -> Epoch:
    """Make an epoch of forward, backward and step on prepared batches: a bound for any loop."""
    torch.manual_seed(0)
    model = build_model(cell, _shape(images)).to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=cell.training.learning_rate, fused=True)
    batches = to_unit(images.to(device)).split(cell.training.batch_size)

    def epoch() -> None:
        with autocast_networks(cell.training.precision, model):
            for batch in batches:
                output = model({"data": batch}, epoch=PAST_ALL_STAGES, dataset_size=len(images))
                optimizer.zero_grad()
                output.loss.backward()
                optimizer.step()

    return epoch


def pythae_trainer(cell: Cell, images: Tensor, device: torch.device) -> Epoch:
    """Make an epoch of pythae's trainer on the same network of torch's own layers."""
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    torch.manual_seed(0)
    model = with_torch_layers(build_model(cell, _shape(images)))
    dataset = BaseDataset(to_unit(images), torch.zeros(len(images)))
    # The module sets a level and a handler on its logger.
    logging.getLogger(BaseTrainer.__module__).setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(dir=process_folder()) as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            per_device_train_batch_size=cell.training.batch_size,
            learning_rate=cell.training.learning_rate,
            optimizer_cls="AdamW",
            amp=cell.training.precision == "bf16" and device.type == "cuda",
            no_cuda=device.type != "cuda",
        )
        trainer = BaseTrainer(model, dataset, training_config=config)
        trainer.prepare_training()  # Creates a folder; single steps write nothing to it.

    def epoch() -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # The progress bar.
            trainer.train_step(PAST_ALL_STAGES)

    return epoch


def with_torch_layers(model: Any) -> Any:
    """Replace the suite's convolutions of a model by torch's own, with the same parameters."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            kind = _TORCH_LAYERS.get(type(layer))
            if kind is not None:
                replacement = kind(layer)
                replacement.weight, replacement.bias = layer.weight, layer.bias
                setattr(parent, name, replacement)
    return model


_TORCH_LAYERS: dict[type[nn.Module], Callable[[Any], Any]] = {
    Downsampling: lambda layer: nn.Conv2d(
        layer.in_channels, layer.out_channels, 3, stride=2, padding=1, bias=layer.bias is not None
    ),
    Upsampling: lambda layer: nn.ConvTranspose2d(
        layer.in_channels,
        layer.out_channels,
        3,
        stride=2,
        padding=1,
        output_padding=1,
        bias=layer.bias is not None,
    ),
}
