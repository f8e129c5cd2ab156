"""What is trained as one: its steps, eager or replayed from a CUDA graph, and their sums."""

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
from hgmvae_bench.training.loss_terms import LossTerms
from hgmvae_bench.training.precision import autocast_networks
from hgmvae_bench.training.stacking import ModelGroup

logger = logging.getLogger(__name__)

STEPS = "step"
"""AdamW's name for how many steps it has done: one number, because all models are equally far."""

WARM_UP_STEPS = 3
"""Eager steps before a capture: they choose algorithms and make the optimiser's state."""


class Trainer:
    """One model, or several as one, with optimisers and an order of the images for each.

    Training is asynchronous on a GPU: a step only enqueues work on the trainer's own stream, so
    that several trainers fill the device between them. Nothing is read back before an epoch ends.

    Args:
        models: on ``device``.
        images: uint8 (N, C, H, W) on ``device``.
        settings: batch size, precision and optimiser.
        batch_seeds: decide the order of the images, one for each model.
        device: where to train.
    """

    def __init__(
        self,
        models: ModelGroup,
        images: Tensor,
        settings: TrainingSettings,
        *,
        batch_seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        self.group = models
        self._first = models.models[0]  # In all that counts here the others are like it.
        self._images = images
        self._precision = settings.precision
        self._batch_size = min(settings.batch_size, len(images))
        self._orders = [torch.Generator().manual_seed(seed) for seed in batch_seeds]
        self._objectives = models.objectives()
        self._on_gpu = device.type == "cuda"
        self._optimizers = [
            torch.optim.AdamW(
                parameters,
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                fused=True,
                capturable=self._on_gpu,
            )
            for parameters in self._objectives.values()
        ]
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None
        # Where models do what they do between epochs, which may be much: each on one of its own.
        self._streams = [
            torch.cuda.Stream(device) if self._on_gpu and models.shape else self._stream
            for _ in models.models
        ]
        steps = len(images) // self._batch_size
        # What a replayed step reads and writes stays where it is for the whole training.
        self._permutation = torch.zeros(
            steps, len(self._orders), self._batch_size, dtype=torch.long, device=device
        )
        self._step_number = torch.zeros(1, dtype=torch.long, device=device)
        self._sound = torch.ones(models.shape, dtype=torch.bool, device=device)
        self._sound_steps = torch.zeros(models.shape, dtype=torch.long, device=device)
        self._terms: list[str] = []
        self._totals = torch.zeros(*models.shape, 0, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stage: int | None = None
        self._records_steps = self._on_gpu

    def steps(self, epoch: int) -> Iterator[None]:
        """Do an epoch, one step for each time that this is advanced (from 1).

        The epoch ends early, on a CPU, with a step after which no model's loss is finite.
        """
        for model in self.group.models:
            model.train()
        n_steps = len(self._permutation)
        for index, generator in enumerate(self._orders):
            order = torch.randperm(len(self._images), generator=generator)
            self._permutation[:, index].copy_(order[: n_steps * self._batch_size].view(n_steps, -1))
        for tensor in (self._step_number, self._sound_steps, self._totals):
            tensor.zero_()
        self._sound.fill_(True)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        current = training_stage(self._first, epoch) if self._records_steps else None
        if current is None or current != self._stage:
            self._graph = None
            self._terms = []
        self._stage = current
        with autocast_networks(self._precision, self._first):
            for step in range(n_steps):
                recording = current is not None and self._records_steps
                if self._graph is not None:
                    with _on(self._stream):
                        self._graph.replay()
                elif recording and step == WARM_UP_STEPS:
                    self._rehearse(epoch)
                else:
                    with self.group.activate_rng(), _on(self._stream):
                        if recording and step > WARM_UP_STEPS:
                            self._graph = self._capture(epoch)
                        else:
                            self._step(epoch)
                if not self._on_gpu and not self._sound.any():
                    return
                yield

    def finish_epoch(self) -> list[tuple[dict[str, float], str | None]]:
        """For each model the mean of every loss term over the epoch's steps, and what was at fault.

        That may be a loss or an image of a step, another term's mean, or what the last step has
        made of the weights, if it was not finite; None if all were.
        """
        if self._stream is not None:
            self._stream.synchronize()
        n_steps = len(self._permutation)
        sound, sound_steps = self._sound.view(-1).tolist(), self._sound_steps.view(-1).tolist()
        means = (self._totals.double() / n_steps).view(len(sound), -1).tolist()
        return [
            self._verdict(model, *of_model)
            for model, *of_model in zip(self.group.models, sound, sound_steps, means, strict=True)
        ]

    def _verdict(
        self, model: BenchmarkModel, sound: bool, sound_steps: int, means: list[float]
    ) -> tuple[dict[str, float], str | None]:
        if not sound:
            return {}, f"step {sound_steps + 1}: the loss is not finite"
        n_steps = len(self._permutation)
        for name, mean in zip(self._terms, means, strict=True):
            if not math.isfinite(mean):
                return {}, f"mean over {n_steps} steps: {name} is not finite"
        if not all(weights.isfinite().all() for weights in model.parameters()):
            return {}, f"after step {n_steps}: the weights are not finite"
        return dict(zip(self._terms, means, strict=True)), None

    def update(self, index: int) -> None:
        """TrainingEnd an epoch of a model."""
        with self.group.rngs[index].activate():
            self.update_in_thread(index)

    def update_in_thread(self, index: int) -> None:
        """The same from a thread of its own, where the global generators are not the model's."""
        stream = self._streams[index]
        with _on(stream):
            self.group.models[index].update()
        if stream is not None:
            stream.synchronize()

    def states(self) -> list[dict[str, Tensor]]:
        """Of each model everything that decides its further training, between two epochs."""
        states: list[dict[str, Tensor]] = []
        for index, (model, order) in enumerate(zip(self.group.models, self._orders, strict=True)):
            tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
            for i, optimizer in enumerate(self._optimizers):
                for j, values in optimizer.state_dict()["state"].items():
                    for name, value in values.items():
                        row = value if name == STEPS else self.group.unstack(value)[index]
                        tensors[f"optimizer.{i}.{j}.{name}"] = row
            generators = self.group.rngs[index].state()
            tensors |= {f"generator.{name}": state for name, state in generators.items()}
            states.append(tensors | {"order": order.get_state()})
        return states

    def restore(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Go on from what `states` gave, or as many trainers did of one model each.

        Raises:
            KeyError, RuntimeError, ValueError: if it is of another model, as where a plug-in's code
                has changed since; the trainer is of no use then.
        """
        for model, state in zip(self.group.models, states, strict=True):
            model.load_state_dict(select_prefix("model.", state))
        for i, optimizer in enumerate(self._optimizers):
            values: dict[int, dict[str, Tensor]] = {}
            parts = [select_prefix(f"optimizer.{i}.", state) for state in states]
            for name, first in parts[0].items():
                j, _, kind = name.partition(".")
                values.setdefault(int(j), {})[kind] = (
                    first if kind == STEPS else self.group.stack([part[name] for part in parts])
                )
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": values, "param_groups": groups})
        for index, state in enumerate(states):
            self.group.rngs[index].restore(select_prefix("generator.", state))
            self._orders[index].set_state(state["order"])

    def _rehearse(self, epoch: int) -> None:
        """Do a step that shows whether steps can be recorded, and find out before one is.

        What waits for the GPU cannot be recorded, and an attempt could not be undone.
        """
        with _on(self._stream):
            before = [{n: value.clone() for n, value in s.items()} for s in self.states()]
        try:
            with self.group.activate_rng(), _on(self._stream), _refusing_to_wait():
                self._step(epoch)
        except torch.OutOfMemoryError:
            raise  # Without a graph it would take no less.
        except RuntimeError as error:
            logger.warning(
                "%s is trained without CUDA graphs: %s", type(self._first).__name__, error
            )
            self._records_steps = False
            with _on(self._stream):
                self.restore(before)
                self._step_number.sub_(1)
            with self.group.activate_rng(), _on(self._stream):
                self._step(epoch)

    def _capture(self, epoch: int) -> torch.cuda.CUDAGraph:
        """Record a step as a CUDA graph, and do that step."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        assert self._stream is not None  # noqa: S101
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        if torch.__version__ < "2.14":  # Later ones find out by themselves.
            for generator in self.group.generators:
                graph.register_generator_state(generator)
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            self._step(epoch)
        except BaseException:
            with suppress(RuntimeError):  # It follows from what went wrong, which is told.
                graph.capture_end()
            raise
        graph.capture_end()
        graph.replay()
        return graph

    def _step(self, epoch: int) -> None:
        indices = self._permutation.index_select(0, self._step_number).flatten()
        self._step_number.add_(1)
        batch = to_unit(self._images.index_select(0, indices))
        terms = self.group.loss_terms(batch, epoch=epoch, dataset_size=len(self._images))
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        for i, (name, parameters) in enumerate(self._objectives.items(), start=1):
            # Models have no part in each other's losses, and so none in each other's slopes.
            loss = terms.scalars[name]
            loss.backward(
                torch.ones_like(loss), inputs=parameters, retain_graph=i < len(self._objectives)
            )
        for optimizer in self._optimizers:
            optimizer.step()
        self._account(terms)

    @torch.no_grad()
    def _account(self, terms: LossTerms) -> None:
        """Add the step's scalars to the epoch's totals, and note the first step at fault."""
        scalars = {name: value.float() for name, value in terms.scalars.items()}
        if not self._terms:
            self._terms = list(scalars)
            self._totals = torch.zeros(*self.group.shape, len(scalars), device=self._totals.device)
        if self._terms != list(scalars):
            raise ValueError(
                f"{type(self._first).__name__} returns other terms ({', '.join(scalars)}) than in "
                f"the epoch's first step ({', '.join(self._terms)})"
            )
        self._totals.add_(torch.stack(list(scalars.values()), -1))
        witnesses = [*(scalars[name] for name in self._objectives), terms.image_sum]
        self._sound.logical_and_(torch.stack(witnesses, -1).isfinite().all(-1))
        self._sound_steps.add_(self._sound)


def select_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by the rest of their names."""
    found = {name: value for name, value in tensors.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): value for name, value in found.items()}


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[Any]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Raise RuntimeError where something waits for the GPU (torch's synchronisation debug mode)."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def training_stage(model: BenchmarkModel, epoch: int) -> int | None:
    """What a model says of an epoch's steps: the same number where they are alike, or None."""
    return model.stage(epoch) if isinstance(model, HasStages) else None
