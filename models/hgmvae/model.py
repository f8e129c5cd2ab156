"""HGMVAE: a VAE whose images have Gaussian mixtures of their own as posteriors."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pythae.models.base import BaseAE
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor, nn

from hgmvae import losses
from hgmvae.aggregate import gaussian_aggregate, weighted_aggregate
from hgmvae.config import HGMVAEConfig
from hgmvae.mixture import Components, GlobalMixture, latent_moments

LOG_VAR_RANGE = (-10.0, 4.0)
"""Posterior log-variances are clamped to this range: standard deviations from 0.007 to 7.4."""

MAX_CODES = 15_000
"""Codes to which the global mixture is fitted: the newest of the last warm-up epoch."""

BATCH_FISHER = {
    "batch_log": losses.fisher_by_dimension,
    "batch_log_det": losses.fisher_log_det,
    "batch_share": losses.fisher_share,
}
"""The forms of the Fisher term that need clusters."""


class Posterior(NamedTuple):
    """q(z|y) and q(w|y) of a batch.

    Attributes:
        component_mean: μ (B, K, L).
        component_log_var: log σ² (B, K, L).
        coefficient_mean: E[w] (B, K); on the simplex if p(w) is uniform.
        coefficient_log_var: log-variances of w (B, K); None where w is deterministic (uniform).
    """

    component_mean: Tensor
    component_log_var: Tensor
    coefficient_mean: Tensor
    coefficient_log_var: Tensor | None


class FeatureMLP(BaseEncoder):  # type: ignore[misc]
    """The default trunk: one hidden layer from any image shape to features (B, 512)."""

    feature_dim = 512

    def __init__(self, input_dim: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(input_dim), self.feature_dim), nn.ReLU()
        )

    def forward(self, x: Tensor) -> ModelOutput:
        """Map images (B, ...) to ``embedding``, the features (B, 512)."""
        return ModelOutput(embedding=self.layers(x))


class HGMVAE(BaseAE):  # type: ignore[misc]
    """Hierarchical disentanglement in a Gaussian mixture VAE (Zhou, Liu and Du 2024).

    Args:
        model_config: the settings.
        encoder: a trunk whose output's ``embedding`` is features (B, F), with F as its attribute
            ``feature_dim``; a small MLP if None.
        decoder: a pythae decoder from latents (B, L); pythae's MLP if None.

    Attributes:
        mixture: the global mixture; None where no term of the objective uses one.

    Raises:
        AttributeError: if ``encoder`` has no ``feature_dim``, or if a default network is asked
            for without ``model_config.input_dim``.
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
        if encoder is None:
            if model_config.input_dim is None:
                raise AttributeError("the default encoder needs 'input_dim' in the model's config")
            encoder = FeatureMLP(model_config.input_dim)
        if not hasattr(encoder, "feature_dim"):
            raise AttributeError(
                f"{type(encoder).__name__} has no 'feature_dim': HGMVAE needs to know how many "
                "features its encoder returns as 'embedding'"
            )
        self.set_encoder(encoder)

        n_components, n_features = model_config.n_components, encoder.feature_dim
        self.component_mean = nn.Linear(n_features, n_components * self.latent_dim)
        self.component_log_var = nn.Linear(n_features, n_components * self.latent_dim)
        self.coefficient_mean = nn.Linear(n_features, n_components)
        self.coefficient_log_var = (
            nn.Linear(n_features, n_components)
            if model_config.coefficient_prior == "gaussian"
            else None
        )
        uses_mixture = (
            model_config.conditional_prior != "none" or model_config.fisher in BATCH_FISHER
        )
        self.mixture = (
            GlobalMixture(n_components, model_config.subcomponents, self.latent_dim)
            if uses_mixture
            else None
        )
        # A ring of the newest codes, written in place: a step may be replayed from a CUDA graph.
        self._codes: Tensor
        self._variances: Tensor
        self._n_codes: Tensor
        rows = (MAX_CODES if uses_mixture else 0, self.latent_dim)
        self.register_buffer("_codes", torch.zeros(rows), persistent=False)
        self.register_buffer("_variances", torch.zeros(rows), persistent=False)
        self.register_buffer("_n_codes", torch.zeros((), dtype=torch.long), persistent=False)
        self._fit_seed = int(torch.randint(2**31 - 1, ()))

    def posterior(self, data: Tensor) -> Posterior:
        """Encode images (B, C, H, W)."""
        features = self.encoder(data)["embedding"]
        shape = (-1, self.model_config.n_components, self.latent_dim)
        coefficients = self.coefficient_mean(features)
        return Posterior(
            component_mean=self.component_mean(features).view(shape),
            component_log_var=self.component_log_var(features).view(shape).clamp(*LOG_VAR_RANGE),
            coefficient_mean=(
                coefficients.softmax(-1) if self.coefficient_log_var is None else coefficients
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
        """The objective on a batch.

        The loss has the value of the whole objective in every stage, and the gradient of the
        stage's terms alone. Values of different stages can so be compared, as pythae's trainer
        does when it keeps the best epoch's model.

        Args:
            inputs: ``data``, images (B, C, H, W) in [0, 1].
            epoch: the epoch, from 1; None is past all stages.
            dataset_size: number of training images, for the ``weighted`` estimator; the batch's
                size if None.
            **kwargs: ignored (pythae's trainer passes ``uses_ddp``).

        Returns:
            ``loss`` (Eq. 14 with the configured weights); ``recon_x`` (B, C, H, W); ``z``, the
            latent x of Eq. 1, (B, L); and, unweighted and in nats, ``recon_loss``, ``w_prior``,
            ``z_prior`` (undivided), its parts ``mutual_information``,
            ``total_correlation_components``, ``total_correlation_dimensions`` and
            ``dimension_kl``, ``conditional_prior`` and ``fisher`` (each 0 where left out).
        """
        config, data = self.model_config, inputs["data"]
        posterior = self.posterior(data)
        mean, log_var = posterior.component_mean, posterior.component_log_var
        weights = self._sample_coefficients(posterior)
        sample = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        latent = (weights.unsqueeze(-1) * sample).sum(1)
        recon_x = self.decoder(latent)["reconstruction"]

        recon_loss = losses.reconstruction_term(recon_x, data, config.reconstruction_loss)
        w_prior = (
            losses.uniform_w_prior(weights)
            if posterior.coefficient_log_var is None
            else losses.gaussian_w_prior(posterior.coefficient_mean, posterior.coefficient_log_var)
        )
        z_prior, parts, weighted_z_prior = self._z_prior(
            sample, mean, log_var, dataset_size or len(data)
        )
        moments = latent_moments(weights, mean, log_var)
        if self.training and self.mixture is not None and epoch == config.warmup_epochs:
            self._keep(self._code(posterior), moments[1])
        components = None if self.mixture is None else self.mixture.components()
        responsibilities = None if components is None else components.responsibilities(latent)
        conditional = self._conditional_prior(
            weights, mean, log_var, moments, components, responsibilities
        )
        fisher = self._fisher(weights, mean, log_var, moments, components, responsibilities)

        loss = recon_loss + config.w_prior_weight * w_prior + weighted_z_prior
        for term, weight, start in (
            (conditional, config.conditional_prior_weight, config.warmup_epochs),
            (fisher, -config.fisher_weight, config.warmup_epochs + config.fisher_delay),
        ):
            loss = loss + weight * (term if epoch is None or epoch > start else term.detach())
        return ModelOutput(
            loss=loss,
            recon_loss=recon_loss,
            w_prior=w_prior,
            z_prior=z_prior,
            mutual_information=parts.mutual_information,
            total_correlation_components=parts.component_correlation,
            total_correlation_dimensions=parts.dimension_correlation,
            dimension_kl=parts.dimension_kl,
            conditional_prior=conditional,
            fisher=fisher,
            recon_x=recon_x,
            z=latent,
        )

    def stage(self, epoch: int) -> int:
        """Number of the stage; a training step of one stage may be replayed in its epochs.

        The warm-up's last epoch is one of its own, because it keeps the codes.
        """
        config = self.model_config
        starts = (config.warmup_epochs - 1, config.warmup_epochs)
        return sum(epoch > start for start in (*starts, config.warmup_epochs + config.fisher_delay))

    @torch.no_grad()
    def _keep(self, codes: Tensor, variances: Tensor) -> None:
        """Keep codes and their variances (B, L) for the fit, in place of the oldest."""
        codes, variances = codes[-MAX_CODES:], variances[-MAX_CODES:]
        rows = (self._n_codes + torch.arange(len(codes), device=codes.device)) % MAX_CODES
        self._codes.index_put_((rows,), codes)
        self._variances.index_put_((rows,), variances)
        self._n_codes.add_(len(codes))

    def _sample_coefficients(self, posterior: Posterior) -> Tensor:
        """Draw w (B, K) from q(w|y)."""
        mean, log_var = posterior.coefficient_mean, posterior.coefficient_log_var
        if log_var is None:
            return mean
        return mean + torch.randn_like(mean) * (0.5 * log_var).exp()

    def _z_prior(
        self, sample: Tensor, mean: Tensor, log_var: Tensor, dataset_size: int
    ) -> tuple[Tensor, losses.ZPrior, Tensor]:
        """The z-prior undivided, its parts, and the weighted sum that is trained."""
        config = self.model_config
        weights = (
            config.mutual_information_weight,
            config.component_correlation_weight,
            config.dimension_correlation_weight,
            config.dimension_kl_weight,
        )
        plain = losses.plain_z_prior(mean, log_var)
        # Equal weights make the sum a multiple of the closed form: the parts are for the history.
        alike = len(set(weights)) == 1
        with torch.set_grad_enabled(torch.is_grad_enabled() and not alike):
            aggregate = (
                gaussian_aggregate(mean, log_var)
                if config.estimator == "gaussian"
                else weighted_aggregate(sample, mean, log_var, dataset_size)
            )
            parts = losses.decompose_z_prior(mean, log_var, aggregate)
        if alike:
            return plain, parts, weights[0] * plain
        weighted = sum(
            (weight * part for weight, part in zip(weights, parts, strict=True)),
            start=plain.new_zeros(()),
        )
        return plain, parts, weighted

    def _conditional_prior(
        self,
        weights: Tensor,
        mean: Tensor,
        log_var: Tensor,
        moments: tuple[Tensor, Tensor],
        components: Components | None,
        responsibilities: Tensor | None,
    ) -> Tensor:
        """The configured reading of Eq. 4."""
        reading = self.model_config.conditional_prior
        if components is None or responsibilities is None or reading == "none":
            return weights.new_zeros(())
        if reading == "responsibility":
            return losses.responsibility_prior(
                responsibilities, components.log_weights, components.divergence(*moments)
            )
        own = self._mixture_weights(weights)
        other = own if reading == "shared" else torch.full_like(own, 1 / own.shape[-1])
        return losses.mixture_cross_kl(
            own, components.by_component(other), components.divergence(mean, log_var.exp())
        )

    def _fisher(
        self,
        weights: Tensor,
        mean: Tensor,
        log_var: Tensor,
        moments: tuple[Tensor, Tensor],
        components: Components | None,
        responsibilities: Tensor | None,
    ) -> Tensor:
        """The configured form of the Fisher term."""
        form = self.model_config.fisher
        if form == "none":
            return weights.new_zeros(())
        if components is not None and responsibilities is not None and form in BATCH_FISHER:
            membership = components.by_cluster(responsibilities)
            scatter = losses.batch_scatter(membership, *moments)
            return BATCH_FISHER[form](scatter)
        criterion = losses.sample_fisher(weights, mean, log_var)
        return (criterion if form == "sample_raw" else criterion.log1p()).mean()

    def _mixture_weights(self, coefficients: Tensor) -> Tensor:
        """Coefficients (B, K) as the mixture weights that Eq. 4 asks for.

        Gaussian coefficients have either sign; their shares w² / Σ w² lie on the simplex.
        """
        if self.coefficient_log_var is None:
            return coefficients
        squared = coefficients.square()
        return squared / squared.sum(-1, keepdim=True).clamp_min(torch.finfo(squared.dtype).tiny)

    @staticmethod
    def _code(posterior: Posterior) -> Tensor:
        return (posterior.coefficient_mean.unsqueeze(-1) * posterior.component_mean).sum(1)

    def latent_code(self, data: Tensor) -> Tensor:
        """The deterministic code (B, L) of images (B, C, H, W): Σ_k E[w_k] μ_k, the mean of x."""
        return self._code(self.posterior(data))

    def latent_posterior(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, (B, L) each, of the latent x (Eq. 1) given images (B, C, H, W).

        Given the coefficients, x is Gaussian. Random coefficients (HGMVAE-G) bring a variance of
        their own, Σ_k Var[w_k] (μ_k² + σ_k²); the Gaussian of these moments stands for q(x|y) then.
        """
        posterior = self.posterior(data)
        component_mean, component_log_var = posterior.component_mean, posterior.component_log_var
        mean, variance = latent_moments(
            posterior.coefficient_mean, component_mean, component_log_var
        )
        if posterior.coefficient_log_var is not None:
            spread = posterior.coefficient_log_var.exp().unsqueeze(-1)
            variance = variance + (
                spread * (component_mean.square() + component_log_var.exp())
            ).sum(1)
        return mean, variance.log()

    def component_probabilities(self, data: Tensor) -> Tensor:
        """How far images (B, C, H, W) belong to each of K components, (B, K).

        With a global mixture, the responsibilities of its clusters for the code; without one, the
        image's own mixture weights.
        """
        posterior = self.posterior(data)
        if self.mixture is None:
            return self._mixture_weights(posterior.coefficient_mean)
        components = self.mixture.components()
        return components.by_cluster(components.responsibilities(self._code(posterior)))

    def check_epochs(self, epochs: int) -> None:
        """Refuse a training that ends before every term of the objective has been trained.

        Raises:
            ValueError: if ``epochs`` are no more than those before the last stage.
        """
        config = self.model_config
        stages = {
            "conditional prior": (config.conditional_prior, config.conditional_prior_weight, 0),
            "Fisher term": (config.fisher, config.fisher_weight, config.fisher_delay),
        }
        for term, (form, weight, delay) in stages.items():
            needed = config.warmup_epochs + delay + 1
            if form != "none" and weight > 0 and epochs < needed:
                raise ValueError(
                    f"HGMVAE trains its {term} from epoch {needed} on, after warmup_epochs = "
                    f"{config.warmup_epochs}"
                    + (f" and fisher_delay = {delay}" if delay else "")
                    + f", so that {epochs} epochs are too few; give it more epochs, or lower these"
                )

    def embed(self, inputs: Tensor) -> Tensor:
        """The deterministic code (B, L), under the name that pythae gives it."""
        return self.latent_code(inputs)

    def reconstruct(self, inputs: Tensor) -> Tensor:
        """Decode the deterministic codes of images: (B, C, H, W) to (B, C, H, W)."""
        reconstruction: Tensor = self.decoder(self.latent_code(inputs))["reconstruction"]
        return reconstruction

    def predict(self, inputs: Tensor) -> ModelOutput:
        """Deterministic codes ``embedding`` (B, L) and their images ``recon_x`` (B, C, H, W)."""
        code = self.latent_code(inputs)
        return ModelOutput(recon_x=self.decoder(code)["reconstruction"], embedding=code)

    @torch.no_grad()
    def sample_latent(self, n_samples: int) -> Tensor:
        """Draw latents (n_samples, L) from the prior, with torch's global generator.

        With the ``responsibility`` prior that is the global mixture; with Eq. 4 as printed the
        same with clusters alike, because E[w] is uniform under p(w). Without a conditional prior
        x = Σ_k w_k z_k (Eq. 1) with w ~ p(w), which on the simplex is the flat Dirichlet
        distribution, and z ~ N(0, I).
        """
        config = self.model_config
        if self.mixture is not None and config.conditional_prior != "none":
            mixture = self.mixture.components()
            if config.conditional_prior == "responsibility":
                return mixture.sample(n_samples)
            clusters = mixture.mean.new_full((config.n_components,), 1 / config.n_components)
            return mixture.sample(n_samples, mixture.by_component(clusters))
        parameter = self.component_mean.weight
        components = torch.randn(
            n_samples, config.n_components, self.latent_dim, device=parameter.device
        )
        weights = torch.randn_like(components[..., 0])
        if config.coefficient_prior == "uniform":
            # Normalised exponential variables are uniform on the simplex.
            weights = torch.empty_like(weights).exponential_()
            weights = weights / weights.sum(-1, keepdim=True)
        return (weights.unsqueeze(-1) * components).sum(1).to(parameter.dtype)

    def update(self) -> None:
        """End an epoch (pythae's hook): after the warm-up's last, fit the global mixture.

        The warm-up's codes live until this call only, so that a checkpoint between epochs holds
        all there is. Codes that are not finite are left alone: the loss tells.
        """
        n_codes = min(int(self._n_codes), MAX_CODES)
        if self.mixture is None or not n_codes:
            return
        codes, noise = self._codes[:n_codes], self._variances[:n_codes].mean(0)
        self._n_codes.zero_()
        if bool(codes.isfinite().all()):
            self.mixture.fit(codes, noise, self._fit_seed, self.model_config.mixture_fits)

    @classmethod
    def _load_model_config_from_folder(cls, dir_path: str) -> HGMVAEConfig:
        """Read the config; pythae's own loader knows pythae's models only."""
        config: HGMVAEConfig = HGMVAEConfig.from_json_file(f"{dir_path}/model_config.json")
        return config
