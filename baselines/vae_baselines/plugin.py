"""Plug-ins of the baselines for the suite's model registry, importable without torch.

A :class:`Baseline` imports its model only to build it, so that listing models is fast.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pythae.models import BaseAE

    from vae_baselines.network import Network

Setting = bool | int | float | str | list[float] | None


@dataclass(frozen=True)
class Baseline:
    """A baseline; satisfies ``hgmvae_bench.plugins.ModelPlugin``.

    Attributes:
        title: name in tables and figures.
        reference: publication of the model.
        model: location of its class, as ``module:class``.
        settings: every setting that a grid may change, with its default.
        fixed: settings of the config that a grid cannot change.
        added_settings: names of settings that the run key leaves out while they have their
            default, because runs without them had been stored before.
    """

    title: str
    reference: str
    model: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    fixed: Mapping[str, Setting] = field(default_factory=dict)
    added_settings: frozenset[str] = frozenset()

    def build(
        self,
        *,
        input_dim: tuple[int, int, int],
        latent_dim: int,
        reconstruction_loss: Literal["bce", "mse"],
        network: Network,
        settings: Mapping[str, Any],
    ) -> BaseAE:
        """Build the model with freshly initialised parameters.

        Args:
            input_dim: image shape (C, H, W).
            latent_dim: L, the dimension of the code.
            reconstruction_loss: reconstruction loss of the dataset.
            network: builder of the encoder and decoder.
            settings: values that replace the defaults.

        Raises:
            ValueError: if a setting is unknown, or has an invalid value (pydantic's error, which
                names the setting).
        """
        check_names(self.title, settings, self.settings)
        module, name = self.model.split(":")
        model_class = getattr(import_module(module), name)
        config = model_class.config_class(
            input_dim=input_dim,
            latent_dim=latent_dim,
            reconstruction_loss=reconstruction_loss,
            **{**self.settings, **settings, **self.fixed},
        )
        return model_class.from_network(config, network)


def check_names(title: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Check that a model has all of the given settings.

    Raises:
        ValueError: if it does not have one; the message lists the nearest known settings.
    """
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=3) or list(known)
            hint = f"known: {', '.join(nearest)}" if nearest else "it has none"
            raise ValueError(f"{title} has no setting '{name}'; {hint}")
