"""Baselines as plug-ins of the suite's model registry, without importing torch.

A :class:`Baseline` knows a model's title, source and settings, and imports the model itself only
when one is built, so that listing models stays quick.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from pythae.models import BaseAE
    from pythae.models.nn import BaseDecoder, BaseEncoder

Setting = bool | int | float | str | list[float] | None


class Network(Protocol):
    """The parts of the network that a baseline asks for when it is built."""

    def point_encoder(self, latent_dim: int) -> BaseEncoder:
        """Encoder to ``embedding`` (B, ``latent_dim``)."""

    def gaussian_encoder(self, latent_dim: int) -> BaseEncoder:
        """Encoder to ``embedding`` and ``log_covariance`` (B, ``latent_dim``)."""

    def decoder(self, latent_dim: int) -> BaseDecoder:
        """Decoder from latents (B, ``latent_dim``) to ``reconstruction``, images in [0, 1]."""


@dataclass(frozen=True)
class Baseline:
    """A baseline that the registry can hold.

    Attributes:
        title: the name in tables and figures.
        reference: who published the model.
        model: where its class is, as ``module:class``.
        settings: every setting that a grid may change, with its default.
        fixed: settings of the config that the name of the baseline decides.
    """

    title: str
    reference: str
    model: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    fixed: Mapping[str, Setting] = field(default_factory=dict)

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


def pythae_model(name: str) -> Baseline:
    """The plug-in for a class of ``pythae.models`` with pythae's own settings (``pythae:NAME``).

    Unlike the plug-ins of this package it imports torch, to read pythae's settings.

    Raises:
        LookupError: if pythae has no such model; the message lists the nearest names.
        ValueError: if it has, but the suite cannot run it; the message says why.
    """
    from vae_baselines.pythae_models import find

    return find(name)


@dataclass(frozen=True)
class PythaeModels:
    """Any class of ``pythae.models``, as ``pythae:NAME``; it is no model without a name.

    Attributes:
        title: of all of them; each has its name.
        reference: who published pythae.
        settings: none; each model has its own.
    """

    title: str = "pythae's models, as pythae:NAME"
    reference: str = "Chadebec et al. 2022, Pythae: unifying generative autoencoders in Python"
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def with_argument(self, argument: str) -> Baseline:
        """The model that pythae calls ``argument``.

        Raises:
            LookupError: if pythae has no such model; the message lists the nearest names.
            ValueError: if it has, but the suite cannot run it; the message says why.
        """
        return pythae_model(argument)

    def build(self, **_: Any) -> BaseAE:
        """Never: a name is needed.

        Raises:
            ValueError: always.
        """
        raise ValueError("'pythae' needs the name of a model, as in pythae:RAE_L2")


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
