"""Objects that the runs on a Ray cluster share.

The driver reads the data and puts each dataset into Ray's object store once. A node fetches it once
and its workers read it from shared memory.
"""

from __future__ import annotations

from typing import Any

import ray
import torch

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.catalogue import resolve_dataset
from hgmvae_bench.execution.ray.worker import FileContents, Images
from hgmvae_bench.execution.tasks import RunContext, Task
from hgmvae_bench.plugins.protocols import PreparingMetric
from hgmvae_bench.plugins.registry import METRICS


class SharedObjects:
    """Objects that runs share, put into Ray's object store when they are first needed.

    Args:
        context: settings that all runs share.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._images: dict[tuple[str, int], Any] = {}
        self._cache: dict[tuple[Any, ...], Any] = {}

    def images(self, task: Task) -> Any:
        """Return the reference to the task's dataset."""
        cell = task.run.cell
        key = cell.dataset, cell.image_size
        if key not in self._images:
            self._images[key] = ray.put(Images.of(self._load(task)))
        return self._images[key]

    def cache(self, task: Task) -> Any:
        """Return the reference to the files that the task's metrics prepare from the dataset.

        The driver prepares them, so that all nodes use the same.
        """
        cell = task.run.cell
        preparing = [name for name in task.metrics if isinstance(METRICS[name], PreparingMetric)]
        key = cell.dataset, cell.image_size, cell.training.train_images, *sorted(preparing)
        if key not in self._cache:
            files: dict[str, bytes] = {}
            if preparing:
                data = self._load(task).first_train_images(cell.training.train_images)
                for name in preparing:
                    files |= self._prepare(METRICS[name], data, cell.dataset)
            self._cache[key] = ray.put(files)
        return self._cache[key]

    def _prepare(self, metric: Any, data: ImageData, dataset: str) -> FileContents:
        root = self._context.store.root / "cache"
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        paths = metric.prepare(data, dataset, root, device)
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}

    def _load(self, task: Task) -> ImageData:
        cell = task.run.cell
        dataset = resolve_dataset(cell.dataset)
        return dataset.load(self._context.data_root, image_size=cell.image_size)
