"""A run as a results folder knows it: its newest record, and the metrics that were added later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from pydantic_core import from_json

from hgmvae_bench.storage import index
from hgmvae_bench.storage.record_file import as_store_errors, parse, verify
from hgmvae_bench.storage.schema import MetricValue, Record, Status
from hgmvae_bench.utils.atomic_files import LocalFiles

Metric = TypeVar("Metric")

RECORDS = "records"
"""Folder of the records within that of the results."""


class Summary(NamedTuple):
    """The part of a record that lists and tables need; see `storage.schema.Record`."""

    key: str
    cell: str
    seed: int
    data_digest: str
    status: Status
    error: str | None
    n_parameters: int
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class StoredRun:
    """A run as a results folder knows it.

    Attributes:
        record: the newest record of the run.
        sha256: of the record's content.
        metrics: the record's metrics and those added later.
        retries: number that the newest record has in its name, 0 for the first.
        scorings: the highest number of metrics added later, 0 if none were.
    """

    record: Record
    sha256: str
    metrics: Mapping[str, MetricValue]
    retries: int = 0
    scorings: int = 0

    @property
    def summary(self) -> Summary:
        """What can be said without reading the whole record."""
        return Summary(*(getattr(self.record, name) for name in Summary._fields))


class IndexedRun(StoredRun):
    """A run whose record is read from its file when something beyond the summary is asked for."""

    def __init__(
        self, files: LocalFiles, name: str, entry: index.Entry, retries: int, scorings: int
    ) -> None:
        vars(self).update(
            sha256=entry.sha256, retries=retries, scorings=scorings, _files=files, _name=name
        )
        vars(self).update(_entry=entry, _scores=[])

    def add_scores(self, entry: index.Entry) -> None:
        """Take the metrics of one score record, if they belong to this record."""
        vars(self)["_scores"].append(entry)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = from_json(vars(self)["_entry"].summary)
        return facts

    @cached_property
    def summary(self) -> Summary:
        """What can be said without reading the whole record."""
        return Summary(*map(self._facts.__getitem__, Summary._fields))

    @cached_property
    def metrics(self) -> Mapping[str, MetricValue]:
        """The record's metrics and those added later."""
        metrics = self._facts["metrics"]
        for entry in vars(self)["_scores"]:
            score = from_json(entry.summary)
            if score["record_sha256"] == self.sha256:
                metrics = merge_metrics(metrics, score["metrics"], lambda m: m["value"] is None)
        return _Metrics(metrics)

    @cached_property
    def record(self) -> Record:
        """The newest record of the run, read from its file."""
        files, name = vars(self)["_files"], vars(self)["_name"]
        with as_store_errors(files.root / RECORDS / name, "read"):
            _, body = verify(files.read(f"{RECORDS}/{name}"))
            return parse(body, Record)


class _Metrics(Mapping[str, MetricValue]):
    """Metrics by name, each made when it is asked for: a plan only needs the names."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw = raw

    def __getitem__(self, name: str) -> MetricValue:
        return MetricValue.model_validate(self._raw[name])

    def __contains__(self, name: object) -> bool:
        return name in self._raw

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)


def merge_metrics(
    known: Mapping[str, Metric], later: Mapping[str, Metric], missing: Callable[[Metric], bool]
) -> dict[str, Metric]:
    """Metrics with those added later; a value stays where a later attempt came to none."""
    counting = {
        name: metric
        for name, metric in later.items()
        if not missing(metric) or name not in known or missing(known[name])
    }
    return {**known, **counting}
