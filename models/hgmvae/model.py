"""HGMVAE: a VAE whose latent vector is a weighted sum of Gaussians of the image.

Shapes: B images, P components (Gaussians) of an image's posterior, K clusters and M Gaussians of
the global mixture, L latent dimensions. P equals K by default. Equation numbers are the paper's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pythae.models.base import BaseAE
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor, nn

from hgmvae import losses
from hgmvae.aggregate import gaussian_aggregate, weighted_aggregate
from hgmvae.code_buffer import CodeBuffer
from hgmvae.config import HGMVAEConfig
from hgmvae.feature_mlp import FeatureMLP
from hgmvae.mixture import MAX_CODES, Components, GlobalMixture, Moments, latent_moments
from hgmvae.posterior import Draw, Posterior

LOG_VAR_RANGE = (-10.0, 4.0)
"""Range to which posterior log-variances are clamped: standard deviations from 0.007 to 7.4."""

BATCH_FISHER = {
    "batch_log": losses.fisher_by_dimension,
    "batch_log_det": losses.fisher_log_det,
    "batch_share": losses.fisher_share,
}
"""Forms of the Fisher term that need clusters."""


class Assignment(NamedTuple):
    """Soft assignment of a batch of latents to the Gaussians of the global mixture.

    Attributes:
        components: the Gaussians and clusters of the mixture.
        responsibilities: posterior probabilities of the Gaussians (B, M).
    """

    components: Components
    responsibilities: Tensor


class HGMVAE(BaseAE):  # type: ignore[misc]
    """Hierarchical disentanglement in a Gaussian mixture VAE (Zhou, Liu and Du 2024).

    Args:
        model_config: the settings.
        encoder: a trunk that returns features (B, F) as ``embedding`` and has F as its attribute
            ``feature_dim``; a small MLP if None.
        decoder: a pythae decoder from latents (B, L); pythae's MLP if None.

    Attributes:
        mixture: the global mixture; None if no term of the objective uses it.

    Raises:
        AttributeError: if ``encoder`` has no ``feature_dim``, or if ``model_config.input_dim`` is
            missing and a default network is needed.
    """

    def __init__(
        self,
        model_config: HGMVAEConfig,
        encoder: BaseEncoder | None = None,
        decoder: BaseDecoder | None = None,
    ) -> None:
        super().__init__(model_config=model_config, decoder=decoder)
        self.model_name = "HGMVAE"
        self.model_config.uses_default_encoder = encoder is None
        encoder = encoder or self._default_encoder()
        if not hasattr(encoder, "feature_dim"):
            raise AttributeError(
                f"{type(encoder).__name__} has no 'feature_dim', the number of features that it "
                "returns as 'embedding'"
            )
        self.set_encoder(encoder)
        self._add_heads(encoder.feature_dim)
        self.mixture = (
            GlobalMixture(model_config.n_components, model_config.subcomponents, self.latent_dim)
            if model_config.uses_mixture
            else None
        )
        self._kept = CodeBuffer(MAX_CODES if model_config.uses_mixture else 0, self.latent_dim)
        self._fit_seed = int(torch.randint(2**31 - 1, ()))

    def _default_encoder(self) -> FeatureMLP:
        """Build the default trunk."""
        if self.model_config.input_dim is None:
            raise AttributeError("the default encoder needs 'input_dim' in the model's config")
        return FeatureMLP(self.model_config.input_dim)

    def _add_heads(self, n_features: int) -> None:
        """Add the linear heads from features to the parameters of the posterior.

        On the simplex a single coefficient is 1 and needs no head.
        """
        config = self.model_config
        n_gaussians, gaussian_prior = config.n_gaussians, config.coefficient_prior == "gaussian"
        self.component_mean = nn.Linear(n_features, n_gaussians * self.latent_dim)
        self.component_log_var = nn.Linear(n_features, n_gaussians * self.latent_dim)
        self.coefficient_mean = (
            nn.Linear(n_features, n_gaussians) if gaussian_prior or n_gaussians > 1 else None
        )
        self.coefficient_log_var = nn.Linear(n_features, n_gaussians) if gaussian_prior else None

    def posterior(self, data: Tensor) -> Posterior:
        """Encode images (B, C, H, W)."""
        features = self.encoder(data)["embedding"]
        shape = (-1, self.model_config.n_gaussians, self.latent_dim)
        coefficient_mean = (
            features.new_ones(len(features), 1)
            if self.coefficient_mean is None
            else self.coefficient_mean(features)
        )
        return Posterior(
            component_mean=self.component_mean(features).view(shape),
            component_log_var=self.component_log_var(features).view(shape).clamp(*LOG_VAR_RANGE),
            coefficient_mean=(
                coefficient_mean.softmax(-1)
                if self.coefficient_log_var is None
                else coefficient_mean
            ),
            coefficient_log_var=(
                None
                if self.coefficient_log_var is None
                else self.coefficient_log_var(features).clamp(*LOG_VAR_RANGE)
            ),
        )

    def forward(
        self,
        inputs: dict[str, Tensor],
        epoch: int | None = None,
        dataset_size: int | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Compute the objective on a batch.

        In every stage the loss has the value of the whole objective and the gradient of the
        stage's terms alone. Losses of different stages are therefore comparable, which pythae's
        trainer relies on when it keeps the model of the best epoch.

        Args:
            inputs: ``data``, images (B, C, H, W) in [0, 1].
            epoch: the epoch, from 1; None is after the last stage.
            dataset_size: number of training images, for the ``weighted`` estimator; B if None.
            **kwargs: ignored (pythae's trainer passes ``uses_ddp``).

        Returns:
            ``loss`` (Eq. 14 with the configured weights); ``recon_x`` (B, C, H, W); ``z``, the
            latent x of Eq. 1, (B, L); and, unweighted and in nats, ``recon_loss``, ``w_prior``,
            ``z_prior`` (undivided), its parts ``mutual_information``,
            ``total_correlation_components``, ``total_correlation_dimensions`` and
            ``dimension_kl``, ``conditional_prior`` and ``fisher`` (0 if left out).
        """
        config, data = self.model_config, inputs["data"]
        posterior = self.posterior(data)
        draw = posterior.draw()
        recon_x = self.decoder(draw.latent)["reconstruction"]

        recon_loss = losses.reconstruction_term(recon_x, data, config.reconstruction_loss)
        w_prior = self._w_prior(posterior)
        z_prior, parts, weighted_z_prior = self._z_prior(
            posterior, draw.components, dataset_size or len(data)
        )
        moments = latent_moments(
            draw.coefficients, posterior.component_mean, posterior.component_log_var
        )
        if self.training and self.mixture is not None and epoch == config.warmup_epochs:
            self._kept.keep(posterior.code(), moments.variance)
        assignment = self._assignment(draw.latent)
        conditional_prior = self._conditional_prior(posterior, draw, moments, assignment)
        fisher = self._fisher(posterior, draw, moments, assignment)

        loss = recon_loss + config.w_prior_weight * w_prior + weighted_z_prior
        loss = loss + config.conditional_prior_weight * _detach_before_start(
            conditional_prior, epoch, config.warmup_epochs
        )
        loss = loss + -config.fisher_weight * _detach_before_start(
            fisher, epoch, config.warmup_epochs + config.fisher_delay
        )
        return ModelOutput(
            loss=loss,
            recon_loss=recon_loss,
            w_prior=w_prior,
            z_prior=z_prior,
            mutual_information=parts.mutual_information,
            total_correlation_components=parts.component_correlation,
            total_correlation_dimensions=parts.dimension_correlation,
            dimension_kl=parts.dimension_kl,
            conditional_prior=conditional_prior,
            fisher=fisher,
            recon_x=recon_x,
            z=draw.latent,
        )

    def stage(self, epoch: int) -> int:
        """Return the number of the stage; epochs of one stage have the same training step.

        The last warm-up epoch is a separate stage, because it keeps the codes.
        """
        warmup, delay = self.model_config.warmup_epochs, self.model_config.fisher_delay
        return sum(epoch > end for end in (warmup - 1, warmup, warmup + delay))

    def _w_prior(self, posterior: Posterior) -> Tensor:
        """Compute the divergence of q(w|y) from the configured p(w), first term of Eq. 3."""
        if posterior.coefficient_log_var is None:
            return losses.uniform_w_prior(posterior.coefficient_mean)
        return losses.gaussian_w_prior(posterior.coefficient_mean, posterior.coefficient_log_var)

    def _z_prior(
        self, posterior: Posterior, components: Tensor, dataset_size: int
    ) -> tuple[Tensor, losses.ZPrior, Tensor]:
        """Compute the undivided z-prior, its parts, and the weighted sum that is trained.

        Args:
            posterior: parameters of q(z|y).
            components: z drawn from it (B, P, L).
            dataset_size: number of training images.
        """
        config = self.model_config
        mean, log_var = posterior.component_mean, posterior.component_log_var
        weights = config.z_prior_weights
        plain = losses.plain_z_prior(mean, log_var)
        # With equal weights the sum is a multiple of the closed form; the parts are only recorded.
        equal_weights = len(set(weights)) == 1
        with torch.set_grad_enabled(torch.is_grad_enabled() and not equal_weights):
            aggregate = (
                gaussian_aggregate(mean, log_var)
                if config.estimator == "gaussian"
                else weighted_aggregate(components, mean, log_var, dataset_size)
            )
            parts = losses.decompose_z_prior(mean, log_var, aggregate)
        if equal_weights:
            return plain, parts, weights[0] * plain
        weighted = sum(
            (weight * part for weight, part in zip(weights, parts, strict=True)),
            start=plain.new_zeros(()),
        )
        return plain, parts, weighted

    def _assignment(self, latent: Tensor) -> Assignment | None:
        """Assign latents (B, L) to the global mixture; None if the model has none."""
        if self.mixture is None:
            return None
        components = self.mixture.components()
        return Assignment(components, components.responsibilities(latent))

    def _conditional_prior(
        self, posterior: Posterior, draw: Draw, moments: Moments, assignment: Assignment | None
    ) -> Tensor:
        """Compute the configured reading of Eq. 4, a scalar."""
        reading = self.model_config.conditional_prior
        if assignment is None or reading == "none":
            return draw.latent.new_zeros(())
        components = assignment.components
        if reading == "responsibility":
            divergence = components.divergence(*moments)
            return losses.responsibility_prior(
                assignment.responsibilities, components.log_weights, divergence
            )
        own = posterior.mixture_weights(draw.coefficients)
        n_clusters = self.model_config.n_components
        clusters = (
            own if reading == "shared" else own.new_full((len(own), n_clusters), 1 / n_clusters)
        )
        divergence = components.divergence(
            posterior.component_mean, posterior.component_log_var.exp()
        )
        return losses.mixture_cross_kl(own, components.by_component(clusters), divergence)

    def _fisher(
        self, posterior: Posterior, draw: Draw, moments: Moments, assignment: Assignment | None
    ) -> Tensor:
        """Compute the configured form of the Fisher term (Eqs. 8 to 13), a scalar."""
        form = self.model_config.fisher
        if form == "none":
            return draw.latent.new_zeros(())
        if assignment is not None and form in BATCH_FISHER:
            membership = assignment.components.by_cluster(assignment.responsibilities)
            return BATCH_FISHER[form](losses.batch_scatter(membership, *moments))
        criterion = losses.sample_fisher(
            draw.coefficients, posterior.component_mean, posterior.component_log_var
        )
        return (criterion if form == "sample_raw" else criterion.log1p()).mean()

    def latent_code(self, data: Tensor) -> Tensor:
        """Encode images (B, C, H, W) as codes (B, L): Σ_k E[w_k] μ_k, the mean of x."""
        return self.posterior(data).code()

    def latent_posterior(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, both (B, L), of x (Eq. 1) given images (B, C, H, W).

        Coefficients that are random make this an approximation (`Posterior.moments`).
        """
        mean, variance = self.posterior(data).moments()
        return mean, variance.log()

    def _prior(self, mixture: GlobalMixture) -> Components:
        """Return the global mixture as the prior of x.

        With Eq. 4 as printed the clusters are equally likely, because E[w] is uniform under p(w).
        """
        components = mixture.components()
        if self.model_config.conditional_prior in {"uniform", "shared"}:
            return components.with_equal_clusters()
        return components

    def component_probabilities(self, data: Tensor) -> Tensor:
        """Return the probabilities of the clusters given images (B, C, H, W).

        With a global mixture they are the responsibilities of its clusters for the code, (B, K).
        Without one they are the mixture weights of the image's own posterior, (B, P).
        """
        posterior = self.posterior(data)
        if self.mixture is None:
            return posterior.mixture_weights(posterior.coefficient_mean)
        prior = self._prior(self.mixture)
        return prior.by_cluster(prior.responsibilities(posterior.code()))

    def check_epochs(self, epochs: int) -> None:
        """Check that every term of the objective is trained.

        Raises:
            ValueError: if the last stage starts after ``epochs``.
        """
        config = self.model_config
        terms = {
            "conditional prior": (config.conditional_prior, config.conditional_prior_weight, 0),
            "Fisher term": (config.fisher, config.fisher_weight, config.fisher_delay),
        }
        for term, (form, weight, delay) in terms.items():
            needed = config.warmup_epochs + delay + 1
            if form != "none" and weight > 0 and epochs < needed:
                settings = f"warmup_epochs = {config.warmup_epochs}"
                if delay:
                    settings += f" and fisher_delay = {delay}"
                raise ValueError(
                    f"HGMVAE trains its {term} from epoch {needed} on ({settings}), so that "
                    f"{epochs} epochs are too few; train for longer, or lower these settings"
                )

    def embed(self, inputs: Tensor) -> Tensor:
        """Return deterministic codes (B, L); pythae's name for `latent_code`."""
        return self.latent_code(inputs)

    def reconstruct(self, inputs: Tensor) -> Tensor:
        """Decode the deterministic codes of images: (B, C, H, W) to (B, C, H, W)."""
        reconstruction: Tensor = self.decoder(self.latent_code(inputs))["reconstruction"]
        return reconstruction

    def predict(self, inputs: Tensor) -> ModelOutput:
        """Return codes ``embedding`` (B, L) and their images ``recon_x`` (B, C, H, W)."""
        code = self.latent_code(inputs)
        return ModelOutput(recon_x=self.decoder(code)["reconstruction"], embedding=code)

    def prior_log_density(self, latent: Tensor) -> Tensor:
        """Return log p(x), in nats, (N,), of latents (N, L) under the global mixture.

        The weights of its Gaussians are those of :meth:`sample_latent`.

        Raises:
            NotImplementedError: without a conditional prior. The density of x = Σ_k w_k z_k then
                has no closed form for the coefficients on the simplex.
        """
        config = self.model_config
        if self.mixture is None or config.conditional_prior == "none":
            raise NotImplementedError("HGMVAE without a conditional prior has no prior density")
        prior = self._prior(self.mixture)
        return (prior.log_density(latent) + prior.log_weights).logsumexp(dim=1)

    @torch.no_grad()
    def sample_latent(self, n_samples: int) -> Tensor:
        """Draw latents (n_samples, L) from the prior with torch's global generator.

        The prior is the global mixture. Without a conditional prior it is that of x = Σ_k w_k z_k
        (Eq. 1) with z ~ N(0, I) and w ~ p(w), which on the simplex is the flat Dirichlet
        distribution.
        """
        config = self.model_config
        if self.mixture is not None and config.conditional_prior != "none":
            return self._prior(self.mixture).sample(n_samples)
        parameter = self.component_mean.weight
        components = torch.randn(
            n_samples, config.n_gaussians, self.latent_dim, device=parameter.device
        )
        weights = torch.randn_like(components[..., 0])
        if config.coefficient_prior == "uniform":
            # Normalised exponential variables are uniform on the simplex.
            weights = torch.empty_like(weights).exponential_()
            weights = weights / weights.sum(-1, keepdim=True)
        return (weights.unsqueeze(-1) * components).sum(1).to(parameter.dtype)

    def update(self) -> None:
        """Fit the global mixture after the last warm-up epoch (pythae's hook after each epoch).

        The kept codes are discarded, so that a checkpoint between epochs holds the whole state.
        Codes that are not finite are not fitted; the loss of the next step shows them.
        """
        codes, variances = self._kept.take()
        if self.mixture is not None and len(codes) and bool(codes.isfinite().all()):
            noise = variances.mean(0)
            self.mixture.fit(codes, noise, self._fit_seed, self.model_config.mixture_fits)

    @classmethod
    def _load_model_config_from_folder(cls, dir_path: str) -> HGMVAEConfig:
        """Read the config; pythae's own loader only knows pythae's models."""
        config: HGMVAEConfig = HGMVAEConfig.from_json_file(f"{dir_path}/model_config.json")
        return config


def _detach_before_start(term: Tensor, epoch: int | None, last_epoch_without: int) -> Tensor:
    """Detach a term from the gradient in the epochs up to ``last_epoch_without``."""
    return term if epoch is None or epoch > last_epoch_without else term.detach()
