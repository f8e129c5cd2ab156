"""Training steps of one model or of several stacked ones, eager or replayed as a CUDA graph."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

from hgmvae_bench.data.pixels import to_unit
from hgmvae_bench.grid import TrainingSettings
from hgmvae_bench.plugins.protocols import BenchmarkModel, HasStages
from hgmvae_bench.training.epoch import EpochTotals, ImageOrder
from hgmvae_bench.training.precision import autocast_networks
from hgmvae_bench.training.stacking import ModelGroup

logger = logging.getLogger(__name__)

ADAMW_STEP = "step"
"""Key of AdamW's step count, a single number even for stacked models."""

WARM_UP_STEPS = 3
"""Eager steps before a capture: they select kernels and allocate the optimiser's state."""


class Trainer:
    """Optimisers, image order and training steps of one model or of several stacked ones.

    On a GPU a step only enqueues work on the trainer's own stream, so that several trainers share
    the device. Nothing is read back before the end of an epoch.

    Args:
        group: the models, on ``device``.
        images: uint8 (N, C, H, W) on ``device``.
        settings: batch size, precision and optimiser.
        batch_seeds: seeds of the image order, one per model.
        device: training device.

    Attributes:
        group: the models.
        on_gpu: whether losses are read back only at the end of an epoch.
        order: order of the images.
        use_graphs: whether steps are captured as CUDA graphs.
    """

    def __init__(
        self,
        group: ModelGroup,
        images: Tensor,
        settings: TrainingSettings,
        *,
        batch_seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        self.group = group
        self._first = group.models[0]  # Stacked models differ only in their tensors.
        self._images = images
        self._precision = settings.precision
        self.on_gpu = device.type == "cuda"
        self._objectives = group.objectives()
        self._optimizers = [
            torch.optim.AdamW(
                parameters,
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                fused=True,
                capturable=self.on_gpu,
            )
            for parameters in self._objectives.values()
        ]
        self._stream = torch.cuda.Stream(device) if self.on_gpu else None
        # Stacked models run `update`, which may be expensive, concurrently on streams of their own.
        self._update_streams = [
            torch.cuda.Stream(device) if self.on_gpu and group.shape else self._stream
            for _ in group.models
        ]
        self.order = ImageOrder(len(images), settings.batch_size, batch_seeds, device)
        self._totals = EpochTotals(
            group.shape, self._objectives, type(self._first).__name__, device
        )
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stage: int | None = None
        self.use_graphs = self.on_gpu

    def steps(self, epoch: int) -> Iterator[None]:
        """Train for an epoch; each iteration runs one step.

        On a CPU the epoch ends early once every model has had a non-finite loss.

        Args:
            epoch: number of the epoch, from 1.
        """
        for model in self.group.models:
            model.train()
        self.order.shuffle()
        self._totals.reset()
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        stage = training_stage(self._first, epoch) if self.use_graphs else None
        if stage is None or stage != self._stage:
            self._graph = None
            self._totals.forget_terms()
        self._stage = stage
        with autocast_networks(self._precision, self._first):
            for step in range(self.order.n_steps):
                self._run_step(step, epoch)
                if not self.on_gpu and not self._totals.any_finite():
                    return
                yield

    def finish_epoch(self) -> list[tuple[dict[str, float], str | None]]:
        """Mean loss terms and error of each model in the epoch that `steps` has run.

        Returns:
            For each model the mean of every loss term and None. For a diverged model, an empty
            dictionary and the first non-finite quantity: a loss or decoded image, the mean of a
            term, or the weights.
        """
        if self._stream is not None:
            self._stream.synchronize()
        return [
            self._check_finite(model, means, bad_step)
            for model, (means, bad_step) in zip(
                self.group.models, self._totals.read(self.order.n_steps), strict=True
            )
        ]

    def _check_finite(
        self, model: BenchmarkModel, means: dict[str, float], bad_step: int | None
    ) -> tuple[dict[str, float], str | None]:
        if bad_step is not None:
            return {}, f"step {bad_step}: the loss is not finite"
        n_steps = self.order.n_steps
        for name, mean in means.items():
            if not math.isfinite(mean):
                return {}, f"mean over {n_steps} steps: {name} is not finite"
        if not all(weights.isfinite().all() for weights in model.parameters()):
            return {}, f"after step {n_steps}: the weights are not finite"
        return means, None

    def update(self, index: int) -> None:
        """Call a model's ``update`` after an epoch, with torch's global generators set to its own.

        Args:
            index: position of the model in the group.
        """
        with self.group.rngs[index].activate():
            self.update_in_thread(index)

    def update_in_thread(self, index: int) -> None:
        """Call a model's ``update`` from a thread, where the global generators stay untouched.

        Args:
            index: position of the model in the group.
        """
        stream = self._update_streams[index]
        with _on(stream):
            self.group.models[index].update()
        if stream is not None:
            stream.synchronize()

    def states(self) -> list[dict[str, Tensor]]:
        """State of each model between two epochs: weights, optimisers and generators."""
        states: list[dict[str, Tensor]] = []
        for index, (model, order) in enumerate(
            zip(self.group.models, self.order.generators, strict=True)
        ):
            tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
            for i, optimizer in enumerate(self._optimizers):
                for j, values in optimizer.state_dict()["state"].items():
                    for name, value in values.items():
                        own = value if name == ADAMW_STEP else self.group.unstack(value)[index]
                        tensors[f"optimizer.{i}.{j}.{name}"] = own
            generators = self.group.rngs[index].state()
            tensors |= {f"generator.{name}": state for name, state in generators.items()}
            states.append(tensors | {"order": order.get_state()})
        return states

    def restore(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Resume from the states of the models, whether they were stacked then or not.

        Args:
            states: one state per model, as returned by `states`.

        Raises:
            KeyError, RuntimeError, ValueError: if a state does not fit its model, for example
                because a plug-in's code has changed. The trainer must not be used afterwards.
        """
        for model, state in zip(self.group.models, states, strict=True):
            model.load_state_dict(select_prefix("model.", state))
        for i, optimizer in enumerate(self._optimizers):
            values: dict[int, dict[str, Tensor]] = {}
            of_models = [select_prefix(f"optimizer.{i}.", state) for state in states]
            for name, first in of_models[0].items():
                j, _, kind = name.partition(".")
                values.setdefault(int(j), {})[kind] = (
                    first
                    if kind == ADAMW_STEP
                    else self.group.stack([tensors[name] for tensors in of_models])
                )
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": values, "param_groups": groups})
        for rng, order, state in zip(self.group.rngs, self.order.generators, states, strict=True):
            rng.restore(select_prefix("generator.", state))
            order.set_state(state["order"])

    def _run_step(self, step: int, epoch: int) -> None:
        """Replay the stage's graph; if there is none, run a step eagerly or capture it."""
        if self._graph is not None:
            with _on(self._stream):
                self._graph.replay()
            return
        capturing = self.use_graphs and self._stage is not None
        if capturing and step == WARM_UP_STEPS:
            self.try_without_sync(epoch)
            return
        with self.group.activate_rng(), _on(self._stream):
            if capturing and step > WARM_UP_STEPS:
                self._graph = self.capture(epoch)
            else:
                self.step(epoch)

    def try_without_sync(self, epoch: int) -> None:
        """Run a step that must not wait for the GPU; if it does, train without CUDA graphs.

        A step that waits cannot be captured, and a failed capture cannot be undone.
        """
        with _on(self._stream):
            before = [{n: value.clone() for n, value in s.items()} for s in self.states()]
        try:
            with self.group.activate_rng(), _on(self._stream), forbid_gpu_sync():
                self.step(epoch)
        except torch.OutOfMemoryError:
            raise  # A step without a graph needs as much memory.
        except RuntimeError as error:
            logger.warning(
                "%s is trained without CUDA graphs: %s", type(self._first).__name__, error
            )
            self.use_graphs = False
            with _on(self._stream):
                self.restore(before)
                self.order.step_back()
            with self.group.activate_rng(), _on(self._stream):
                self.step(epoch)

    def capture(self, epoch: int) -> torch.cuda.CUDAGraph:
        """Capture a step as a CUDA graph and replay it once."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        assert self._stream is not None  # noqa: S101
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        if torch.__version__ < "2.14":  # Later versions register generators automatically.
            for generator in self.group.generators:
                graph.register_generator_state(generator)
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            self.step(epoch)
        except BaseException:
            with suppress(RuntimeError):  # A consequence of the error that is raised below.
                graph.capture_end()
            raise
        graph.capture_end()
        graph.replay()
        return graph

    def step(self, epoch: int) -> None:
        """Run one step eagerly, with torch's global generators set to the group's."""
        batch = to_unit(self._images.index_select(0, self.order.next_batch()))
        terms = self.group.loss_terms(batch, epoch=epoch, dataset_size=len(self._images))
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        for i, (name, parameters) in enumerate(self._objectives.items(), start=1):
            # Stacked losses are independent: the gradient of their sum is each model's own.
            loss = terms.scalars[name]
            loss.backward(
                torch.ones_like(loss), inputs=parameters, retain_graph=i < len(self._objectives)
            )
        for optimizer in self._optimizers:
            optimizer.step()
        self._totals.add(terms)


def select_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names start with ``prefix``, with the prefix removed."""
    found = {name: value for name, value in tensors.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): value for name, value in found.items()}


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[Any]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


@contextmanager
def forbid_gpu_sync() -> Iterator[None]:
    """Raise RuntimeError if an operation waits for the GPU (torch's synchronisation debug mode)."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def training_stage(model: BenchmarkModel, epoch: int) -> int | None:
    """Stage of an epoch: equal for epochs with the same steps; None if the model defines none."""
    return model.stage(epoch) if isinstance(model, HasStages) else None
