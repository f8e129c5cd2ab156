"""Baselines of the benchmark: pythae's models with published settings, GMVAE, VaDE and SWAE.

The names below are plug-ins for the suite's model registry. Importing them imports neither torch
nor pythae. Each model's class is documented in its own module.
"""

from vae_baselines.plugin import Baseline
from vae_baselines.pythae_plugin import PythaeModels

_IMQ_SCALES: list[float] = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]

VAE = Baseline(
    title="VAE",
    reference="Kingma and Welling 2014, Auto-encoding variational Bayes",
    model="vae_baselines.vae:VAE",
)
BETA_VAE = Baseline(
    title="β-VAE",
    reference="Higgins et al. 2017, beta-VAE: learning basic visual concepts with a constrained "
    "variational framework",
    model="vae_baselines.vae:BetaVAE",
    settings={"beta": 2.0},
)
WAE_IMQ = Baseline(
    title="WAE-IMQ",
    reference="Tolstikhin et al. 2018, Wasserstein auto-encoders",
    model="vae_baselines.wae:WAE",
    settings={"reg_weight": 1.0, "kernel_bandwidth": 2.0, "scales": _IMQ_SCALES},
    fixed={"kernel_choice": "imq", "reconstruction_loss_scale": 1.0},
)
WAE_RBF = Baseline(
    title="WAE-RBF",
    reference="Tolstikhin et al. 2018, Wasserstein auto-encoders",
    model="vae_baselines.wae:WAE",
    settings={"reg_weight": 1.0, "kernel_bandwidth": 2.0},
    fixed={"kernel_choice": "rbf", "scales": None, "reconstruction_loss_scale": 1.0},
)
SWAE = Baseline(
    title="SWAE",
    reference="Kolouri et al. 2018, Sliced-Wasserstein autoencoder",
    model="vae_baselines.swae:SWAE",
    settings={"reg_weight": 10.0, "n_projections": 50, "power": 2.0},
)
GMVAE = Baseline(
    title="GMVAE",
    reference="Dilokthanakul et al. 2016, Deep unsupervised clustering with Gaussian mixture "
    "variational autoencoders",
    model="vae_baselines.gmvae:GMVAE",
    settings={"n_components": 10, "noise_dim": 8, "hidden_dim": 128, "information_floor": 0.0},
)
VADE = Baseline(
    title="VaDE",
    reference="Jiang et al. 2017, Variational deep embedding",
    model="vae_baselines.vade:VaDE",
    settings={
        "n_components": 10,
        "pretrain_epochs": 4,
        "mixture_fits": 1,
        "mixture_start": "diagonal",
        "fisher_weight": 0.0,
        "fisher_delay": 1,
    },
    added_settings=frozenset({"mixture_start", "fisher_weight", "fisher_delay"}),
)
BETA_TC_VAE = Baseline(
    title="β-TCVAE",
    reference="Chen et al. 2018, Isolating sources of disentanglement in variational autoencoders",
    model="vae_baselines.beta_tc_vae:BetaTCVAE",
    settings={"alpha": 1.0, "beta": 2.0, "gamma": 1.0, "use_mss": True},
)
FACTOR_VAE = Baseline(
    title="FactorVAE",
    reference="Kim and Mnih 2018, Disentangling by factorising",
    model="vae_baselines.factor_vae:FactorVAE",
    settings={"gamma": 10.0},
    fixed={"uses_default_discriminator": True},
)
INFO_VAE = Baseline(
    title="InfoVAE",
    reference="Zhao et al. 2019, InfoVAE: balancing learning and inference in variational "
    "autoencoders",
    model="vae_baselines.info_vae:InfoVAE",
    settings={"alpha": -2.0, "lbd": 1000.0, "kernel_bandwidth": 1.0, "scales": _IMQ_SCALES},
    fixed={"kernel_choice": "imq"},
)
VAMP = Baseline(
    title="VAMP",
    reference="Tomczak and Welling 2018, VAE with a VampPrior",
    model="vae_baselines.vamp:VAMP",
    settings={"number_components": 50, "linear_scheduling_steps": 0},
)
PYTHAE = PythaeModels()

__all__ = [
    "BETA_TC_VAE",
    "BETA_VAE",
    "FACTOR_VAE",
    "GMVAE",
    "INFO_VAE",
    "PYTHAE",
    "SWAE",
    "VADE",
    "VAE",
    "VAMP",
    "WAE_IMQ",
    "WAE_RBF",
    "Baseline",
    "PythaeModels",
]
