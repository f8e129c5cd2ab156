"""pythae's VAE (Kingma and Welling 2014) and β-VAE (Higgins et al. 2017)."""

from __future__ import annotations

import pythae.models
from pydantic.dataclasses import dataclass
from pythae.models import VAEConfig

from vae_baselines.base import GaussianModel, Weight


class VAE(GaussianModel, pythae.models.VAE):  # type: ignore[misc]
    """pythae's VAE: reconstruction + KL(q(x|y) ‖ N(0, I)).

    Scalars in the output: ``loss``, ``recon_loss`` and ``reg_loss`` (the KL). pythae's published
    configuration (``examples/scripts/configs/mnist/vae_config.json``) only sets the latent
    dimension and the reconstruction loss, which here come from the cell and the dataset.
    """

    config_class = VAEConfig


@dataclass
class BetaVAEConfig(pythae.models.BetaVAEConfig):  # type: ignore[misc]
    """Settings of :class:`BetaVAE`.

    Attributes:
        beta: weight β of the KL. 2 in pythae's ``examples/scripts/configs/mnist`` and
            ``celeba/beta_vae_config.json`` (1 in the library, which is the VAE).
    """

    beta: Weight = 2.0


class BetaVAE(GaussianModel, pythae.models.BetaVAE):  # type: ignore[misc]
    """pythae's β-VAE: reconstruction + β·KL(q(x|y) ‖ N(0, I)).

    Scalars in the output: ``loss``, ``recon_loss`` and ``reg_loss`` (the KL, without β).

    Departure from the published configuration: the reconstruction loss is the dataset's, not half
    the squared error on every dataset. Against BCE (MNIST) the same β has less influence.
    """

    config_class = BetaVAEConfig
