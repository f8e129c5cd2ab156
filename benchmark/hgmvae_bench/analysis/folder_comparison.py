"""Two results folders side by side: means, differences and tests, cell by cell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hgmvae_bench.analysis.frames import load_results
from hgmvae_bench.analysis.render import (
    FormattedEntry,
    FormattedTable,
    footnote_letters,
    format_number,
)
from hgmvae_bench.analysis.stats import ALPHA, holm, welch_test
from hgmvae_bench.grid import different_settings
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.utils.errors import UserError

LEGEND = (
    "Mean ± standard deviation (number of seeds); difference of the second folder's mean; p-values "
    "of Welch's t-test with Holm's correction over all rows. Better and worse: significant at 5 %."
)

NAMES = ["dataset", "image_size", "model", "latent_dim"]
"""Columns that name a cell for a reader; the settings may distinguish several of one name."""

COLUMNS = [
    *NAMES,
    "metric",
    "n_first",
    "mean_first",
    "std_first",
    "n_second",
    "mean_second",
    "std_second",
    "difference",
    "p",
    "p_holm",
    "outcome",
    "note",
]


class FolderComparisonError(UserError):
    """Two results folders that have no cell in common."""


@dataclass(frozen=True)
class FolderComparison:
    """Cells of two results folders, compared.

    Attributes:
        first: name of the first folder.
        second: name of the second folder.
        values: one row per cell and metric that both folders have. Columns: those of `NAMES`;
            ``metric``; number of values, mean and standard deviation of either folder;
            ``difference`` (second minus first); ``p`` (Welch's t-test) and ``p_holm`` (Holm's
            correction over all rows); ``outcome``; ``note``. The outcome is ``better`` or
            ``worse`` (the second folder, significant at 5 %), ``different`` (significant, for a
            metric without a better direction), ``equal`` (the same values), ``not significant``,
            ``untested`` (fewer than two seeds) or ``not comparable``.
        missing: one line per cell or value that only one of the folders has.
    """

    first: str
    second: str
    values: pd.DataFrame
    missing: tuple[str, ...]

    @property
    def table(self) -> FormattedTable:
        """The rows as a table for the terminal, CSV, Markdown or LaTeX."""
        marks = footnote_letters(note for note in self.values["note"] if note)
        rows = [
            [
                cell_name(row),
                row["metric"],
                FormattedEntry(_mean(row, "first")),
                FormattedEntry(_mean(row, "second")),
                FormattedEntry(format_number(row["difference"], "+.3g")),
                FormattedEntry(
                    "–" if pd.isna(row["p_holm"]) else format_number(row["p_holm"], ".2g")
                ),
                FormattedEntry(row["outcome"], note=marks.get(row["note"], "")),
            ]
            for _, row in self.values.iterrows()
        ]
        columns = ["cell", "metric", self.first, self.second, "difference", "p (Holm)", "outcome"]
        frame = pd.DataFrame(rows, columns=columns).set_index(["cell", "metric"])
        return FormattedTable(
            name="folder-comparison",
            title=f"{self.second} compared with {self.first}",
            frame=frame,
            notes={mark: note for note, mark in marks.items()},
            tidy=self.values,
            legend=LEGEND + (f" Missing: {'; '.join(self.missing)}." if self.missing else ""),
            long=True,
        )

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of rows by outcome, most frequent first."""
        return {str(name): int(n) for name, n in self.values["outcome"].value_counts().items()}


def compare_folders(first: Path, second: Path) -> FolderComparison:
    """Compare the records of two results folders.

    Cells match if their settings are equal. A cell without such a match is compared with the only
    unmatched cell of its dataset, image size, model and latent dim in the other folder; a note
    names the settings that differ.

    Raises:
        StoreError: if a folder has no records, or damaged ones.
        FolderComparisonError: if no cell of one folder matches a cell of the other.
    """
    frames = [_values(load_results(folder)) for folder in (first, second)]
    pairs, unmatched = _match_cells(*frames)
    if not pairs:
        examples = " and ".join(
            f"{folder} has {cell_name(frame.iloc[0]) if len(frame) else 'no values'}"
            for frame, folder in zip(frames, (first, second), strict=True)
        )
        raise FolderComparisonError(
            f"{first} and {second} have no cell in common ({examples}); "
            "cells match by dataset, image size, model and latent dim"
        )
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    for cells, folder in zip(unmatched, (first, second), strict=True):
        missing += [f"{cell_name(cell.iloc[0])}: only in {folder}" for cell in cells]
    for one, other in pairs:
        note = _different_settings(one, other)
        by_metric = [_parts(cell, "metric") for cell in (one, other)]
        for metric in dict.fromkeys([*by_metric[0], *by_metric[1]]):
            values = [known.get(metric) for known in by_metric]
            if values[0] is None or values[1] is None:
                owner = first if values[1] is None else second
                missing.append(f"{cell_name(one.iloc[0])}: {metric} only in {owner}")
                continue
            rows.append(_row(metric, values[0], values[1], note))
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame["p"] = frame["p"].astype("float64")
    adjusted = holm([None if pd.isna(p) else p for p in frame["p"]])
    frame["p_holm"] = pd.Series(adjusted, index=frame.index, dtype="float64")
    frame["outcome"] = [_outcome(row) for _, row in frame.iterrows()]
    return FolderComparison(str(first), str(second), frame, tuple(missing))


def cell_name(row: Mapping[str, Any] | pd.Series) -> str:
    """Return the readable name of a cell, such as ``mnist, hgmvae-u, L = 8``."""
    return f"{row['dataset']}, {row['model']}, L = {row['latent_dim']}"


def _mean(row: pd.Series, folder: str) -> str:
    """Mean, standard deviation and number of seeds of one folder."""
    mean = format_number(row[f"mean_{folder}"], ".4g")
    spread = row[f"std_{folder}"]
    margin = "" if pd.isna(spread) else f" ± {format_number(spread, '.2g')}"
    return f"{mean}{margin} ({row[f'n_{folder}']})"


def _values(results: pd.DataFrame) -> pd.DataFrame:
    """Rows of completed runs that have a value."""
    return results[results["value"].notna() & (results["status"] == "complete")]


def _parts(frame: pd.DataFrame, column: str) -> dict[str, pd.DataFrame]:
    """Rows by the text in a column, in order of appearance."""
    return {str(name): part for name, part in frame.groupby(column, sort=False)}


def _match_cells(
    first: pd.DataFrame, second: pd.DataFrame
) -> tuple[list[tuple[pd.DataFrame, pd.DataFrame]], list[list[pd.DataFrame]]]:
    """Pairs of matching cells, and the cells of each folder that have no match."""
    cells = [_parts(frame, "cell") for frame in (first, second)]
    pairs = [(cells[0].pop(key), cells[1].pop(key)) for key in [*cells[0]] if key in cells[1]]
    by_name: list[dict[tuple[Any, ...], list[str]]] = [{}, {}]
    for side, names in zip(cells, by_name, strict=True):
        for key, cell in side.items():
            names.setdefault(tuple(cell.iloc[0][NAMES]), []).append(key)
    for name, keys in by_name[0].items():
        others = by_name[1].get(name, [])
        if len(keys) == len(others) == 1:
            pairs.append((cells[0].pop(keys[0]), cells[1].pop(others[0])))
    return pairs, [list(side.values()) for side in cells]


def _different_settings(first: pd.DataFrame, second: pd.DataFrame) -> str:
    """The settings in which two cells differ, such as ``training.precision: float32, bf16``."""
    one, other = (json.loads(cell["settings"].iloc[0]) for cell in (first, second))
    return "; ".join(f"{name}: {a}, {b}" for name, a, b in different_settings(one, other))


def _row(metric: str, first: pd.DataFrame, second: pd.DataFrame, note: str) -> dict[str, Any]:
    """Means, difference and p-value of one metric of one cell.

    The outcome is empty if the corrected p-value decides it.
    """
    one, other = first["value"].tolist(), second["value"].tolist()
    prints = {*first["fingerprint"], *second["fingerprint"]}
    digests = {*first["data_digest"], *second["data_digest"]}
    comparable, outcome = len(prints) == len(digests) == 1, ""
    if not comparable:
        outcome = "not comparable"
    elif sorted(one) == sorted(other):
        outcome = "equal"
    reasons = [note] if note else []
    if len(digests) > 1:
        reasons.append("trained on different data")
    if len(prints) > 1:
        reasons.append("computed differently (fingerprints differ)")
    return {
        **{name: first.iloc[0][name] for name in NAMES},
        "metric": metric,
        "n_first": len(one),
        "mean_first": first["value"].mean(),
        "std_first": first["value"].std(),
        "n_second": len(other),
        "mean_second": second["value"].mean(),
        "std_second": second["value"].std(),
        "difference": second["value"].mean() - first["value"].mean(),
        "p": welch_test(one, other) if comparable else None,
        "outcome": outcome,
        "note": "; ".join(reasons) if comparable else "; ".join(["not comparable", *reasons]),
    }


def _outcome(row: pd.Series) -> str:
    """Return the outcome of a row, by its test unless `_row` has decided it."""
    if row["outcome"]:
        return str(row["outcome"])
    if pd.isna(row["p_holm"]):
        return "untested"
    if row["p_holm"] > ALPHA:
        return "not significant"
    direction = METRICS[row["metric"]].direction if row["metric"] in METRICS else None
    if direction in {None, "neutral"}:
        return "different"
    return "better" if (row["difference"] > 0) == (direction == "higher") else "worse"
