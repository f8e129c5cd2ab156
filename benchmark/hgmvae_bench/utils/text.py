"""Text for messages."""

from __future__ import annotations

import reprlib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

MAX_QUOTED = 60
"""Maximum length of a quoted value in a message, in characters."""

MAX_LINE, MAX_LINES = 2000, 200
"""Characters of a line, and lines at either end, that a recorded message keeps."""

# Marks and overrides that reorder the text around them on a terminal or a page.
_BIDIRECTIONAL = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict = 3, 6, 4
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = MAX_QUOTED


def pluralize(number: int, noun: str) -> str:
    """Format a number with its noun: ``1 run``, ``2 runs``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shorten(text: str, limit: int = MAX_QUOTED) -> str:
    """Cut text to ``limit`` characters, the ellipsis included."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def first_few(lines: Sequence[str], limit: int, noun: str = "") -> list[str]:
    """Return the first ``limit`` lines, and the number of the others: ``and 3 more errors``."""
    more = len(lines) - limit
    others = [f"and {more:,} more {noun}".rstrip()] if more > 0 else []
    return [*lines[:limit], *others]


def distinct_titles(titles: Mapping[str, str]) -> dict[str, str]:
    """Titles by name; those that several names share are followed by the name."""
    distinct = dict(titles)
    # Repeated, because an appended name may make a title equal to another one.
    while shared := {title for title, count in Counter(distinct.values()).items() if count > 1}:
        distinct = {
            name: f"{title} ({name})" if title in shared else title
            for name, title in distinct.items()
        }
    return distinct


def shorten_message(text: str) -> str:
    """Cut the lines of a message to `MAX_LINE`, and the message to its first and last lines.

    The last line, which names the error in a traceback, stays.
    """
    lines = [shorten(line, MAX_LINE) for line in text.splitlines()]
    if len(lines) > 2 * MAX_LINES:
        omitted = f"[{len(lines) - 2 * MAX_LINES:,} lines omitted]"
        lines[MAX_LINES:-MAX_LINES] = [omitted]
    return "\n".join(lines)


def quote(value: object) -> str:
    """Return the ``repr`` of a value, cut to about `MAX_QUOTED` characters."""
    try:
        return shorten(_REPR.repr(value))
    except ValueError:  # an integer with more digits than Python converts to text
        return f"a large {type(value).__name__}"


def is_control(character: str) -> bool:
    """Whether a character is a control, line separator, surrogate or bidirectional mark."""
    return (
        unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or character in _BIDIRECTIONAL
    )


def escape_controls(text: str, keep: str = "") -> str:
    r"""Escape control characters as in a Python string: ESC becomes ``\x1b``.

    Args:
        text: text to escape.
        keep: control characters that stay, such as line breaks.
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if is_control(character) and character not in keep
        else character
        for character in text
    )
