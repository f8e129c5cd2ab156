r"""A laid-out table in text, CSV, Markdown and LaTeX.

Everything is escaped as each format wants it: names and reasons come from plug-ins, grid files and
error messages.
"""

from __future__ import annotations

import io
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

Format = Literal["text", "csv", "markdown", "latex"]

SUPERSCRIPTS = {1: "¹", 2: "²", 3: "³"}
MARKDOWN_STYLES = {1: "**%s**", 2: "***%s***", 3: "*%s*"}
LATEX_STYLES = {1: r"\textbf{%s}", 2: r"\textbf{\textit{%s}}", 3: r"\textit{%s}"}
TIE = "⁼"
WIDTH = 100

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
    """What stands in one place of a table.

    Attributes:
        text: plain, not yet escaped.
        rank: 1, 2 and 3 are marked.
        tied: marked as not to be told apart from the best.
        note: letter of a footnote.
    """

    text: str
    rank: int | None = None
    tied: bool = False
    note: str = ""


@dataclass(frozen=True)
class FormattedTable:
    """A laid-out table.

    Attributes:
        name: of its file, and its LaTeX label after ``tab:``.
        title: caption.
        number: such as ``Table 1.``, before the title; LaTeX numbers by itself.
        frame: what is printed: a `FormattedEntry` in each place, names in index and columns.
        tidy: the same at full precision, for CSV.
        legend: how to read it; one or more sentences.
        notes: footnotes by letter.
        ranked: whether ranks are marked, which the legend must then explain.
        long: whether it may run over several pages.
        widths: of the columns as parts of a line, where entries are sentences that have to be
            broken; as wide as their content if not given.
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
    """A letter for each different note: a to z, then aa, ab and so on."""
    marks: dict[str, str] = {}
    for note in dict.fromkeys(notes):
        number, mark = len(marks) + 1, ""
        while number:
            number, digit = divmod(number - 1, 26)
            mark = chr(ord("a") + digit) + mark
        marks[note] = mark
    return marks


def format_number(value: float, form: str) -> str:
    """A number as it is printed: in the form of a format specification, with a real minus."""
    return format(value, form).replace("-", "−")


def column_headings(columns: pd.Index[Any], separator: str) -> list[str]:
    """One heading for each column: its names joined, a number with what it is of: ``L = 8``."""
    return [
        separator.join(
            f"L = {each}" if name == "L" else str(each)
            for name, each in zip(
                columns.names, label if isinstance(label, tuple) else (label,), strict=True
            )
        )
        for label in columns
    ]


def to_text(table: FormattedTable) -> str:
    """For the terminal: the best three raised ¹ ² ³, footnotes in brackets."""
    frame = _written(table.frame, _text, str)
    legend = table.legend
    if table.ranked:
        legend += f" ¹ best, ² second, ³ third; {TIE} not told apart from the best."
    notes = [textwrap.fill(f"[{mark}] {note}", WIDTH) for mark, note in table.notes.items()]
    body = _broken(frame, table.widths) if table.widths else frame.to_string()
    legend = textwrap.fill(legend, WIDTH)
    return "\n".join([table.heading, "", body, "", legend, *notes]) + "\n"


def to_csv(table: FormattedTable) -> str:
    """One line a value, at full precision."""
    return table.tidy.to_csv(index=False)


def to_markdown(table: FormattedTable) -> str:
    """A pipe table: the best bold, the second bold italic, the third italic."""
    frame = _written(table.frame, _markdown, _escape_markdown)
    flat = frame.set_axis(column_headings(frame.columns, " / "), axis=1).reset_index()
    lines = [list(map(str, flat.columns)), ["---"] * len(flat.columns), *flat.to_numpy().tolist()]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    legend = _escape_markdown(table.legend)
    if table.ranked:
        legend += " **Best**, ***second***, *third*; "
        legend += f"{TIE} not told apart from the best."
    notes = [f"- [{mark}] {_escape_markdown(note)}" for mark, note in table.notes.items()]
    parts = [f"**{_escape_markdown(table.heading)}**", body, legend, "\n".join(notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_latex(table: FormattedTable) -> str:
    r"""A floating table, or a longtable, to be read with ``\input``; with `PACKAGES`."""
    frame = _written(table.frame, _latex, escape_latex)
    # An unnamed header has no use for a row of its own for the names of the index.
    bare = frame.columns.name is None and frame.columns.nlevels == 1
    styler = _index_as_columns(frame, grouped=table.long).style.hide() if bare else frame.style
    caption, label = escape_latex(table.title), f"tab:{table.name}"
    legend = escape_latex(table.legend)
    if table.ranked:
        legend += r" Best in \textbf{bold}, second in \textbf{\textit{bold italic}}, third in "
        legend += r"\textit{italic}; $^{=}$ not told apart from the best."
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
        # A row that leaves its first name to the one before it stays on that one's page.
        latex = re.sub(r"\\\\(?=\n +&)", r"\\\\*", latex)
    end = "" if table.long else "\\end{table}\n"
    return f"% {PACKAGES}\n{latex.removesuffix(end)}{below}{end}"


def latex_document(names: Iterable[str]) -> str:
    r"""A document that compiles as it stands beside the fragments that it reads with ``\input``."""
    tables = "\n\\clearpage\n".join(f"\\input{{{name}}}" for name in names)
    return DOCUMENT % {"packages": PACKAGES, "tables": tables}


WRITERS: dict[Format, tuple[str, Callable[[FormattedTable], str]]] = {
    "text": ("txt", to_text),
    "csv": ("csv", to_csv),
    "markdown": ("md", to_markdown),
    "latex": ("tex", to_latex),
}


def _written(
    frame: pd.DataFrame, write: Callable[[FormattedEntry], str], escape: Callable[[str], str]
) -> pd.DataFrame:
    """Every place and every name as text of a format."""
    written = frame.map(write)
    for axis in ("index", "columns"):
        labels = getattr(written, axis)
        new = labels.map(
            lambda label: tuple(map(escape, label)) if isinstance(label, tuple) else escape(label)
        )
        names = [escape(name) if name else name for name in labels.names]
        written = written.set_axis(new, axis=axis).rename_axis(names, axis=axis)
    return written


def _broken(frame: pd.DataFrame, widths: tuple[float, ...]) -> str:
    """In columns whose entries are broken into lines."""
    console = Console(width=WIDTH, file=io.StringIO(), color_system=None)
    flat = _index_as_columns(frame)
    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 1, 0))
    for name, width in zip(flat.columns, widths, strict=True):
        table.add_column(str(name), ratio=round(100 * width))
    for line in flat.to_numpy():
        table.add_row(*map(Text, line))
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def _index_as_columns(frame: pd.DataFrame, *, grouped: bool = False) -> pd.DataFrame:
    """The names of the rows as columns, each said once as long as it and those before it last.

    Args:
        frame: with one name or more for each row.
        grouped: say all names again where any but the last changes, so that groups of rows can
            stand on pages of their own.
    """
    names = frame.index.to_frame(index=False)
    depth = names.shape[1]
    said = [
        names.iloc[:, : max(level + 1, depth - 1) if grouped else level + 1].duplicated()
        for level in range(depth)
    ]
    names = names.mask(pd.concat(said, axis=1).to_numpy(), "")
    return pd.concat([names, frame.reset_index(drop=True)], axis=1)


def _text(entry: FormattedEntry) -> str:
    rank = SUPERSCRIPTS.get(entry.rank or 0, "")
    note = f" [{entry.note}]" if entry.note else ""
    return f"{entry.text}{rank}{TIE if entry.tied else ''}{note}"


def _markdown(entry: FormattedEntry) -> str:
    styled = MARKDOWN_STYLES.get(entry.rank or 0, "%s") % _escape_markdown(entry.text)
    note = rf" \[{entry.note}\]" if entry.note else ""
    return f"{styled}{TIE if entry.tied else ''}{note}"


def _latex(entry: FormattedEntry) -> str:
    styled = LATEX_STYLES.get(entry.rank or 0, "%s") % escape_latex(entry.text)
    raised = ("=" if entry.tied else "") + (rf"\mathrm{{{entry.note}}}" if entry.note else "")
    return styled + (f"$^{{{raised}}}$" if raised else "")


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    # The text accent of that name is raised, which no path has.
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
    """Plain text for LaTeX, on one line; Greek letters and common signs become mathematics."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _escape_markdown(text: str) -> str:
    escaped = re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
