"""Plug-in ``pythae:NAME`` for the other models of pythae, importable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vae_baselines.plugin import Baseline, Setting

if TYPE_CHECKING:
    from pythae.models import BaseAE


@dataclass(frozen=True)
class PythaeModels:
    """Plug-in for the classes of ``pythae.models``, which it builds by name.

    Attributes:
        title: common title; each model is called by its name.
        reference: publication of pythae.
        settings: none; each model has its own.
    """

    title: str = "pythae's models, as pythae:NAME"
    reference: str = "Chadebec et al. 2022, Pythae: unifying generative autoencoders in Python"
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def with_argument(self, argument: str) -> Baseline:
        """Return the plug-in for the class ``argument`` of ``pythae.models``.

        It imports torch to read pythae's settings.

        Raises:
            LookupError: if pythae has no such model; the message lists the nearest names.
            ValueError: if the suite cannot run the model; the message has the reason.
        """
        from vae_baselines.pythae_models import find

        return find(argument)

    def build(self, **_: Any) -> BaseAE:
        """Refuse to build a model without a name.

        Raises:
            ValueError: always.
        """
        raise ValueError("'pythae' needs the name of a model, as in pythae:RAE_L2")
