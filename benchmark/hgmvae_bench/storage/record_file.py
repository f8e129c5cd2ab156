"""The files of records: their names, the seal that shows damage, and how faults are told.

A file holds a record and the hash of its content, byte for byte. Its name says whose record it is,
and whether it is the first, one of a run that was done again, or one of metrics added later.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

from hgmvae_bench.storage.schema import ControlRecord, Record, ScoreRecord
from hgmvae_bench.utils.errors import UserError

Content = TypeVar("Content", Record, ScoreRecord, ControlRecord)
Kind = Literal["retry", "scores"]

_FILE_NAME = re.compile(r"(?P<key>.+?)(?:\.(?P<kind>retry|scores)-(?P<number>[1-9]\d*))?\.json")
_HEAD = b'{"sha256": "%s", "content":\n'
_HEAD_LENGTH = len(_HEAD) - 2 + 64
_TAIL = b"\n}\n"


class StoreError(UserError, RuntimeError):
    """A results folder that cannot be used; the message names the file and says what to do."""


class RecordFileError(Exception):
    """A file among the records that is none.

    Attributes:
        damaged: whether moving it aside mends the folder.
    """

    def __init__(self, reason: str, *, damaged: bool) -> None:
        super().__init__(reason)
        self.damaged = damaged


def record_file_name(key: str, kind: Kind, number: int) -> str:
    """Name of a run's record file: the first has no number, a retry and scores have one."""
    return f"{key}.{kind}-{number}.json" if number else f"{key}.json"


def parse_file_name(name: str) -> tuple[str, Kind, int]:
    """Run key, kind and number of a record file; the inverse of `record_file_name`.

    Raises:
        RecordFileError: if no record has such a name.
    """
    match = _FILE_NAME.fullmatch(name)
    if match is None:
        raise RecordFileError("not a name that a record has", damaged=True)
    return match["key"], match["kind"] or "retry", int(match["number"] or 0)  # type: ignore[return-value]


def serialize(content: BaseModel) -> bytes:
    """The file of a record."""
    body = content.model_dump_json(indent=1).encode()
    return _HEAD % hashlib.sha256(body).hexdigest().encode() + body + _TAIL


def verify(raw: bytes) -> tuple[str, bytes]:
    """Hash and content of a record file.

    The hash covers the bytes of the content as they stand in the file, so that it can be checked
    without parsing twice.

    Raises:
        RecordFileError: if they do not belong together.
    """
    body = raw[_HEAD_LENGTH : -len(_TAIL)]
    sha256 = hashlib.sha256(body).hexdigest()
    if raw != _HEAD % sha256.encode() + body + _TAIL:
        raise RecordFileError(
            "truncated or edited (its content does not match its hash)", damaged=True
        )
    return sha256, body


def parse(body: bytes, content_type: type[Content]) -> Content:
    """The record that a content is.

    Raises:
        RecordFileError: if it is none of that type.
    """
    try:
        return content_type.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise RecordFileError(
            f"not a record that this version reads: {where}: {fault['msg']}", damaged=False
        ) from error


@contextmanager
def as_store_errors(
    path: Path, done: Literal["read", "written"] = "written", *, may_be_gone: bool = False
) -> Iterator[None]:
    """Turn the operating system's refusal, or a damaged file, into an error that names the file.

    Args:
        path: of the file.
        done: what is to be done to it.
        may_be_gone: whether a ``FileNotFoundError`` is for the caller to deal with.
    """
    try:
        yield
    except RecordFileError as fault:
        raise StoreError(f"{path}: {fault}") from fault
    except OSError as error:
        if may_be_gone and isinstance(error, FileNotFoundError):
            raise
        raise StoreError(f"{path}: cannot be {done}: {error.strerror}") from error
