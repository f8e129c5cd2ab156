"""Building of a cell's model on the suite's network."""

from __future__ import annotations

from hgmvae_bench.data.catalogue import resolve_dataset
from hgmvae_bench.grid import Cell
from hgmvae_bench.plugins.protocols import BenchmarkModel, PluginError
from hgmvae_bench.plugins.registry import missing_members, resolve_model
from hgmvae_bench.training.network.encoders import Network


def build_model(cell: Cell, input_dim: tuple[int, int, int]) -> BenchmarkModel:
    """Build a cell's model with parameters drawn from torch's global generator.

    Args:
        cell: cell with the model, its settings and the network's width.
        input_dim: image shape (C, H, W).

    Raises:
        ValueError: if the image shape or a setting does not fit the model.
        PluginError: if the plug-in returns an object without the members of `BenchmarkModel`.
    """
    model = resolve_model(cell.model).build(
        input_dim=input_dim,
        latent_dim=cell.latent_dim,
        reconstruction_loss=resolve_dataset(cell.dataset).reconstruction_loss,
        network=Network(input_dim, cell.network.width),
        settings=cell.model_settings,
    )
    if missing := missing_members(model, BenchmarkModel):
        raise PluginError(
            f"the model '{cell.model}' builds a {type(model).__name__} without "
            f"{', '.join(missing)}; see hgmvae_bench.plugins.protocols.BenchmarkModel"
        )
    return model
