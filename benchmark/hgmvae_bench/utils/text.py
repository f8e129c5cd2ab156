"""Text for messages."""

from __future__ import annotations

import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

MAX_QUOTED = 60
"""Maximum length of a quoted value in a message, in characters."""

MAX_LINE, MAX_LINES = 2000, 200
"""Characters of a line, and lines at either end, that a recorded message keeps."""

_HIDDEN = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})

# Letters from Arabic to Mongolian and emoji, whose shape a joiner between them determines.
_JOINED = "\u0600-\u18af\u2190-\u2bff\ufe0f\U0001f000-\U0001fbff"
_JOINER = re.compile(f"(?<=[{_JOINED}])[\u200c\u200d](?=[{_JOINED}])")

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


def hidden_characters(text: str) -> dict[int, str]:
    """Positions of the characters that are invisible or steer a terminal, with their escapes.

    These are Unicode's control, format (bidirectional overrides, zero-width), surrogate and
    private characters, its line and paragraph separators, and its noncharacters. Zero-width joiners
    that shape the letters or emoji around them are not counted, nor are other unassigned
    characters, because new emoji are unassigned in an older Python.
    """
    if text.isprintable():  # Most texts are, and this takes a fraction of the time.
        return {}
    joiners = {match.start() for match in _JOINER.finditer(text)}
    return {
        i: character.encode("unicode_escape").decode()
        for i, character in enumerate(text)
        if _is_hidden(character) and i not in joiners
    }


def _is_hidden(character: str) -> bool:
    code = ord(character)
    is_noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return is_noncharacter or unicodedata.category(character) in _HIDDEN


def escape_controls(text: str, keep: str = "") -> str:
    r"""Escape `hidden_characters` as in a Python string: ESC becomes ``\x1b``.

    Args:
        text: text to escape.
        keep: characters that stay, such as line breaks.
    """
    if not (hidden := hidden_characters(text)):
        return text
    return "".join(
        character if character in keep else hidden.get(i, character)
        for i, character in enumerate(text)
    )
