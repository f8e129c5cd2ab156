"""Any model of pythae as a plug-in of the suite, without importing torch before one is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vae_baselines.plugin import Baseline, Setting

if TYPE_CHECKING:
    from pythae.models import BaseAE


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
