"""What the records of a results folder say in short, kept so that a start need not read them all.

The index is a convenience: an entry counts only while its record's file is the very one that it was
made from (size, times and inode are the same), an index that is damaged or absent is made anew, and
whoever needs more than the summary reads the record itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from hgmvae_bench.utils.atomic_files import Files

PATH = "cache/records.index"

# Fewer new records than this are read faster than an index is written.
WORTHWHILE = 500

_HEAD = b"hgmvae-bench index 1 "


class Entry(NamedTuple):
    """What is known of one file.

    Attributes:
        version: of the file.
        sha256: of the record's content.
        summary: JSON of the part of the content that lists and tables need, on one line.
    """

    version: str
    sha256: str
    summary: bytes


def load(files: Files) -> dict[str, Entry]:
    """Entries by file name; none if there is no index or it cannot be trusted."""
    try:
        head, _, body = files.read(PATH).partition(b"\n")
    except OSError:
        return {}
    if head != _HEAD + hashlib.sha256(body).hexdigest().encode():
        return {}
    entries = {}
    for line in body.splitlines():
        name, version, sha256, summary = line.split(b"\t", 3)
        entries[name.decode()] = Entry(version.decode(), sha256.decode(), summary)
    return entries


def save(files: Files, entries: Mapping[str, Entry]) -> None:
    """Keep entries for the next start; where that is not possible, the next start reads records."""
    body = b"".join(
        b"%s\t%s\t%s\t%s\n"
        % (name.encode(), entry.version.encode(), entry.sha256.encode(), entry.summary)
        for name, entry in entries.items()
    )
    with suppress(OSError):
        files.write(PATH, _HEAD + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
