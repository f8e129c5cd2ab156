"""Diagnoses of collapse: the share of the latent space and of the components that is in use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hgmvae_bench.plugins.protocols import Direction, Need

if TYPE_CHECKING:
    from hgmvae_bench.plugins.protocols import Outputs

# Burda et al. call a dimension active above this variance of its posterior mean.
ACTIVE_VARIANCE = 0.01


def active_units(outputs: Outputs) -> float:
    """Count the latent dims whose code has a variance above 0.01 over the test images."""
    return float((outputs.test_codes.var(axis=0, dtype="float64") > ACTIVE_VARIANCE).sum())


def kl_per_dimension(outputs: Outputs) -> float:
    """Average KL(q(latent | image) ‖ N(0, I)) over test images and latent dims, in nats."""
    import numpy as np

    mean, log_var = (values.astype(np.float64) for values in outputs.posterior)
    return float((mean**2 + np.expm1(log_var) - log_var).mean() / 2)


def effective_components(outputs: Outputs) -> float:
    """Return the perplexity of the mean component probabilities of the test images."""
    import numpy as np

    usage = outputs.component_probabilities.mean(axis=0, dtype=np.float64)
    used = usage[usage > 0]
    return float(np.exp(-(used * np.log(used)).sum()))


@dataclass(frozen=True)
class CollapseMetric:
    """A diagnosis of collapse: a higher value is farther from collapse and not better.

    Attributes:
        measure: function that computes the value.
    """

    title: str
    range: tuple[float, float]
    reference: str
    needs: tuple[Need, ...]
    measure: Callable[[Outputs], float]
    direction: Direction = "neutral"
    cost: Literal["cheap", "expensive"] = "cheap"

    def compute(self, outputs: Outputs) -> float:
        """Return the value on the test images.

        Raises:
            MetricMissingError: if the model lacks what the metric needs.
        """
        return self.measure(outputs)

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Return split and number of images."""
        return {"split": "test", "n_images": len(outputs.test_images)}


_INFINITY = float("inf")

ACTIVE_UNITS = CollapseMetric(
    "Active units",
    (0, _INFINITY),
    "Burda, Grosse & Salakhutdinov 2016",
    ("codes",),
    active_units,
)
KL_PER_DIMENSION = CollapseMetric(
    "KL per dimension",
    (0, _INFINITY),
    "Kingma & Welling 2014, appendix B",
    ("posterior",),
    kl_per_dimension,
)
EFFECTIVE_COMPONENTS = CollapseMetric(
    "Effective components",
    (1, _INFINITY),
    "Jost 2006 (perplexity as an effective number)",
    ("component probabilities",),
    effective_components,
)
