"""What figures are drawn from: the records, codes and models of a results folder, and the data."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hgmvae_bench.data.catalogue import default_root, resolve_dataset
from hgmvae_bench.grid import Cell, Grid, Run
from hgmvae_bench.grid.spec import GridSpec
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.errors import UserError

if TYPE_CHECKING:
    from hgmvae_bench.data import ImageData
    from hgmvae_bench.evaluation.outputs import ModelCodec
    from hgmvae_bench.plugins.image_data import Codes

LONGEST_TITLE = 28

ScopeAxis = Literal["dataset", "latent_dim", "model"]


class FigureError(UserError, RuntimeError):
    """A figure that these results cannot give; the message says what is lacking."""


class CellNames(NamedTuple):
    """A cell as the grid's tables name it."""

    dataset: str
    model: str
    latent_dim: int


@dataclass(frozen=True)
class FigureSource:
    """A results folder as figures see it.

    Attributes:
        grid: whose cells are drawn.
        store: the results folder.
        runs: every recorded run by its key.
        data_root: where the datasets lie.
        seed: the seed whose codes and weights are drawn; the first complete one of each cell if
            None. Figures of several seeds show all of them all the same.
    """

    grid: Grid
    store: Store
    runs: Mapping[str, StoredRun]
    data_root: Path
    seed: int | None = None
    # Data and models already in memory, shared with every selection of the same results.
    _loaded: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(
        cls, folder: Path, *, grid: str | None = None, data: Path | None = None
    ) -> FigureSource:
        """Read a results folder.

        Args:
            folder: as ``hgmvae-bench run --results`` wrote it.
            grid: which grid, if the folder holds several.
            data: the data folder; the user's cache folder if None.

        Raises:
            hgmvae_bench.storage.store.StoreError: if it holds no results, or a damaged record.
            UnknownNameError: if it has no such grid.
        """
        store = Store(folder)
        return cls(store.grid(grid), store, store.runs(), data or default_root())

    def select(
        self,
        datasets: list[str] | None = None,
        models: list[str] | None = None,
        latent_dims: list[int] | None = None,
        *,
        seed: int | None = None,
    ) -> FigureSource:
        """The part that filters leave.

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
        """These results by the values that the axes of ``scope`` have, in the grid's order."""
        for values in _values(scope, self.cells):
            datasets, models, latent_dims = (
                [values[axis]] if axis in values else None
                for axis in ("dataset", "model", "latent_dim")
            )
            yield values, self.select(datasets, models, latent_dims)

    def scopes_of_whole_grid(self, scope: tuple[ScopeAxis, ...]) -> list[dict[ScopeAxis, Any]]:
        """The values of `parts` of the whole grid, whatever filters leave."""
        return _values(scope, _cell_names(self.grid.full_spec))

    @cached_property
    def cells(self) -> dict[CellNames, Cell]:
        """The grid's cells by their names, in the tables' order."""
        return {names: self.grid.cell(*names) for names in _cell_names(self.grid.spec)}

    @cached_property
    def models(self) -> list[str]:
        """The models' names in the order of the whole grid, so that filters change no colour."""
        tables = self.grid.full_spec.tables
        known = dict.fromkeys(model for table in tables for model in table.models)
        mine = {names.model for names in self.cells}
        return [model for model in known if model in mine]

    @cached_property
    def model_positions(self) -> dict[str, int]:
        """Each model's place in the whole grid: what its colour follows from."""
        tables = self.grid.full_spec.tables
        known = dict.fromkeys(model for table in tables for model in table.models)
        return {model: place for place, model in enumerate(known)}

    @property
    def dataset(self) -> str:
        """The only dataset.

        Raises:
            FigureError: if there are several.
        """
        return str(self._only("dataset"))

    @property
    def latent_dim(self) -> int:
        """The only latent dimension.

        Raises:
            FigureError: if there are several.
        """
        return int(self._only("latent_dim"))

    @property
    def model(self) -> str:
        """The only model.

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
        """A cell's recorded runs by seed; none if the grid lacks the cell."""
        cell = self.cells.get(names)
        return [] if cell is None else self._by_cell.get(cell.identity, [])

    @cached_property
    def _by_cell(self) -> dict[str, list[StoredRun]]:
        by_cell: dict[str, list[StoredRun]] = defaultdict(list)
        for run in sorted(self.runs.values(), key=lambda run: run.record.seed):
            by_cell[run.record.cell].append(run)
        return by_cell

    def runs_to_draw(self) -> dict[str, StoredRun]:
        """The run to look at of each model, on the only dataset at the only latent dimension.

        Models without a complete run are left out; `lacking` says why.

        Raises:
            FigureError: if there is none at all.
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
        """What to do if every recorded run diverged or failed; nothing if one is complete."""
        counts = Counter(r.record.status for names in self.cells for r in self.runs_of(names))
        if not counts or counts["complete"]:
            return ""
        told = ", ".join(f"{n} {status}" for status, n in counts.items())
        return f"{told}: `hgmvae-bench run --retry-failed` does them again"

    def missing_reason(self, model: str) -> str:
        """Why there is no run of ``model`` to look at."""
        runs = self.runs_of(CellNames(self.dataset, model, self.latent_dim))
        if self.seed is not None:
            runs = [run for run in runs if run.record.seed == self.seed]
        counts = Counter(run.record.status for run in runs)
        which = "" if self.seed is None else f" with seed {self.seed}"
        return "; ".join(f"{n} {status}{which}" for status, n in counts.items()) or f"no run{which}"

    def data(self, model: str, run: StoredRun) -> ImageData:
        """The images that a model's run was trained and tested on.

        Raises:
            hgmvae_bench.data.DataError: if they are not there.
            FigureError: if what is there is not what the run saw.
        """
        cell = self._cell(model)
        place = cell.dataset, cell.image_size
        if place not in self._loaded:
            plugin = resolve_dataset(cell.dataset)
            self._loaded[place] = plugin.load(self.data_root, image_size=cell.image_size)
        data: ImageData = self._loaded[place]
        if data.digest != run.record.data_digest:
            raise FigureError(
                f"{run.record.key} was trained on other {cell.dataset} data than what is in "
                f"{self.data_root}; give the folder of that data with --data"
            )
        return data

    def codes(self, run: StoredRun) -> Codes:
        """The test codes (N, L) that a run stored.

        Raises:
            hgmvae_bench.storage.artifacts.ArtifactError: if they are absent or damaged.
        """
        from hgmvae_bench.storage.artifacts import load_codes

        return load_codes(self.store.artifact_folder(run.record.key))

    def codec(self, model: str, run: StoredRun) -> ModelCodec:
        """The trained model of a run, rebuilt from its weights.

        Raises:
            hgmvae_bench.storage.artifacts.ArtifactError: if the weights are absent or damaged.
            hgmvae_bench.data.DataError, FigureError: as `data` does.
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
        """The only dataset's name in figures."""
        return _short(self.grid.dataset_title(self.dataset))

    def model_title(self, model: str) -> str:
        """A model's name in figures."""
        return _short(self.grid.model_title(model))


def _cell_names(spec: GridSpec) -> Iterator[CellNames]:
    for table in spec.tables:
        places = itertools.product(table.datasets, table.models, table.latent_dims)
        yield from itertools.starmap(CellNames, places)


def _values(scope: tuple[ScopeAxis, ...], cells: Iterable[CellNames]) -> list[dict[ScopeAxis, Any]]:
    """What the axes of ``scope`` are in these cells, each once."""
    places = dict.fromkeys(tuple(getattr(names, axis) for axis in scope) for names in cells)
    return [dict(zip(scope, place, strict=True)) for place in places]


def _short(title: str) -> str:
    """A title that leaves room for the figure."""
    return title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 1]}…"
