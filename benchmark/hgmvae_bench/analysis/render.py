"""Tables as text, CSV, Markdown and LaTeX. Every writer escapes its input (`analysis.escape`)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from hgmvae_bench.analysis.escape import (
    escape_csv,
    escape_latex,
    escape_markdown,
    one_line,
)
from hgmvae_bench.analysis.text_layout import LINE_LENGTH, fit_to_width, index_as_columns

SUPERSCRIPTS = {1: "¹", 2: "²", 3: "³"}
MARKDOWN_STYLES = {1: "**%s**", 2: "***%s***", 3: "*%s*"}
LATEX_STYLES = {1: r"\textbf{%s}", 2: r"\textbf{\textit{%s}}", 3: r"\textit{%s}"}
TIE = "⁼"

PACKAGES = r"\usepackage{array,booktabs,longtable}"

DOCUMENT = r"""\documentclass{article}
\usepackage[a4paper,landscape,margin=12mm]{geometry}
%(packages)s
\setlength{\tabcolsep}{3.5pt}
\setlength{\belowcaptionskip}{6pt}
\setlength{\emergencystretch}{3em}
\begin{document}
\setlength{\LTcapwidth}{\textwidth}
\footnotesize
%(tables)s
\end{document}
"""


@dataclass(frozen=True)
class FormattedEntry:
    """Text of one table entry and its marks.

    Attributes:
        text: plain text, not yet escaped.
        rank: 1, 2 and 3 are marked.
        tied: whether the entry is marked as indistinguishable from the best.
        note: letter of its footnote.
    """

    text: str
    rank: int | None = None
    tied: bool = False
    note: str = ""


@dataclass(frozen=True)
class FormattedTable:
    """A table that the writers of this module can write.

    Attributes:
        name: stem of its file name, and its LaTeX label after ``tab:``.
        title: caption.
        frame: printed content: a `FormattedEntry` in each place, names in index and columns.
        tidy: the same content at full precision, for CSV.
        legend: one or more sentences on how to read the table.
        notes: footnotes by letter.
        number: for example ``Table 1.``, printed before the title; LaTeX numbers tables itself.
        ranked: whether ranks are marked, so that the legend has to explain them.
        long: whether the table may run over several pages.
        widths: column widths as shares of a line, for entries that are sentences; columns are as
            wide as their content if not given.
    """

    name: str
    title: str
    frame: pd.DataFrame
    tidy: pd.DataFrame
    legend: str
    notes: dict[str, str] = field(default_factory=dict)
    number: str = ""
    ranked: bool = False
    long: bool = False
    widths: tuple[float, ...] = ()

    @property
    def heading(self) -> str:
        """Number and title."""
        return f"{self.number} {self.title}".strip()


def footnote_letters(notes: Iterable[str]) -> dict[str, str]:
    """Assign each distinct footnote a letter: a to z, then aa, ab and so on."""
    marks: dict[str, str] = {}
    for note in dict.fromkeys(notes):
        number, mark = len(marks) + 1, ""
        while number:
            number, digit = divmod(number - 1, 26)
            mark = chr(ord("a") + digit) + mark
        marks[note] = mark
    return marks


def format_number(value: float, form: str) -> str:
    """Format a number by a format specification, with a minus sign instead of a hyphen."""
    return format(value, form).replace("-", "−")


def column_headings(columns: pd.Index[Any], separator: str) -> list[str]:
    """One heading per column: its names joined; a latent dim is written as ``L = 8``."""
    return [
        separator.join(
            f"L = {each}" if name == "L" else str(each)
            for name, each in zip(
                columns.names, label if isinstance(label, tuple) else (label,), strict=True
            )
        )
        for label in columns
    ]


def to_text(table: FormattedTable, width: int | None = None) -> str:
    """Write a table for the terminal: the best three raised ¹ ² ³, footnotes in brackets.

    Args:
        table: table to write.
        width: characters per line. A wider table is split by columns; a `long` one is split into
            groups of rows with entries broken into lines. By default, lines are as long as the
            table needs.
    """
    frame = _map_text(table.frame, _entry_to_text, one_line)
    prose_width = min(width or LINE_LENGTH, LINE_LENGTH)
    legend = one_line(table.legend)
    if table.ranked:
        legend += f" ¹ best, ² second, ³ third; {TIE} indistinguishable from the best."
    notes = [f"[{mark}] {one_line(note)}" for mark, note in table.notes.items()]
    prose = [textwrap.fill(each, prose_width, break_on_hyphens=False) for each in (legend, *notes)]
    heading = one_line(table.heading)
    if width is not None:
        heading = textwrap.fill(heading, width, break_on_hyphens=False)
    # pandas would write "Empty DataFrame".
    body = fit_to_width(frame, width, long=table.long, shares=table.widths) if len(frame) else "–"
    return "\n".join([heading, "", body, "", *prose]) + "\n"


def to_csv(table: FormattedTable) -> str:
    """Write one line per value, at full precision."""
    text = table.tidy.select_dtypes(exclude="number").columns
    tidy = table.tidy.assign(**{name: table.tidy[name].map(escape_csv) for name in text})
    return tidy.to_csv(index=False)


def to_markdown(table: FormattedTable) -> str:
    """Write a pipe table: the best in bold, the second in bold italics, the third in italics."""
    frame = _map_text(table.frame, _entry_to_markdown, escape_markdown)
    flat = frame.set_axis(column_headings(frame.columns, " / "), axis=1).reset_index()
    lines = [list(map(str, flat.columns)), ["---"] * len(flat.columns), *flat.to_numpy().tolist()]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    legend = escape_markdown(table.legend)
    if table.ranked:
        legend += " **Best**, ***second***, *third*; "
        legend += f"{TIE} indistinguishable from the best."
    notes = [f"- [{mark}] {escape_markdown(note)}" for mark, note in table.notes.items()]
    parts = [f"**{escape_markdown(table.heading)}**", body, legend, "\n".join(notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write headings and rows of plain text as a pipe table."""
    lines = [[escape_markdown(text) for text in row] for row in (headings, *rows)]
    lines.insert(1, ["---"] * len(headings))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_latex(table: FormattedTable) -> str:
    r"""Write a floating table, or a longtable, to be read with ``\input``; it needs `PACKAGES`."""
    frame = _map_text(table.frame, _entry_to_latex, escape_latex)
    # Unnamed columns need no header line of their own for the names of the index.
    unnamed = frame.columns.name is None and frame.columns.nlevels == 1
    styler = index_as_columns(frame, grouped=table.long).style.hide() if unnamed else frame.style
    caption, label = escape_latex(table.title), f"tab:{table.name}"
    legend = escape_latex(table.legend)
    if table.ranked:
        legend += r" Best in \textbf{bold}, second in \textbf{\textit{bold italic}}, third in "
        legend += r"\textit{italic}; $^{=}$ indistinguishable from the best."
    notes = " ".join(
        rf"$^{{\mathrm{{{mark}}}}}$\,{escape_latex(note)}." for mark, note in table.notes.items()
    )
    below = f"\\par\\smallskip{{\\raggedright {notes}\\par}}\n" if notes else ""
    widths = [rf">{{\raggedright\arraybackslash}}p{{{w}\linewidth}}" for w in table.widths]
    latex = styler.to_latex(
        hrules=True,
        multicol_align="c",
        multirow_align="naive",
        column_format="".join(widths) or None,
        position=None if table.long else "htp",
        position_float=None if table.long else "centering",
        environment="longtable" if table.long else None,
        caption=f"{caption}. {legend}",
        label=label,
    )
    if table.long:
        # A star keeps a row whose first name is blank on the page of the row before it.
        latex = re.sub(r"\\\\(?=\n +&)", r"\\\\*", latex)
    end = "" if table.long else "\\end{table}\n"
    return f"% {PACKAGES}\n{latex.removesuffix(end)}{below}{end}"


def latex_document(names: Iterable[str]) -> str:
    r"""Write a document that reads the fragments ``NAME.tex`` beside it with ``\input``."""
    tables = "\n\\clearpage\n".join(f"\\input{{{name}}}" for name in names)
    return DOCUMENT % {"packages": PACKAGES, "tables": tables}


WRITERS: Mapping[str, tuple[str, Callable[[FormattedTable], str]]] = {
    "text": ("txt", to_text),
    "csv": ("csv", to_csv),
    "markdown": ("md", to_markdown),
    "latex": ("tex", to_latex),
}
"""File suffix and writer of each format."""


def _map_text(
    frame: pd.DataFrame, write: Callable[[FormattedEntry], str], escape: Callable[[str], str]
) -> pd.DataFrame:
    """Write every entry, and escape every name in index and columns."""
    written = frame.map(write)
    for axis in ("index", "columns"):
        labels = getattr(written, axis)
        # Mapping an empty MultiIndex would lose its levels.
        if len(labels):
            labels = labels.map(
                lambda label: (
                    tuple(map(escape, label)) if isinstance(label, tuple) else escape(label)
                )
            )
        names = [escape(name) if name else name for name in labels.names]
        written = written.set_axis(labels, axis=axis).rename_axis(names, axis=axis)
    return written


def _entry_to_text(entry: FormattedEntry) -> str:
    rank = SUPERSCRIPTS.get(entry.rank or 0, "")
    note = f" [{entry.note}]" if entry.note else ""
    return f"{one_line(entry.text)}{rank}{TIE if entry.tied else ''}{note}"


def _entry_to_markdown(entry: FormattedEntry) -> str:
    styled = MARKDOWN_STYLES.get(entry.rank or 0, "%s") % escape_markdown(entry.text)
    note = rf" \[{entry.note}\]" if entry.note else ""
    return f"{styled}{TIE if entry.tied else ''}{note}"


def _entry_to_latex(entry: FormattedEntry) -> str:
    styled = LATEX_STYLES.get(entry.rank or 0, "%s") % escape_latex(entry.text)
    raised = ("=" if entry.tied else "") + (rf"\mathrm{{{entry.note}}}" if entry.note else "")
    return styled + (f"$^{{{raised}}}$" if raised else "")
