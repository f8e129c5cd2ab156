"""One model in training: its steps, eager or replayed from a CUDA graph, and their sums."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from hgmvae_bench.grid import TrainingSettings
from hgmvae_bench.outputs import to_unit
from hgmvae_bench.plugins import BenchmarkModel
from hgmvae_bench.precision import networks_in
from hgmvae_bench.randomness import Randomness

logger = logging.getLogger(__name__)

WARM_UP_STEPS = 3
"""Eager steps before a capture: they choose algorithms and make the optimiser's state."""


class Trainee:
    """A model, its optimisers and its order of the images.

    Training is asynchronous on a GPU: a step only enqueues work on the trainee's own stream, so
    that several trainees fill the device between them. Nothing is read back before an epoch ends.

    Args:
        model: on ``device``.
        images: uint8 (N, C, H, W) on ``device``.
        settings: batch size, precision and optimiser.
        batch_seed: decides the order of the images.
        randomness: in force whenever the model computes.
        device: where to train.
    """

    def __init__(
        self,
        model: BenchmarkModel,
        images: Tensor,
        settings: TrainingSettings,
        *,
        batch_seed: int,
        randomness: Randomness,
        device: torch.device,
    ) -> None:
        self.model = model
        self._images = images
        self._precision = settings.precision
        self._batch_size = min(settings.batch_size, len(images))
        self._randomness = randomness
        self._order = torch.Generator().manual_seed(batch_seed)
        self._objectives = _objectives(model)
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
        steps = len(images) // self._batch_size
        # What a replayed step reads and writes stays where it is for the whole training.
        self._permutation = torch.zeros(steps, self._batch_size, dtype=torch.long, device=device)
        self._step_number = torch.zeros(1, dtype=torch.long, device=device)
        # Finite as long as all decoded images are.
        self._brightness = torch.zeros((), device=device)
        self._sound = torch.ones((), dtype=torch.bool, device=device)
        self._sound_steps = torch.zeros((), dtype=torch.long, device=device)
        self._terms: list[str] = []
        self._totals = torch.zeros(0, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stage: int | None = None
        self._records_steps = self._on_gpu

    def steps(self, epoch: int) -> Iterator[None]:
        """Do an epoch, one step for each time that this is advanced (from 1).

        The epoch ends early, on a CPU, with a step whose loss is not finite.
        """
        model = self.model
        model.train()
        order = torch.randperm(len(self._images), generator=self._order)
        n_steps = len(self._permutation)
        self._permutation.copy_(order[: self._permutation.numel()].view_as(self._permutation))
        for tensor in (self._step_number, self._sound_steps, self._totals):
            tensor.zero_()
        self._sound.fill_(True)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        stage = _stage(model, epoch) if self._records_steps else None
        if stage is None or stage != self._stage:
            self._graph = None
            self._terms = []
        self._stage = stage
        with networks_in(self._precision, model), self._watching_images():
            for step in range(n_steps):
                recording = stage is not None and self._records_steps
                if self._graph is not None:
                    with self._on_stream():
                        self._graph.replay()
                elif recording and step == WARM_UP_STEPS:
                    self._rehearse(epoch)
                else:
                    with self._randomness(), self._on_stream():
                        if recording and step > WARM_UP_STEPS:
                            self._graph = self._capture(epoch)
                        else:
                            self._step(epoch)
                if not self._on_gpu and not self._sound:
                    return
                yield

    def finish_epoch(self) -> tuple[dict[str, float], str | None]:
        """The mean of every loss term over the epoch's steps, and what was not finite, and where.

        That may be a loss or an image of a step, another term's mean, or what the last step has
        made of the weights; None if nothing was.
        """
        if self._stream is not None:
            self._stream.synchronize()
        if not self._sound:
            return {}, f"step {int(self._sound_steps) + 1}: the loss is not finite"
        n_steps = len(self._permutation)
        means = (self._totals.double() / n_steps).tolist()
        for name, mean in zip(self._terms, means, strict=True):
            if not math.isfinite(mean):
                return {}, f"mean over {n_steps} steps: {name} is not finite"
        if not all(weights.isfinite().all() for weights in self.model.parameters()):
            return {}, f"after step {n_steps}: the weights are not finite"
        return dict(zip(self._terms, means, strict=True)), None

    def update(self) -> None:
        """End an epoch of the model."""
        with self._randomness():
            self.update_beside_others()

    def update_beside_others(self) -> None:
        """The same from a thread of its own, where the global generators are not the model's."""
        with self._on_stream():
            self.model.update()
        if self._stream is not None:
            self._stream.synchronize()

    def state(self) -> dict[str, Tensor]:
        """Everything that decides the further training, between two epochs."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for i, optimizer in enumerate(self._optimizers):
            for j, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{j}.{name}": value for name, value in values.items()}
        tensors |= {f"generator.{name}": s for name, s in self._randomness.state().items()}
        return tensors | {"order": self._order.get_state()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave.

        Raises:
            KeyError, RuntimeError, ValueError: if it is of another model, as where a plug-in's code
                has changed since; the trainee is of no use then.
        """
        self.model.load_state_dict(below("model.", tensors))
        for i, optimizer in enumerate(self._optimizers):
            values: dict[int, dict[str, Tensor]] = {}
            for name, value in below(f"optimizer.{i}.", tensors).items():
                j, _, kind = name.partition(".")
                values.setdefault(int(j), {})[kind] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": values, "param_groups": groups})
        self._randomness.restore(below("generator.", tensors))
        self._order.set_state(tensors["order"])

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _rehearse(self, epoch: int) -> None:
        """Do a step that shows whether steps can be recorded, and find out before one is.

        What waits for the GPU cannot be recorded, and an attempt could not be undone.
        """
        with self._on_stream():
            before = {name: value.clone() for name, value in self.state().items()}
        try:
            with self._randomness(), self._on_stream(), _refusing_to_wait():
                self._step(epoch)
        except torch.OutOfMemoryError:
            raise  # Without a graph it would take no less.
        except RuntimeError as error:
            logger.warning(
                "%s is trained without CUDA graphs: %s", type(self.model).__name__, error
            )
            self._records_steps = False
            with self._on_stream():
                self.restore(before)
                self._step_number.sub_(1)
            with self._randomness(), self._on_stream():
                self._step(epoch)

    def _capture(self, epoch: int) -> torch.cuda.CUDAGraph:
        """Record a step as a CUDA graph, and do that step."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        assert self._stream is not None  # noqa: S101
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
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
        indices = self._permutation.index_select(0, self._step_number).squeeze(0)
        self._step_number.add_(1)
        batch = to_unit(self._images.index_select(0, indices))
        output = self.model({"data": batch}, epoch=epoch, dataset_size=len(self._images))
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        for i, (name, parameters) in enumerate(self._objectives.items(), start=1):
            output[name].backward(inputs=parameters, retain_graph=i < len(self._objectives))
        for optimizer in self._optimizers:
            optimizer.step()
        self._account(output)

    @torch.no_grad()
    def _account(self, output: Mapping[str, Any]) -> None:
        """Add the step's scalars to the epoch's totals, and note the first step at fault."""
        scalars = {
            name: value.float()
            for name, value in output.items()
            if isinstance(value, Tensor) and value.ndim == 0
        }
        if not self._terms:
            self._terms = list(scalars)
            self._totals = torch.zeros(len(scalars), device=self._totals.device)
        if self._terms != list(scalars):
            raise ValueError(
                f"{type(self.model).__name__} returns other terms ({', '.join(scalars)}) than in "
                f"the epoch's first step ({', '.join(self._terms)})"
            )
        self._totals.add_(torch.stack(list(scalars.values())))
        witnesses = [*(scalars[name] for name in self._objectives), self._brightness]
        self._sound.logical_and_(torch.stack(witnesses).isfinite().all())
        self._sound_steps.add_(self._sound)

    @contextmanager
    def _watching_images(self) -> Iterator[None]:
        """Note decoded images that are not finite, and keep them from the loss.

        torch's cross-entropy refuses NaN: with an exception on a CPU, and on a GPU by aborting
        everything that the process has there.
        """

        def watch(_module: nn.Module, _arguments: Any, output: Any) -> Any:
            images = output["reconstruction"]
            self._brightness.copy_(images.detach().float().sum())
            output["reconstruction"] = images.nan_to_num(nan=0.5)
            return output

        hook = self.model.decoder.register_forward_hook(watch)
        try:
            yield
        finally:
            hook.remove()


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by the rest of their names."""
    found = {name: value for name, value in tensors.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): value for name, value in found.items()}


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Raise RuntimeError where something waits for the GPU (torch's synchronisation debug mode)."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _objectives(model: BenchmarkModel) -> dict[str, list[nn.Parameter]]:
    """Parameters by the name of the loss that they follow; one loss unless the model says so."""
    objectives = getattr(model, "objectives", None)
    if objectives is None:
        return {"loss": list(model.parameters())}
    parameters: dict[str, list[nn.Parameter]] = objectives()
    return parameters


def _stage(model: BenchmarkModel, epoch: int) -> int | None:
    stage = getattr(model, "stage", None)
    number: int | None = None if stage is None else stage(epoch)
    return number
