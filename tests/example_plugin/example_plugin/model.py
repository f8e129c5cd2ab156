"""CV-VAE: a VAE whose posterior has one constant variance (Ghosh et al. 2020, Section 3).

The module is imported when models are listed, so the code that needs torch is in another module.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from hgmvae_bench.plugins.protocols import BenchmarkModel, ReconstructionLoss, Setting


class CVVAEPlugin:
    title = "CV-VAE"
    reference = "Ghosh et al. 2020, From variational to deterministic autoencoders"
    settings: Mapping[str, Setting] = MappingProxyType({"variance": 0.1})

    def build(
        self,
        *,
        input_dim: tuple[int, int, int],
        latent_dim: int,
        reconstruction_loss: ReconstructionLoss,
        network: Any,
        settings: Mapping[str, Any],
    ) -> BenchmarkModel:
        from example_plugin.cv_vae import CVVAE, CVVAEConfig

        if unknown := settings.keys() - self.settings.keys():
            raise ValueError(f"CV-VAE has no setting {', '.join(sorted(unknown))}")
        variance = {**self.settings, **settings}["variance"]
        if not isinstance(variance, float | int) or not variance > 0:
            raise ValueError(f"variance has to be a positive number, got {variance!r}")
        config = CVVAEConfig(
            input_dim=input_dim,
            latent_dim=latent_dim,
            reconstruction_loss=reconstruction_loss,
            variance=variance,
        )
        return CVVAE(config, network.point_encoder(latent_dim), network.decoder(latent_dim))


CV_VAE = CVVAEPlugin()
