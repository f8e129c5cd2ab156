"""Configuration of HGMVAE."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass
from pythae.models.base import BaseAEConfig

MAX_COUNT = 10_000
"""Largest number of components and of fits."""

Fisher = Literal["none", "sample_raw", "sample_log", "batch_log", "batch_log_det", "batch_share"]


@dataclass
class HGMVAEConfig(BaseAEConfig):  # type: ignore[misc]
    """Settings of :class:`~hgmvae.model.HGMVAE`.

    The loss is Eq. 14 with a weight for each term:

    reconstruction + w_prior_weight · w-prior + Σ (weight · term of the z-prior)
    + conditional_prior_weight · conditional prior − fisher_weight · Fisher.

    Training has three stages, in epochs counted from 1. The warm-up, epochs 1 to ``warmup_epochs``,
    leaves out the two terms that need the global mixture, which is then fitted to the codes of the
    last warm-up epoch. The conditional prior joins after the warm-up, and the Fisher term
    ``fisher_delay`` epochs later. A call without an epoch includes all terms.

    Attributes:
        reconstruction_loss: ``bce`` or ``mse``, summed over pixels.
        coefficient_prior: p(w); ``gaussian`` is HGMVAE-G, ``uniform`` is HGMVAE-U.
        n_components: K, clusters of the global mixture and, by default, components (Gaussians) of
            an image's posterior.
        posterior_components: P, components of an image's posterior; None stands for K.
        subcomponents: average number of Gaussians per cluster of the global mixture, so that it has
            M = K · subcomponents Gaussians.
        mixture_fits: number of fits of the global mixture; the one with the most even clusters is
            taken.
        w_prior_weight: weight of KL(q(w|y) ‖ p(w)).
        mutual_information_weight: weight of the index-code mutual information of the z-prior.
        component_correlation_weight: weight of its total correlation over components (Eq. 6).
        dimension_correlation_weight: weight of its total correlation over the dimensions of each
            component (C of Eq. 7).
        dimension_kl_weight: weight of its dimension-wise KL (D of Eq. 7).
        estimator: estimator of the z-prior's terms, for the history and for unequal weights:
            ``gaussian`` uses the second moments of the batch, ``weighted`` the minibatch-weighted
            sampling of β-TCVAE and HFVAE. With equal weights the sum has a closed form.
        conditional_prior: reading of Eq. 4. ``uniform`` and ``shared`` are Eq. 4 as printed, with ŵ
            uniform over the clusters or equal to the image's own weights. ``responsibility`` is the
            divergence of q(x|y) from the Gaussians of the global mixture, weighted by their
            responsibilities. ``none`` leaves the term out.
        conditional_prior_weight: weight of the conditional prior.
        fisher: form of the Fisher term. ``sample_raw`` is Eq. 13 and ``sample_log`` is
            log(1 + Eq. 13). The others use the scatter of the batch's latents between and within
            clusters: ``batch_log`` is Σ_d log(1 + S_B / S_W) per dimension, ``batch_log_det`` is
            log det(I + S_W⁻¹ S_B), and ``batch_share`` is tr((S_W + S_B)⁻¹ S_B), which is bounded.
            ``none`` leaves the term out.
        fisher_weight: weight of the Fisher term, which is maximised.
        warmup_epochs: epochs of the warm-up.
        fisher_delay: epochs between the end of the warm-up and the Fisher term.

    Raises:
        ValueError: if a count is below its minimum or above `MAX_COUNT`, a weight is negative or
            not finite, or ``conditional_prior`` is ``shared`` and P differs from K.
    """

    reconstruction_loss: Literal["bce", "mse"] = "mse"
    coefficient_prior: Literal["gaussian", "uniform"] = "uniform"
    n_components: int = 10
    posterior_components: int | None = None
    subcomponents: int = 4
    mixture_fits: int = 4
    w_prior_weight: float = 0.01
    mutual_information_weight: float = 0.01
    component_correlation_weight: float = 0.01
    dimension_correlation_weight: float = 0.01
    dimension_kl_weight: float = 0.01
    estimator: Literal["gaussian", "weighted"] = "gaussian"
    conditional_prior: Literal["none", "uniform", "shared", "responsibility"] = "responsibility"
    conditional_prior_weight: float = 1.0
    fisher: Fisher = "batch_share"
    fisher_weight: float = 10.0
    warmup_epochs: int = 4
    fisher_delay: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        minima = {
            "latent_dim": 1,
            "n_components": 1,
            "posterior_components": 1,
            "subcomponents": 1,
            "mixture_fits": 1,
            "warmup_epochs": 0,
            "fisher_delay": 0,
        }
        for name, minimum in minima.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name} is {value}; it must be at least {minimum}")
        for name in ("n_components", "posterior_components", "subcomponents", "mixture_fits"):
            if (getattr(self, name) or 0) > MAX_COUNT:
                raise ValueError(f"{name} is too large; it must be at most {MAX_COUNT:,}")
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name.endswith("_weight") and not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be finite and at least 0")
        if self.conditional_prior == "shared" and self.n_gaussians != self.n_components:
            raise ValueError(
                f"conditional_prior 'shared' takes the weights of an image's {self.n_gaussians} "
                f"Gaussians for those of {self.n_components} clusters; posterior_components must "
                "equal n_components"
            )

    @property
    def n_gaussians(self) -> int:
        """P, the number of Gaussians of an image's posterior."""
        return self.posterior_components or self.n_components

    @property
    def z_prior_weights(self) -> tuple[float, float, float, float]:
        """Weights of the z-prior's terms, in the order of `hgmvae.losses.ZPrior`."""
        return (
            self.mutual_information_weight,
            self.component_correlation_weight,
            self.dimension_correlation_weight,
            self.dimension_kl_weight,
        )

    @property
    def uses_mixture(self) -> bool:
        """Whether a term of the loss uses the global mixture."""
        return self.conditional_prior != "none" or self.fisher.startswith("batch_")
