"""Scoring: what is recorded if a metric has no value."""

from pathlib import Path

import pytest

from hgmvae_bench.evaluation import scoring
from hgmvae_bench.plugins.protocols import MetricMissingError


class Failing:
    """Metric that raises an error."""

    def __init__(self, error):
        self.error = error

    def compute(self, outputs):
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MetricMissingError("no file in {}/weights"), "no file in ~/weights"),
        (OSError("cannot read {}/weights"), "error: OSError: cannot read ~/weights"),
    ],
)
def test_reasons_do_not_contain_the_home_folder(error, reason, monkeypatch):
    """Records are published."""
    monkeypatch.setenv("HOME", "/home/somebody")
    failing = Failing(type(error)(str(error).format(Path.home())))
    monkeypatch.setattr(scoring, "METRICS", {"failing": failing})
    assert scoring.score(None, ["failing"])["failing"].missing == reason
