"""The controls that the models of a grid are held against: what is lacking, scored and stored.

A control belongs to images, not to a run: each is scored once for all models and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

# Part of every control's key: raised when code changes what a control is.
PROTOCOL = 1


@dataclass(frozen=True)
class ControlImages:
    """The images that a control is made of.

    Attributes:
        dataset: registered name.
        image_size: side in pixels.
        train_images: how many of the training images are known; None for all.
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
    """Score and store what the controls of a grid lack.

    A control gets the metrics that the grid's models have on its dataset, PCA those that they have
    at its latent dim.

    Args:
        grid: whose models are held against controls.
        data: every dataset of the grid by name and image size.
        store: where the controls' records are.
        device: where a metric may compute.
        weights: folder of pretrained weights for metrics, if any.
        metrics: to be computed instead of the grid's own; one that is recorded as missing is
            tried again then.
        on_scored: called with every record that has been stored.

    Raises:
        hgmvae_bench.storage.store.StoreError: if the results folder cannot be read or written.
    """
    known = store.controls()
    for subject, wanted in _subjects(grid, metrics).items():
        whole = data[subject.dataset, subject.image_size]
        made = build_controls(
            whole.first_train_images(subject.train_images),
            subject.dataset,
            wanted,
            device=device,
            weights=weights,
            cache=store.root / "cache",
        )
        for control in made:
            record = _blank(control, subject, whole.digest)
            asked = (
                wanted[control.latent_dim]
                if control.latent_dim is not None
                else dict.fromkeys(name for names in wanted.values() for name in names)
            )
            have = known[record.key].metrics if record.key in known else {}
            lacking = [
                name
                for name in control.applicable_metrics(asked)
                if name not in have or (metrics is not None and have[name].missing)
            ]
            if lacking:
                scored = record.model_copy(
                    update={
                        "metrics": control.score(lacking),
                        "provenance": collect_provenance(device),
                    }
                )
                store.add_control(scored)
                on_scored(scored)


def _subjects(grid: Grid, metrics: list[str] | None) -> dict[ControlImages, dict[int, list[str]]]:
    """The images that the grid's models see; for each latent dim on them, the metrics."""
    subjects: dict[ControlImages, dict[int, list[str]]] = {}
    for cell, own in grid.cells.items():
        subject = ControlImages(cell.dataset, cell.image_size, cell.training.train_images)
        names = subjects.setdefault(subject, {}).setdefault(cell.latent_dim, [])
        names += [name for name in (metrics or own) if name not in names]
    return subjects


def _blank(control: Control, subject: ControlImages, data_digest: str) -> ControlRecord:
    """The record of a control without metrics."""
    identity: dict[str, Any] = {
        "dataset": subject.dataset,
        "image_size": subject.image_size,
        "train_images": subject.train_images,
        "data_digest": data_digest,
        "control": control.name,
        "latent_dim": control.latent_dim,
    }
    dims = "" if control.latent_dim is None else f"_L{control.latent_dim}"
    short = digest({"protocol": PROTOCOL, **identity})[:16]
    return ControlRecord(
        key=f"{slugify(subject.dataset)}_{control.name}{dims}_{short}",
        title=control.title,
        comparable=control.comparable,
        metrics={},
        **identity,
    )
