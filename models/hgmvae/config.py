"""Configuration of HGMVAE."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass
from pythae.models.base import BaseAEConfig

Fisher = Literal["none", "sample_raw", "sample_log", "batch_log", "batch_log_det", "batch_share"]


@dataclass
class HGMVAEConfig(BaseAEConfig):  # type: ignore[misc]
    """Settings of :class:`~hgmvae.model.HGMVAE`.

    The loss is Eq. 14 with a weight for each term:

    reconstruction + w_prior_weight · w-prior + Σ (weight · term of the z-prior)
    + conditional_prior_weight · conditional prior − fisher_weight · Fisher.

    Training has three stages, counted in epochs from 1. The warm-up, epochs 1 to
    ``warmup_epochs``, leaves out the two terms that need the global mixture, which is fitted to
    the codes of the last warm-up epoch. Then the conditional prior joins, and after
    ``fisher_delay`` more epochs the Fisher term. A call without an epoch is past all stages.

    Attributes:
        reconstruction_loss: ``bce`` or ``mse``, summed over pixels.
        coefficient_prior: p(w); ``gaussian`` is HGMVAE-G, ``uniform`` is HGMVAE-U.
        n_components: K, clusters of the global mixture and, by default, Gaussians of an image's
            posterior.
        posterior_components: P, Gaussians of an image's posterior; None stands for K.
        subcomponents: components of the global mixture per cluster (M = K · subcomponents).
        mixture_fits: fits of the global mixture; the one with the most even clusters counts.
        w_prior_weight: weight of KL(q(w|y) ‖ p(w)).
        mutual_information_weight: weight of the z-prior's index-code mutual information.
        component_correlation_weight: weight of its total correlation over components (Eq. 6).
        dimension_correlation_weight: weight of its total correlation over the dimensions of each
            component (C of Eq. 7).
        dimension_kl_weight: weight of its dimension-wise KL (D of Eq. 7).
        estimator: how the z-prior's terms are estimated where their weights differ, and for the
            history: ``gaussian`` from the batch's second moments, or ``weighted``, the
            minibatch-weighted sampling of β-TCVAE and HFVAE.
        conditional_prior: reading of Eq. 4. ``uniform`` and ``shared`` are Eq. 4 as printed, with
            ŵ uniform over the clusters or equal to the image's own weights; ``responsibility``
            is the divergence of q(x|y) to the global components, weighted by their
            responsibilities; ``none`` leaves the term out.
        conditional_prior_weight: its weight.
        fisher: form of the Fisher term. ``sample_raw`` is Eq. 13, ``sample_log`` log(1 + Eq. 13).
            The others take the scatter of the batch's latents, with the clusters as classes:
            ``batch_log`` is Σ_d log(1 + S_B / S_W) by dimension, ``batch_log_det`` is
            log det(I + S_W⁻¹ S_B), ``batch_share`` the trace of (S_W + S_B)⁻¹ S_B, which is
            bounded. ``none`` leaves it out.
        fisher_weight: its weight; it is maximised.
        warmup_epochs: epochs of the warm-up.
        fisher_delay: epochs between the warm-up and the Fisher term.

    Raises:
        ValueError: if a count is below its least value, or a weight negative or not finite.
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
