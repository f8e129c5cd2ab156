"""Input of the figures: records, codes and models of a results folder, and the data."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hgmvae_bench.data.catalogue import default_root, resolve_dataset
from hgmvae_bench.grid import Cell, Grid, Run
from hgmvae_bench.grid.spec import GridSpec
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun, runs_by_cell
from hgmvae_bench.utils.errors import UserError
from hgmvae_bench.utils.text import shorten

if TYPE_CHECKING:
    from hgmvae_bench.data import ImageData
    from hgmvae_bench.evaluation.outputs import ModelCodec
    from hgmvae_bench.plugins.image_data import Codes

MAX_TITLE_LENGTH = 28
"""Maximum number of characters of a title; longer ones are cut, with an ellipsis."""

ScopeAxis = Literal["dataset", "latent_dim", "model"]


class FigureError(UserError, RuntimeError):
    """A figure that cannot be drawn from these results; the message names what is missing."""


class CellNames(NamedTuple):
    """The names by which a grid's tables refer to a cell."""

    dataset: str
    model: str
    latent_dim: int


@dataclass(frozen=True)
class FigureSource:
    """A results folder with the grid and the data that its figures need.

    Attributes:
        grid: grid whose cells are drawn.
        store: results folder.
        runs: every recorded run by its key.
        data_root: folder of the datasets.
        seed: seed of the runs whose codes and weights are drawn. None selects the first complete
            run of each cell. Figures that aggregate over seeds ignore it.
    """

    grid: Grid
    store: Store
    runs: Mapping[str, StoredRun]
    data_root: Path
    seed: int | None = None
    # Data and models in memory, shared by all selections from the same results.
    _loaded: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(
        cls, folder: Path, *, grid: str | None = None, data: Path | None = None
    ) -> FigureSource:
        """Read a results folder.

        Args:
            folder: results folder written by ``hgmvae-bench run``.
            grid: name of the grid; required if the folder holds several.
            data: data folder; None means the user's cache folder.

        Raises:
            hgmvae_bench.storage.store.StoreError: if the folder holds no results or a
                damaged record.
            UnknownNameError: if the folder has no such grid.
        """
        store = Store(folder)
        return cls(store.grid(grid), store, store.runs(on_invalid="warn"), data or default_root())

    def select(
        self,
        datasets: list[str] | None = None,
        models: list[str] | None = None,
        latent_dims: list[int] | None = None,
        *,
        seed: int | None = None,
    ) -> FigureSource:
        """Restrict the source to some datasets, models and latent dims.

        Raises:
            UnknownNameError, GridError: as `hgmvae_bench.grid.Grid.select` does.
        """
        return dataclasses.replace(
            self,
            grid=self.grid.select(datasets, models, latent_dims),
            seed=self.seed if seed is None else seed,
        )

    def split(
        self, scope: tuple[ScopeAxis, ...]
    ) -> Iterator[tuple[dict[ScopeAxis, Any], FigureSource]]:
        """Yield one selection for each combination of values of the axes in ``scope``.

        Combinations come in the grid's order, each with its values by axis.
        """
        for values in _scope_values(scope, self.cells):
            datasets, models, latent_dims = (
                [values[axis]] if axis in values else None
                for axis in ("dataset", "model", "latent_dim")
            )
            yield values, self.select(datasets, models, latent_dims)

    def scopes_of_whole_grid(self, scope: tuple[ScopeAxis, ...]) -> list[dict[ScopeAxis, Any]]:
        """Values by axis that `split` yields for the grid without filters."""
        return _scope_values(scope, _cell_names(self.grid.full_spec))

    @cached_property
    def cells(self) -> dict[CellNames, Cell]:
        """Cells by their names, in the order of the grid's tables."""
        return {names: self.grid.cell(*names) for names in _cell_names(self.grid.spec)}

    @cached_property
    def models(self) -> list[str]:
        """Names of the models, in the order of the grid without filters."""
        selected = {names.model for names in self.cells}
        return [model for model in self.model_positions if model in selected]

    @cached_property
    def model_positions(self) -> dict[str, int]:
        """Position of each model in the grid without filters.

        Colours follow from it, so that a filter does not change them.
        """
        tables = self.grid.full_spec.tables
        models = dict.fromkeys(model for table in tables for model in table.models)
        return {model: position for position, model in enumerate(models)}

    @property
    def dataset(self) -> str:
        """The dataset of a source that has one.

        Raises:
            FigureError: if there are several.
        """
        return str(self._only("dataset"))

    @property
    def latent_dim(self) -> int:
        """The latent dimension of a source that has one.

        Raises:
            FigureError: if there are several.
        """
        return int(self._only("latent_dim"))

    @property
    def model(self) -> str:
        """The model of a source that has one.

        Raises:
            FigureError: if there are several.
        """
        return str(self._only("model"))

    def _only(self, axis: ScopeAxis) -> Any:
        values = list(dict.fromkeys(getattr(names, axis) for names in self.cells))
        if len(values) > 1:
            raise FigureError(
                f"this figure shows one {axis.replace('_', ' ')} and the grid has "
                f"{', '.join(map(str, values))}; select one"
            )
        return values[0]

    def runs_of(self, names: CellNames) -> list[StoredRun]:
        """Recorded runs of a cell, sorted by seed; empty if the grid does not have the cell."""
        cell = self.cells.get(names)
        return [] if cell is None else self._by_cell.get(cell.identity, [])

    @cached_property
    def _by_cell(self) -> dict[str, list[StoredRun]]:
        return runs_by_cell(self.runs.values())

    def runs_to_draw(self) -> dict[str, StoredRun]:
        """Run of each model whose codes or images are drawn.

        The source has one dataset and one latent dimension. Models without a complete run are left
        out; `missing_reason` explains why.

        Raises:
            FigureError: if no model has a complete run.
        """
        chosen = {}
        for model in self.models:
            for run in self.runs_of(CellNames(self.dataset, model, self.latent_dim)):
                if run.record.status == "complete" and self.seed in (None, run.record.seed):
                    chosen[model] = run
                    break
        if not chosen:
            reasons = ", ".join(f"{model}: {self.missing_reason(model)}" for model in self.models)
            raise FigureError(
                f"no trained model of {self.dataset} at latent dimension {self.latent_dim} to "
                f"draw ({reasons}); {self.retry_hint() or 'train with `hgmvae-bench run`'}"
            )
        return chosen

    def retry_hint(self) -> str:
        """Advice to retry if every recorded run diverged or failed; empty if one is complete."""
        counts = Counter(r.record.status for names in self.cells for r in self.runs_of(names))
        if not counts or counts["complete"]:
            return ""
        tally = ", ".join(f"{n} {status}" for status, n in counts.items())
        return f"{tally}: `hgmvae-bench run --retry-failed` trains them again"

    def missing_reason(self, model: str) -> str:
        """Reason why ``model`` has no run in `runs_to_draw`."""
        runs = self.runs_of(CellNames(self.dataset, model, self.latent_dim))
        if self.seed is not None:
            runs = [run for run in runs if run.record.seed == self.seed]
        counts = Counter(run.record.status for run in runs)
        of_seed = "" if self.seed is None else f" with seed {self.seed}"
        tally = "; ".join(f"{n} {status}{of_seed}" for status, n in counts.items())
        return tally or f"no run{of_seed}"

    def data(self, model: str, run: StoredRun) -> ImageData:
        """Images that a run of ``model`` was trained and tested on.

        Raises:
            hgmvae_bench.data.DataError: if the dataset is missing.
            FigureError: if the dataset differs from the one that the run used.
        """
        cell = self._cell(model)
        key = cell.dataset, cell.image_size
        if key not in self._loaded:
            plugin = resolve_dataset(cell.dataset)
            self._loaded[key] = plugin.load(self.data_root, image_size=cell.image_size)
        data: ImageData = self._loaded[key]
        if data.digest != run.record.data_digest:
            raise FigureError(
                f"{run.record.key} was trained on other {cell.dataset} data than those in "
                f"{self.data_root}; name the folder of the original data with --data"
            )
        return data

    def codes(self, run: StoredRun) -> Codes:
        """Stored test codes (N, L) of a run.

        Raises:
            hgmvae_bench.storage.artifacts.ArtifactError: if the codes are missing or damaged.
            FigureError: if they are not all finite.
        """
        import numpy as np

        from hgmvae_bench.storage.artifacts import load_codes

        codes = load_codes(self.store.fetch_artifacts(run.record.key))
        if not np.isfinite(codes).all():
            raise FigureError(f"{run.record.key} cannot be drawn: its codes are not all finite")
        return codes

    def codec(self, model: str, run: StoredRun) -> ModelCodec:
        """Trained model of a run, rebuilt from its stored weights.

        Raises:
            hgmvae_bench.storage.artifacts.ArtifactError: if the weights are missing or damaged.
            hgmvae_bench.data.DataError, FigureError: as `data` raises them.
        """
        import torch

        from hgmvae_bench.evaluation.restore import restore_codec

        key = run.record.key
        if key not in self._loaded:
            self._loaded[key] = restore_codec(
                Run(self._cell(model), run.record.seed, run.record.data_digest),
                self.data(model, run),
                store=self.store,
                device=torch.device("cpu"),
            )
        codec: ModelCodec = self._loaded[key]
        return codec

    def _cell(self, model: str) -> Cell:
        return self.cells[CellNames(self.dataset, model, self.latent_dim)]

    def dataset_title(self) -> str:
        """Title of the dataset of a source that has one."""
        return shorten(self.grid.dataset_title(self.dataset), MAX_TITLE_LENGTH)

    def model_title(self, model: str) -> str:
        """Title of a model, at most `MAX_TITLE_LENGTH` long; different models' titles differ."""
        return self._model_titles[model]

    @cached_property
    def _model_titles(self) -> dict[str, str]:
        return shorten_titles({model: self.grid.model_title(model) for model in self.models})


def format_seeds(runs: Iterable[StoredRun]) -> str:
    """``seed 0`` or ``seeds 0, 2``: the seeds of some runs."""
    seeds = sorted({run.record.seed for run in runs})
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def _cell_names(spec: GridSpec) -> Iterator[CellNames]:
    for table in spec.tables:
        names = itertools.product(table.datasets, table.models, table.latent_dims)
        yield from itertools.starmap(CellNames, names)


def _scope_values(
    scope: tuple[ScopeAxis, ...], cells: Iterable[CellNames]
) -> list[dict[ScopeAxis, Any]]:
    """Distinct combinations of values that the axes of ``scope`` take in these cells."""
    combinations = dict.fromkeys(tuple(getattr(names, axis) for axis in scope) for names in cells)
    return [dict(zip(scope, values, strict=True)) for values in combinations]


def shorten_titles(titles: Mapping[str, str]) -> dict[str, str]:
    """Cut distinct titles to `MAX_TITLE_LENGTH`; the results are distinct too.

    A title loses its end. Titles that would then be equal lose their middle, or if that does not
    tell them apart, their end in favour of their position.
    """
    end = MAX_TITLE_LENGTH // 2
    start = MAX_TITLE_LENGTH - end - 1
    short = {name: shorten(title, MAX_TITLE_LENGTH) for name, title in titles.items()}
    short |= {name: f"{titles[name][:start]}…{titles[name][-end:]}" for name in _shared(short)}
    positions = {name: f" {position}" for position, name in enumerate(titles, start=1)}
    short |= {
        name: shorten(titles[name], MAX_TITLE_LENGTH - len(positions[name])) + positions[name]
        for name in _shared(short)
    }
    # matplotlib leaves labels that start with an underscore out of legends.
    return {name: f" {title}" if title.startswith("_") else title for name, title in short.items()}


def _shared(titles: Mapping[str, str]) -> list[str]:
    """Names whose title is also that of another name."""
    counts = Counter(titles.values())
    return [name for name, title in titles.items() if counts[title] > 1]
