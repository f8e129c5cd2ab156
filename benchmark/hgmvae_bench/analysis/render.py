r"""Tables as text, CSV, Markdown and LaTeX.

Names and reasons come from plug-ins, grid files and error messages, so that every writer escapes
them for its format. Control characters, terminal escapes and bidirectional overrides are shown as
``\x1b``, and a CSV cell that a spreadsheet would run as a formula is quoted.
"""

from __future__ import annotations

import io
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

Format = Literal["text", "csv", "markdown", "latex"]

SUPERSCRIPTS = {1: "¹", 2: "²", 3: "³"}
MARKDOWN_STYLES = {1: "**%s**", 2: "***%s***", 3: "*%s*"}
LATEX_STYLES = {1: r"\textbf{%s}", 2: r"\textbf{\textit{%s}}", 3: r"\textit{%s}"}
TIE = "⁼"
WIDTH = 100
"""Characters per line of prose, and of tables that are broken into lines."""

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a CSV cell begins with that a spreadsheet runs as a formula, full-width signs included."""

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
        table: what to write.
        width: characters per line. A wider table is split by columns; a `long` one is split into
            groups of rows with entries broken into lines. By default, lines are as long as the
            table needs.
    """
    frame = _map_text(table.frame, _entry_to_text, _one_line)
    prose_width = min(width or WIDTH, WIDTH)
    legend = _one_line(table.legend)
    if table.ranked:
        legend += f" ¹ best, ² second, ³ third; {TIE} indistinguishable from the best."
    notes = [f"[{mark}] {_one_line(note)}" for mark, note in table.notes.items()]
    prose = [textwrap.fill(each, prose_width, break_on_hyphens=False) for each in (legend, *notes)]
    heading = _one_line(table.heading)
    if width is not None:
        heading = textwrap.fill(heading, width, break_on_hyphens=False)
    body = _fit_to_width(frame, table, width)
    return "\n".join([heading, "", body, "", *prose]) + "\n"


def to_csv(table: FormattedTable) -> str:
    """Write one line per value, at full precision."""
    text = table.tidy.select_dtypes(exclude="number").columns
    tidy = table.tidy.assign(**{name: table.tidy[name].map(_escape_csv) for name in text})
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
    styler = _index_as_columns(frame, grouped=table.long).style.hide() if unnamed else frame.style
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


def show_hidden(text: str) -> str:
    r"""Replace characters that are invisible or steer a terminal by their escapes.

    These are Unicode's control, format (bidirectional overrides, zero-width), surrogate, private
    and unassigned characters, and its line and paragraph separators: ``\x1b``, ``\u202e``.
    """
    return "".join(
        character.encode("unicode_escape", "backslashreplace").decode()
        if unicodedata.category(character)[0] == "C"
        or unicodedata.category(character) in ("Zl", "Zp")
        else character
        for character in text
    )


def _one_line(text: object) -> str:
    """Text on one line, without hidden characters.

    Line breaks, tabs and runs of spaces become single spaces.
    """
    return show_hidden(re.sub(r"[ \t\r\n]+", " ", str(text)).strip())


def _map_text(
    frame: pd.DataFrame, write: Callable[[FormattedEntry], str], escape: Callable[[str], str]
) -> pd.DataFrame:
    """Write every entry, and escape every name in index and columns."""
    written = frame.map(write)
    for axis in ("index", "columns"):
        labels = getattr(written, axis)
        new = labels.map(
            lambda label: tuple(map(escape, label)) if isinstance(label, tuple) else escape(label)
        )
        names = [escape(name) if name else name for name in labels.names]
        written = written.set_axis(new, axis=axis).rename_axis(names, axis=axis)
    return written


def _fit_to_width(frame: pd.DataFrame, table: FormattedTable, width: int | None) -> str:
    """Lay out a frame as text of at most ``width`` characters per line, if one is given."""
    if table.widths:
        return _break_lines(frame, width or WIDTH, table.widths)
    text = frame.to_string()
    if width is None or _line_length(text) <= width:
        return text
    if table.long:
        return "\n\n".join(_row_groups(frame, width))
    return "\n\n".join(part.to_string() for part in _column_parts(frame, width))


def _column_parts(frame: pd.DataFrame, width: int) -> Iterator[pd.DataFrame]:
    """Parts of a frame with as many columns as fit into ``width``, at least one each."""
    start = 0
    while start < frame.shape[1]:
        end = start + 1
        while end < frame.shape[1]:
            if _line_length(frame.iloc[:, start : end + 1].to_string()) > width:
                break
            end += 1
        yield frame.iloc[:, start:end]
        start = end


def _row_groups(frame: pd.DataFrame, width: int) -> Iterator[str]:
    """Groups of rows under a line with their outer names, which saves the columns of these."""
    if frame.index.nlevels <= 2:
        yield _break_lines(frame, width)
        return
    outer = [", ".join(names[:-2]) for names in frame.index]
    inner = frame.droplevel(list(frame.index.names[:-2]))
    for heading in dict.fromkeys(outer):
        rows = inner[[name == heading for name in outer]]
        yield f"{heading}\n{_break_lines(rows, width)}"


def _line_length(text: str) -> int:
    return max(map(cell_len, text.splitlines()), default=0)


def _break_lines(frame: pd.DataFrame, width: int, widths: tuple[float, ...] = ()) -> str:
    """Lay out a frame with entries broken into lines, in columns of the given shares."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    flat = _index_as_columns(frame)
    gap = 1 if widths else 0
    table = Table(box=None, expand=bool(widths), pad_edge=False, padding=(0, 1, gap, 0))
    words = [max(map(cell_len, " ".join([name, *flat[name]]).split())) for name in flat.columns]
    words_fit = sum(words) + len(words) <= width
    for name, word, share in zip(flat.columns, words, widths or [0.0] * len(words), strict=True):
        min_width = word if words_fit else None
        table.add_column(name, ratio=round(100 * share) or None, min_width=min_width)
    for line in flat.to_numpy():
        table.add_row(*map(Text, line))
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def _index_as_columns(frame: pd.DataFrame, *, grouped: bool = False) -> pd.DataFrame:
    """Turn the names of the rows into columns, with repeated names left blank.

    Args:
        frame: table with one or more names per row.
        grouped: repeat all names where any but the last changes, so that groups of rows can be on
            different pages.
    """
    names = frame.index.to_frame(index=False)
    depth = names.shape[1]
    repeated = [
        names.iloc[:, : max(level + 1, depth - 1) if grouped else level + 1].duplicated()
        for level in range(depth)
    ]
    names = names.mask(pd.concat(repeated, axis=1).to_numpy(), "")
    return pd.concat([names, frame.reset_index(drop=True)], axis=1)


def _entry_to_text(entry: FormattedEntry) -> str:
    rank = SUPERSCRIPTS.get(entry.rank or 0, "")
    note = f" [{entry.note}]" if entry.note else ""
    return f"{_one_line(entry.text)}{rank}{TIE if entry.tied else ''}{note}"


def _entry_to_markdown(entry: FormattedEntry) -> str:
    styled = MARKDOWN_STYLES.get(entry.rank or 0, "%s") % escape_markdown(entry.text)
    note = rf" \[{entry.note}\]" if entry.note else ""
    return f"{styled}{TIE if entry.tied else ''}{note}"


def _entry_to_latex(entry: FormattedEntry) -> str:
    styled = LATEX_STYLES.get(entry.rank or 0, "%s") % escape_latex(entry.text)
    raised = ("=" if entry.tied else "") + (rf"\mathrm{{{entry.note}}}" if entry.note else "")
    return styled + (f"$^{{{raised}}}$" if raised else "")


def _escape_csv(value: object) -> object:
    """Text without hidden characters, and quoted if a spreadsheet would run it as a formula."""
    if not isinstance(value, str):
        return value
    text = show_hidden(value)
    return f"'{text}" if value.startswith(FORMULA_STARTS) else text


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    # \textasciitilde is a raised accent, unlike the tilde of a path.
    "~": r"$\sim$",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": r"{[}",
    "]": r"{]}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "−": r"$-$",
    "·": r"$\cdot$",
    "√": r"$\surd$",
    "²": r"$^2$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "\u2007": "~",
}


def _greek(letter: str) -> str:
    name = unicodedata.name(letter).split()[-1].replace("LAMDA", "LAMBDA")
    return f"$\\{name.capitalize() if letter.isupper() else name.lower()}$"


_LATEX |= {letter: _greek(letter) for letter in "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"}


def escape_latex(text: str) -> str:
    """Escape plain text for LaTeX; Greek letters and common signs become mathematics."""
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def escape_markdown(text: str) -> str:
    """Escape plain text for Markdown, on one line."""
    escaped = re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", _one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
