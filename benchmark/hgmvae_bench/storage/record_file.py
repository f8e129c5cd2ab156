"""Record files: their names, their content hash, and errors that name the file.

A file holds one record as JSON and the SHA-256 of these bytes. Its name holds the run key
and distinguishes a first record, a retry (``.retry-1``) and metrics added later (``.scores-1``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar

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
    """Unusable results folder; the message names the file and says what to do."""


class RecordFileError(Exception):
    """Invalid file in a folder of records.

    Attributes:
        damaged: whether moving the file aside repairs the folder; False for a record of another
            version of the suite.
    """

    def __init__(self, reason: str, *, damaged: bool = True) -> None:
        super().__init__(reason)
        self.damaged = damaged


class RecordFileName(NamedTuple):
    """Parsed name of a record file.

    Attributes:
        key: of the run or control.
        kind: ``retry`` for the first and every later record, ``scores`` for metrics added later.
        number: 0 for the first record.
    """

    key: str
    kind: Kind
    number: int


@dataclass(frozen=True)
class RecordFile(Generic[Content]):
    """A valid record file.

    Attributes:
        name: parsed file name.
        sha256: SHA-256 of the content's bytes.
        content: the record.
    """

    name: RecordFileName
    sha256: str
    content: Content


def record_file_name(key: str, kind: Kind, number: int) -> str:
    """File name of a record; the first record of a run has no number."""
    return f"{key}.{kind}-{number}.json" if number else f"{key}.json"


def parse_file_name(name: str) -> RecordFileName:
    """Parse the name of a record file; the inverse of `record_file_name`.

    Raises:
        RecordFileError: if no record has such a name.
    """
    match = _FILE_NAME.fullmatch(name)
    if match is None:
        raise RecordFileError("not the name of a record file")
    kind: Kind = "scores" if match["kind"] == "scores" else "retry"
    return RecordFileName(match["key"], kind, int(match["number"] or 0))


def serialize(content: BaseModel) -> bytes:
    """Bytes of a record's file."""
    body = content.model_dump_json(indent=1).encode()
    return _HEAD % hashlib.sha256(body).hexdigest().encode() + body + _TAIL


def parse_file(name: str, raw: bytes, content_type: type[Content]) -> RecordFile[Content]:
    """Check the hash of a record file, then parse and validate its content.

    Args:
        name: of the file.
        raw: its bytes.
        content_type: model of the content.

    Raises:
        RecordFileError: if the hash does not match, the content is not a valid record of that
            type, or the record belongs to another key.
    """
    parsed_name = parse_file_name(name)
    # The hash covers the bytes as they are in the file, so that nothing is parsed to check it.
    body = raw[_HEAD_LENGTH : -len(_TAIL)]
    sha256 = hashlib.sha256(body).hexdigest()
    if raw != _HEAD % sha256.encode() + body + _TAIL:
        raise RecordFileError("truncated or edited (its content does not match its hash)")
    try:
        content = content_type.model_validate_json(body)
    except ValidationError as error:
        raise _invalid_record(error) from error
    if content.key != parsed_name.key:
        raise RecordFileError(f"wrong file name: it holds the record of {content.key}")
    return RecordFile(parsed_name, sha256, content)


def _invalid_record(error: ValidationError) -> RecordFileError:
    """Error that names the first invalid field."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    where = ".".join(str(part) for part in errors[0]["loc"])
    reason = f"{where}: {errors[0]['msg']}" if where else errors[0]["msg"]
    is_other_version = any(each["loc"] == ("schema_version",) for each in errors) or all(
        each["type"] == "extra_forbidden" for each in errors
    )
    if is_other_version:
        reason = f"record of another version of the suite ({reason})"
        return RecordFileError(reason, damaged=False)
    return RecordFileError(f"invalid record ({reason})")


@contextmanager
def as_store_errors(
    path: Path, action: Literal["read", "written"] = "written", *, may_be_gone: bool = False
) -> Iterator[None]:
    """Turn an ``OSError`` or `RecordFileError` into a `StoreError` that names the path.

    Args:
        path: of the file or folder.
        action: what the block does with it.
        may_be_gone: pass a ``FileNotFoundError`` on unchanged.
    """
    try:
        yield
    except RecordFileError as error:
        raise StoreError(f"{path}: {error}") from error
    except OSError as error:
        if may_be_gone and isinstance(error, FileNotFoundError):
            raise
        raise StoreError(f"{path}: cannot be {action}: {error.strerror}") from error
