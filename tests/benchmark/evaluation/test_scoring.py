"""Scoring: what is recorded if a metric has no value."""

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
    ("home", "error", "reason"),
    [
        ("/home/me", MetricMissingError("no file in /home/me/w"), "no file in ~/w"),
        ("/home/me", OSError("cannot read /home/me/w"), "error: OSError: cannot read ~/w"),
        ("/home/me", MetricMissingError("no file in /home/mean/w"), "no file in /home/mean/w"),
        ("/", MetricMissingError("no file in /data/w"), "no file in /data/w"),
    ],
)
def test_reasons_do_not_contain_the_home_folder(home, error, reason, monkeypatch):
    """Records are published."""
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(scoring, "METRICS", {"failing": Failing(error)})
    assert scoring.score(None, ["failing"])["failing"].missing == reason
