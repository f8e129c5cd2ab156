r"""Escaping of text for the formats that tables are written in.

Names and reasons come from plug-ins, grid files and error messages. Characters that are
invisible or steer a terminal are shown as ``\x1b``, and a CSV cell that a spreadsheet would run as
a formula is quoted.
"""

from __future__ import annotations

import re
import unicodedata

from hgmvae_bench.utils.text import escape_controls

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of CSV cells that a spreadsheet runs as a formula, also full-width ones."""


def one_line(text: object) -> str:
    """Text on one line, without hidden characters.

    Line breaks, tabs and runs of spaces become single spaces.
    """
    return escape_controls(re.sub(r"[ \t\r\n]+", " ", str(text)).strip())


def escape_csv(value: object) -> object:
    """Text without hidden characters, and quoted if a spreadsheet would run it as a formula."""
    if not isinstance(value, str):
        return value
    text = escape_controls(value)
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
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def escape_markdown(text: str) -> str:
    """Escape plain text for Markdown, on one line."""
    escaped = re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
