"""The contract of plug-ins and the registries that find them."""

from hgmvae_bench.plugins.image_data import Codes, ImageData, Labels
from hgmvae_bench.plugins.protocols import (
    BenchmarkModel,
    DatasetPlugin,
    MetricMissingError,
    MetricPlugin,
    ModelPlugin,
    NetworkBuilder,
    Outputs,
    ParametricModel,
    PluginError,
    PreparingMetric,
    UnknownNameError,
    WeightedMetric,
    WeightsFile,
)

__all__ = [
    "BenchmarkModel",
    "Codes",
    "DatasetPlugin",
    "ImageData",
    "Labels",
    "MetricMissingError",
    "MetricPlugin",
    "ModelPlugin",
    "NetworkBuilder",
    "Outputs",
    "ParametricModel",
    "PluginError",
    "PreparingMetric",
    "UnknownNameError",
    "WeightedMetric",
    "WeightsFile",
]
