"""Baselines as plug-ins of the suite's model registry, without importing torch.

A :class:`Baseline` knows a model's title, source and settings, and imports the model itself only
when one is built, so that listing models stays quick.
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
    """A baseline that the registry can hold.

    Attributes:
        title: the name in tables and figures.
        reference: who published the model.
        model: where its class is, as ``module:class``.
        settings: every setting that a grid may change, with its default.
        fixed: settings of the config that the name of the baseline decides.
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
            reconstruction_loss: the term of the dataset, summed over pixels.
            network: gives the encoder and decoder.
            settings: values that replace the defaults.

        Raises:
            ValueError: if a setting is unknown, or has a value that the model cannot take
                (pydantic's error, which names the setting).
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
    """Refuse settings that a model does not have.

    Raises:
        ValueError: naming the first unknown setting and the nearest known ones.
    """
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=3) or list(known)
            hint = f"known: {', '.join(nearest)}" if nearest else "it has none"
            raise ValueError(f"{title} has no setting '{name}'; {hint}")
