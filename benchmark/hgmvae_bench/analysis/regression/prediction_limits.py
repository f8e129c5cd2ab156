"""Prediction limits of the regression check: moderated variances and limit factors."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Floats = NDArray[np.float64]

MAX_DEGREES = 1e6
"""Degrees of freedom from which on a t distribution is practically normal."""


class Variances(NamedTuple):
    """Variances of several groups, with their degrees of freedom.

    Attributes:
        values: variances (C,), at least 0.
        degrees: degrees of freedom (C,), at least 1.
    """

    values: Floats
    degrees: Floats


def moderate(sample: Variances) -> Variances:
    """Raise low variances towards the level that similar groups have in common.

    Empirical Bayes (Smyth 2004, "Linear models and empirical Bayes methods for assessing
    differential expression in microarray experiments", section 6.2): the true variances are
    assumed to scatter around s0² like scaled inverse chi-squared variables with d0 degrees of
    freedom. Both parameters are estimated from the mean and the variance of the logarithms. The
    moderated variance of a group is (d0 s0² + d s²) / (d0 + d) with d0 + d degrees of freedom, at
    most those of all groups together. If the groups differ much, d0 is small and each group keeps
    its own variance.

    No variance is lowered, because lowering large variances would raise false alarms.

    Args:
        sample: the groups' own variances.
    """
    values, degrees = sample
    # A group without any spread has no information on the scale of the others.
    spread = values > 0
    if spread.sum() < 2:
        return sample
    half = degrees[spread] / 2
    logs = np.log(values[spread]) - special.digamma(half) + np.log(half)
    # Variance of the logarithms beyond chi-squared noise.
    excess = logs.var(ddof=1) - special.polygamma(1, half).mean()
    prior_degrees = MAX_DEGREES
    if excess > 0:
        prior_degrees = min(2 * _inverse_trigamma(excess), MAX_DEGREES)
    prior = np.exp(logs.mean() + special.digamma(prior_degrees / 2) - np.log(prior_degrees / 2))
    total = prior_degrees + degrees
    moderated = (prior_degrees * prior + degrees * values) / total
    return Variances(np.maximum(values, moderated), np.minimum(total, degrees.sum()))


def _inverse_trigamma(value: float) -> float:
    """Compute the x > 0 whose trigamma is ``value`` > 0."""
    # 1/x + 1/2x² < trigamma(x) < 1/x + 1/x², solved for x.
    low, high = ((1 + np.sqrt(1 + 4 * a * value)) / (2 * value) for a in (0.5, 1.0))
    root: float = optimize.brentq(lambda x: special.polygamma(1, x) - value, low, high)
    return root


@functools.cache
def prediction_factor(level: float, degrees: float, n_old: int, n_new: int) -> float:
    """Number of standard deviations that all new values exceed with a probability of ``level``.

    All new values exceed it on the same side of the old mean. For normal values, this is the factor
    c of the two-sided prediction limits mean ± c · s that contain at least one of ``n_new`` further
    values with a probability of 1 - ``level`` (Davis & McNichols 1987, "One-sided intervals for at
    least p of m observations", Technometrics 29). It solves

    E[Φ(-(c s + m))^n_new] = level / 2,  s² ~ χ²(degrees) / degrees,  m ~ N(0, 1 / n_old).

    For one new value it is Student's t times √(1 + 1 / n_old). It is 0 if all new values lie on
    one side of the mean with a probability below ``level`` anyway.

    Args:
        level: probability of a false alarm, below 0.5.
        degrees: degrees of freedom of s².
        n_old: number of values that the mean is taken over.
        n_new: number of new values.
    """
    node, weight, normal, normal_weight = _quadrature()
    # s at the quantiles of its distribution.
    deviation = np.sqrt(2 * special.gammaincinv(degrees / 2, node) / degrees)
    shift = normal / np.sqrt(n_old)

    def log_excess(factor: float) -> float:
        beyond = np.exp(n_new * special.log_ndtr(-factor * deviation[:, None] - shift))
        return float(np.log(weight @ beyond @ normal_weight) - np.log(level / 2))

    if log_excess(0.0) <= 0:
        return 0.0
    # The limits are widest for a single new value.
    high = stats.t.isf(level / 2, degrees) * np.sqrt(1 + 1 / n_old) * 1.01
    factor: float = optimize.brentq(log_excess, 0.0, high, xtol=1e-8)
    return factor


@functools.cache
def _quadrature() -> tuple[Floats, Floats, Floats, Floats]:
    """Nodes and weights of quadratures over probabilities in (0, 1) and over N(0, 1)."""
    node, weight = np.polynomial.legendre.leggauss(80)
    node, weight = (node + 1) / 2, weight / 2
    normal, normal_weight = np.polynomial.hermite_e.hermegauss(32)
    # Nodes are dense near 0, where s is small, because the tails come from there.
    power = 8
    probability, stretch = node**power, power * node ** (power - 1)
    return probability, weight * stretch, normal, normal_weight / normal_weight.sum()
