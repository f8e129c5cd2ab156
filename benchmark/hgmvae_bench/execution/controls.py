"""Scoring and storing the controls of a grid's datasets.

A control depends on images, not on a run, so each is scored once for all models and seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hgmvae_bench.data import ImageData
from hgmvae_bench.evaluation.controls import Control, build_controls
from hgmvae_bench.grid import Grid, slugify
from hgmvae_bench.storage.provenance import collect_provenance
from hgmvae_bench.storage.schema import ControlRecord
from hgmvae_bench.storage.store import Store
from hgmvae_bench.utils.seeding import digest

PROTOCOL_VERSION = 1
"""Part of every control's key; raised when code changes what a control is."""


@dataclass(frozen=True)
class ControlImages:
    """The images that a control is computed from.

    Attributes:
        dataset: registered name.
        image_size: side in pixels.
        train_images: number of training images that the control may use; None for all.
    """

    dataset: str
    image_size: int
    train_images: int | None


def score_controls(
    grid: Grid,
    data: Mapping[tuple[str, int], ImageData],
    store: Store,
    *,
    device: torch.device,
    weights: Path | None = None,
    metrics: list[str] | None = None,
    on_scored: Callable[[ControlRecord], None] = lambda _: None,
) -> None:
    """Score the controls of a grid and store the metrics that they lack.

    A control gets the metrics of the grid's models on its dataset; PCA gets those of the models
    with its latent dim.

    Args:
        grid: the grid.
        data: every dataset of the grid by name and image size.
        store: the results folder.
        device: device of the metrics.
        weights: folder of pretrained weights for metrics; None to search the default places.
        metrics: metrics to compute instead of the grid's own. A metric recorded as missing is then
            computed again.
        on_scored: called with every record that has been stored.

    Raises:
        hgmvae_bench.storage.store.StoreError: if the results folder cannot be read or written.
    """
    stored = store.controls()
    for images, by_latent_dim in _metrics_by_images(grid, metrics).items():
        whole = data[images.dataset, images.image_size]
        controls = build_controls(
            whole.first_train_images(images.train_images),
            images.dataset,
            by_latent_dim,
            device=device,
            weights=weights,
            cache=store.root / "cache",
        )
        for control in controls:
            record = _empty_record(control, images, whole.digest)
            known = stored[record.key].metrics if record.key in stored else {}
            missing = [
                name
                for name in control.applicable_metrics(_requested(control, by_latent_dim))
                if name not in known or (metrics is not None and known[name].missing)
            ]
            if missing:
                content = {
                    "metrics": control.score(missing),
                    "provenance": collect_provenance(device),
                }
                scored = record.model_copy(update=content)
                store.add_control(scored)
                on_scored(scored)


def _requested(control: Control, by_latent_dim: Mapping[int, list[str]]) -> Iterable[str]:
    """The metrics that a control may get, each once."""
    if control.latent_dim is not None:
        return by_latent_dim[control.latent_dim]
    return dict.fromkeys(itertools.chain.from_iterable(by_latent_dim.values()))


def _metrics_by_images(
    grid: Grid, metrics: list[str] | None
) -> dict[ControlImages, dict[int, list[str]]]:
    """Group the metrics of the grid's cells by the images that their models see and latent dim."""
    grouped: dict[ControlImages, dict[int, list[str]]] = {}
    for cell, own in grid.cells.items():
        images = ControlImages(cell.dataset, cell.image_size, cell.training.train_images)
        names = grouped.setdefault(images, {}).setdefault(cell.latent_dim, [])
        names += [name for name in (metrics or own) if name not in names]
    return grouped


def _empty_record(control: Control, images: ControlImages, data_digest: str) -> ControlRecord:
    """Make the record of a control without metrics."""
    identity: dict[str, Any] = {
        "dataset": images.dataset,
        "image_size": images.image_size,
        "train_images": images.train_images,
        "data_digest": data_digest,
        "control": control.name,
        "latent_dim": control.latent_dim,
    }
    dims = "" if control.latent_dim is None else f"_L{control.latent_dim}"
    short = digest({"protocol": PROTOCOL_VERSION, **identity})[:16]
    return ControlRecord(
        key=f"{slugify(images.dataset)}_{control.name}{dims}_{short}",
        title=control.title,
        comparable=control.comparable,
        metrics={},
        **identity,
    )
