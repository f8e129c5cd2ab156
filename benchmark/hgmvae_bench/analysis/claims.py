"""Claims as data: those of the paper, and those of the grids that go beyond it.

A claim is a list of hypotheses. Each says that one of some cells (the candidates) outperforms all
of some others (the rivals) in one metric on one dataset.
`hgmvae_bench.analysis.claim_tests` tests them on measured tables.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

DIMS = (2, 4, 8, 16, 32, 64, 128)
CLUSTERING = ("sc", "ch", "db")
GENERATION = ("fid", "ssim", "ms-ssim", "lpips")
GENERATION_DATA = ("3d-chairs", "celeba", "mnist", "fashion-mnist")
BASELINES = ("vae", "beta-vae", "gmvae", "swae", "wae-imq", "wae-rbf")
HGMVAE = ("hgmvae-g", "hgmvae-u")

PAPER = "paper"
"""Name of the grid whose claims are the paper's."""


class ModelAtDim(NamedTuple):
    """A model at a latent dim.

    The model is a registered name in a claim of the paper, else a name that the grid uses, such as
    that of a variant.
    """

    model: str
    latent_dim: int

    def __str__(self) -> str:
        return f"{self.model} (L = {self.latent_dim})"


@dataclass(frozen=True)
class Hypothesis:
    """One of the candidates outperforms all rivals.

    Attributes:
        table: the paper's table that has the cells, or the grid's for a claim beyond the paper.
        dataset, metric: registered names.
        candidates, rivals: the models of each side.
    """

    table: str
    dataset: str
    metric: str
    candidates: tuple[ModelAtDim, ...]
    rivals: tuple[ModelAtDim, ...]


@dataclass(frozen=True)
class Claim:
    """A statement that runs of a grid can support or refute.

    Attributes:
        name: short name, for files and links.
        statement: the statement in the terms of this project.
        source: section and table of the paper, or the grid of a claim beyond it.
        hypotheses: the statement as comparisons of cells.
        quantifier: whether all or most of the hypotheses have to hold.
        grid: the grid that has the cells. Claims of the grid ``paper`` are the paper's, and are
            tested on every grid that has cells of the paper.
    """

    name: str
    statement: str
    source: str
    hypotheses: tuple[Hypothesis, ...]
    quantifier: Literal["all", "most"] = "all"
    grid: str = PAPER


def _models(models: Iterable[str], dims: Iterable[int]) -> tuple[ModelAtDim, ...]:
    return tuple(itertools.starmap(ModelAtDim, itertools.product(models, dims)))


def _clustering(
    table: str, dims: Iterable[int], candidates: Iterable[str], rivals: Iterable[str]
) -> tuple[Hypothesis, ...]:
    """One hypothesis per metric and latent dim of Tables 1 and 4."""
    return tuple(
        Hypothesis(table, "mnist", metric, _models(candidates, [dim]), _models(rivals, [dim]))
        for metric, dim in itertools.product(CLUSTERING, dims)
    )


def _generation(
    table: str, candidates: Iterable[str], rivals: Iterable[str]
) -> tuple[Hypothesis, ...]:
    """One hypothesis per dataset and metric of Tables 3 and 5."""
    return tuple(
        Hypothesis(table, dataset, metric, _models(candidates, [128]), _models(rivals, [128]))
        for dataset, metric in itertools.product(GENERATION_DATA, GENERATION)
    )


class _GridOfClaims(NamedTuple):
    """A grid beyond the paper whose Table 1, at eight dimensions, claims are about."""

    grid: str
    source: str
    dataset: str
    metrics: tuple[str, ...]

    def claim(self, name: str, statement: str, candidates: Iterable[str], rival: str) -> Claim:
        """A claim that most metrics support, with one hypothesis per metric."""
        sides = _models(candidates, [8]), _models([rival], [8])
        hypotheses = tuple(Hypothesis("1", self.dataset, metric, *sides) for metric in self.metrics)
        return Claim(name, statement, self.source, hypotheses, quantifier="most", grid=self.grid)


_DISENTANGLEMENT = _GridOfClaims(
    "disentanglement",
    "grid disentanglement (MIG, DCI, SAP, FactorVAE score)",
    "sprites",
    ("mig", "dci-disentanglement", "sap", "factor-vae-score"),
)
_ABLATIONS = _GridOfClaims(
    "ablations",
    "grid ablations (SC, CH, DB, accuracy, own clusters' accuracy)",
    "mnist",
    ("sc", "ch", "db", "accuracy", "own-accuracy"),
)

PAPER_CLAIMS: tuple[Claim, ...] = (
    Claim(
        "hgmvae-beats-gmvae",
        "HGMVAE (the better of -G and -U) clusters better than GMVAE in every latent dimension",
        "section 3.1.2, Table 1",
        _clustering("1", DIMS, HGMVAE, ["gmvae"]),
    ),
    Claim(
        "gaussian-below-16",
        "Below 16 dimensions HGMVAE-G clusters better than HGMVAE-U",
        "section 3.1.2, Fig. 3",
        _clustering("1", [2, 4, 8], ["hgmvae-g"], ["hgmvae-u"]),
    ),
    Claim(
        "uniform-from-16",
        "From 16 dimensions up HGMVAE-U clusters better than HGMVAE-G",
        "section 3.1.2, Fig. 3",
        _clustering("1", [16, 32, 64, 128], ["hgmvae-u"], ["hgmvae-g"]),
    ),
    Claim(
        "best-dimension-8",
        "Eight dimensions cluster best for every model and metric",
        "section 3.1.2, Fig. 3",
        tuple(
            Hypothesis(
                "1",
                "mnist",
                metric,
                _models([model], [8]),
                _models([model], [dim for dim in DIMS if dim != 8]),
            )
            for metric, model in itertools.product(CLUSTERING, ["gmvae", *HGMVAE])
        ),
    ),
    Claim(
        "best-classification",
        "HGMVAE (the better of -G and -U) classifies better than every other model",
        "section 3.2, Table 2",
        tuple(
            Hypothesis("2", dataset, "svm-accuracy", _models(HGMVAE, [8]), _models(BASELINES, [8]))
            for dataset in ("cifar10", "mnist")
        ),
    ),
    Claim(
        "both-best-classification",
        "On MNIST both HGMVAE-G and HGMVAE-U classify better than every other model",
        "section 3.2, Table 2",
        tuple(
            Hypothesis("2", "mnist", "svm-accuracy", _models([model], [8]), _models(BASELINES, [8]))
            for model in HGMVAE
        ),
    ),
    Claim(
        "best-reconstruction",
        "HGMVAE (the better of -G and -U) is the best model in most datasets and metrics",
        "section 3.3.1, Table 3",
        _generation("3", HGMVAE, BASELINES),
        quantifier="most",
    ),
    Claim(
        "fisher-helps-clustering",
        "The Fisher term improves the clustering of HGMVAE-G and of HGMVAE-U",
        "section 3.4, Table 4",
        tuple(
            hypothesis
            for model in HGMVAE
            for hypothesis in _clustering("4", DIMS, [model], [f"{model}-nofisher"])
        ),
    ),
    Claim(
        "fisher-helps-generation",
        "The Fisher term improves the images of HGMVAE-G and of HGMVAE-U",
        "section 3.4, Table 5",
        tuple(
            hypothesis
            for model in HGMVAE
            for hypothesis in _generation("5", [model], [f"{model}-nofisher"])
        ),
    ),
)

DISENTANGLEMENT_CLAIMS: tuple[Claim, ...] = (
    _DISENTANGLEMENT.claim(
        "gaussian-disentangles",
        "HGMVAE-G with its defaults scores higher than the VAE in most metrics of disentanglement",
        ["hgmvae-g"],
        "vae",
    ),
    _DISENTANGLEMENT.claim(
        "uniform-disentangles",
        "HGMVAE-U with its defaults scores higher than the VAE in most metrics of disentanglement",
        ["hgmvae-u"],
        "vae",
    ),
    _DISENTANGLEMENT.claim(
        "correlation-disentangles-gaussian",
        "In most metrics of disentanglement, HGMVAE-G scores higher with a total-correlation "
        "weight of 1 or 6 (the better in each metric) than with its default of 0.01",
        ["hgmvae-g-tc-1", "hgmvae-g-tc-6"],
        "hgmvae-g",
    ),
    _DISENTANGLEMENT.claim(
        "correlation-disentangles-uniform",
        "In most metrics of disentanglement, HGMVAE-U scores higher with a total-correlation "
        "weight of 1 or 6 (the better in each metric) than with its default of 0.01",
        ["hgmvae-u-tc-1", "hgmvae-u-tc-6"],
        "hgmvae-u",
    ),
)

ABLATION_CLAIMS: tuple[Claim, ...] = (
    _ABLATIONS.claim(
        "ten-gaussians-help",
        "HGMVAE-U clusters better with ten Gaussians per image than with one",
        ["hgmvae-u"],
        "hgmvae-u-single",
    ),
    _ABLATIONS.claim(
        "ten-gaussians-help-without-fisher",
        "Without the Fisher term, too, HGMVAE-U clusters better with ten Gaussians per image than "
        "with one",
        ["hgmvae-u-nofisher"],
        "hgmvae-u-single-nofisher",
    ),
    _ABLATIONS.claim(
        "fisher-helps-single",
        "The Fisher term improves the clustering of HGMVAE-U with one Gaussian for each image",
        ["hgmvae-u-single"],
        "hgmvae-u-single-nofisher",
    ),
    _ABLATIONS.claim(
        "single-beats-vade",
        "HGMVAE-U with one Gaussian for each image and without the Fisher term clusters better "
        "than VaDE initialised with HGMVAE's clusters",
        ["hgmvae-u-single-nofisher"],
        "vade-merged",
    ),
    _ABLATIONS.claim(
        "fisher-helps-vade",
        "The Fisher term improves the clustering of VaDE initialised with HGMVAE's clusters",
        ["vade-fisher"],
        "vade-merged",
    ),
    _ABLATIONS.claim(
        "gain-over-vade-with-fisher",
        "HGMVAE-U clusters better than VaDE initialised with HGMVAE's clusters, with the Fisher "
        "term",
        ["hgmvae-u"],
        "vade-fisher",
    ),
)

CLAIMS: tuple[Claim, ...] = (*PAPER_CLAIMS, *DISENTANGLEMENT_CLAIMS, *ABLATION_CLAIMS)
