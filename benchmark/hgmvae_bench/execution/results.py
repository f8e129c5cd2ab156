"""Results of a grid for Python: tables, comparison, frames, figures, report and export."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hgmvae_bench.analysis import claim_tables, claim_tests, comparison, comparison_tables, frames
from hgmvae_bench.analysis.export import export as export_tables
from hgmvae_bench.analysis.export import formatted_tables
from hgmvae_bench.analysis.frames import Folder
from hgmvae_bench.analysis.tables import Table, build_table, with_all_metrics
from hgmvae_bench.data.catalogue import default_root
from hgmvae_bench.grid import Grid
from hgmvae_bench.grid.errors import distinct_metrics
from hgmvae_bench.plugins.local_files import LocalPlugin, using_plugins
from hgmvae_bench.storage.schema import ControlRecord
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun, runs_by_cell
from hgmvae_bench.utils.atomic_files import write_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hgmvae_bench.analysis.figures import FigureSource
    from hgmvae_bench.analysis.figures.catalogue import FigureInput


class Results:
    """Results of one grid in a results folder. Every method reads the folder and trains nothing.

    Args:
        folder: results folder.
        grid: name of the grid, or the grid itself; required if the folder holds several.
        data: data folder, for figures of images; the user's cache folder by default.
        plugins: plug-ins that the grid needs and that are not installed.

    Attributes:
        path: the results folder.
        grid: the grid.

    Raises:
        hgmvae_bench.storage.store.StoreError: if the folder holds no grid, or several and none is
            named.
        UnknownNameError: if the folder has no such grid.

    Example:
        >>> results = hb.Results("results/local", "smoke")
        >>> results.table("1").means
    """

    def __init__(
        self,
        folder: Folder,
        grid: str | Grid | None = None,
        *,
        data: Folder | None = None,
        plugins: Iterable[LocalPlugin] = (),
    ) -> None:
        self.path = Path(folder)
        self._data = default_root() if data is None else Path(data)
        self._plugins = tuple(plugins)
        self._store = Store(self.path)
        with using_plugins(self._plugins):
            self.grid = grid if isinstance(grid, Grid) else self._store.grid(grid)

    def __repr__(self) -> str:
        return f"Results({str(self.path)!r}, grid={self.grid.spec.name!r})"

    @property
    def runs(self) -> list[StoredRun]:
        """The recorded runs of the grid, cell by cell."""
        with using_plugins(self._plugins):
            by_cell = runs_by_cell(self._all_runs())
            return [run for cell in self.grid.cells for run in by_cell.get(cell.identity, [])]

    def _all_runs(self) -> list[StoredRun]:
        """The recorded runs of the folder, including those of other cells."""
        return list(self._store.runs(on_invalid="warn").values())

    @property
    def controls(self) -> list[ControlRecord]:
        """The recorded controls of the folder."""
        return list(self._store.controls(on_invalid="warn").values())

    def frame(self) -> pd.DataFrame:
        """Return every value of the folder, a row per run and metric (`load_results`)."""
        return frames.load_results(self.path)

    def history(self) -> pd.DataFrame:
        """Return the training curves, a row per run, loss term and epoch (`load_history`)."""
        return frames.load_history(self.path)

    def table(
        self,
        name: str,
        *,
        controls: bool = False,
        metrics: Sequence[str] | None = None,
        all_metrics: bool = False,
    ) -> Table:
        """Build one of the grid's tables.

        Args:
            name: name of the table in the grid, such as ``"1"``.
            controls: whether to add the controls beside the models.
            metrics: names of metrics to show in place of the table's own, each once.
            all_metrics: whether to add every other metric that the runs have recorded.

        Raises:
            UnknownNameError: if the grid has no such table.
            GridError: if ``metrics`` is empty.
        """
        with using_plugins(self._plugins):
            # Footnotes count runs of a cell with other settings.
            spec, runs = self.grid.table(name), self._all_runs()
            if metrics is not None:
                spec = spec.with_metrics(distinct_metrics(metrics))
            if all_metrics:
                spec = with_all_metrics(self.grid, spec, runs)
            return build_table(self.grid, spec, runs, self.controls if controls else ())

    def tables(self, *, controls: bool = False) -> dict[str, Table]:
        """Build every table of the grid, by name."""
        with using_plugins(self._plugins):
            runs, known = self._all_runs(), self.controls if controls else []
            return {
                spec.name: build_table(self.grid, spec, runs, known)
                for spec in self.grid.spec.tables
            }

    def compare(self) -> pd.DataFrame:
        """Compare every value that the paper publishes: published, measured, verdict.

        One row per cell and metric; `hgmvae_bench.analysis.comparison.ComparedValue` describes the
        columns.
        """
        with using_plugins(self._plugins):
            compared = comparison.compare_with_paper(self.grid, self.tables().values())
            return comparison_tables.comparison_frame(compared)

    def claims(self) -> pd.DataFrame:
        """Test the claims about the grid: a row for each hypothesis.

        These are the grid's own claims, and those of the paper that its cells can decide in part.
        `hgmvae_bench.analysis.claims` describes claims and hypotheses.
        """
        with using_plugins(self._plugins):
            return claim_tables.claims_frame(
                claim_tests.evaluate_claims(self.grid, self.tables().values())
            )

    def figure(
        self,
        name: str,
        *,
        dataset: str | None = None,
        model: str | list[str] | None = None,
        latent_dim: int | list[int] | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> Figure:
        """Draw a figure of the grid.

        Args:
            name: name of the figure, such as ``3``; `hgmvae_bench.analysis.figures.FIGURES` lists
                them.
            dataset: restrict the figure to this dataset.
            model: restrict the figure to this model or these models.
            latent_dim: restrict the figure to this latent dim or these latent dims.
            seed: seed of the runs whose codes and images are drawn; None means the first complete
                run of each cell.
            **options: arguments of the figure's builder.

        Raises:
            UnknownNameError: if there is no figure, dataset or model of that name.
            FigureError: if there is nothing to draw, or several datasets, latent dims or models
                where the figure shows one.
            hgmvae_bench.storage.artifacts.ArtifactError: if codes or weights are missing or
                damaged.
            hgmvae_bench.data.DataError: if the dataset is needed but missing.
        """
        with using_plugins(self._plugins):
            from hgmvae_bench.analysis.figures import figure_kind

            kind = figure_kind(name)
            selected = self._figure_source().select(
                None if dataset is None else [dataset],
                [model] if isinstance(model, str) else model,
                [latent_dim] if isinstance(latent_dim, int) else latent_dim,
                seed=seed,
            )
            return kind.draw(selected, **options)

    def _figure_source(self) -> FigureSource:
        """Results of this grid, whose filters the stored grid does not have."""
        from hgmvae_bench.analysis.figures import FigureSource

        return FigureSource(self.grid, self._store, self._store.runs(on_invalid="warn"), self._data)

    def report(
        self,
        output: Folder | None = None,
        *,
        figures: Collection[FigureInput] | None = None,
        against: Folder | None = None,
    ) -> str:
        """Build the HTML report, and write it to a file if ``output`` is given.

        Args:
            output: the HTML file.
            figures: draw the figures that need these inputs: ``records``, ``codes``, ``models``;
                all by default.
            against: another results folder to compare these results with.

        Returns:
            The HTML.
        """
        with using_plugins(self._plugins):
            from hgmvae_bench.analysis.report import ALL_INPUTS, build_report

            page = build_report(
                self._figure_source(),
                figures=ALL_INPUTS if figures is None else figures,
                against=None if against is None else Path(against),
            )
            if output is not None:
                write_output(Path(output), page.encode())
            return page

    def export(self, folder: Folder, *, controls: bool = False) -> list[Path]:
        """Write all tables as CSV, Markdown, LaTeX and text, and every value as Parquet.

        If the paper has values of the grid's cells, their heatmap is written as SVG and PNG.

        Returns:
            The files.
        """
        from hgmvae_bench.analysis.figures import FIGURES
        from hgmvae_bench.analysis.figures.files import write_figures

        folder = Path(folder)
        with using_plugins(self._plugins):
            tables = self.tables(controls=controls).values()
            files = export_tables(formatted_tables(self.grid, tables), self.frame(), folder)
            heatmaps = write_figures(FIGURES["verdicts"], self._figure_source(), folder)
            return files + [path for path, error in heatmaps if error is None]

    def update_page(self, page: Folder) -> None:
        """Write the generated parts of a Markdown page again.

        Args:
            page: the file; `hgmvae_bench.analysis.page` describes its parts.

        Raises:
            hgmvae_bench.analysis.page.PageError: if it has no part, an unknown one, or one without
                an end; the file stays as it is.
        """
        from hgmvae_bench.analysis.page import PageError, update_page

        path = Path(page)
        with using_plugins(self._plugins):
            try:
                page_text = path.read_text(encoding="utf-8")
                text = update_page(page_text, self.grid, self.runs, self.controls)
            except (PageError, UnicodeDecodeError) as error:
                raise PageError(f"{path}: {error}") from error
        write_output(path, text.encode())
