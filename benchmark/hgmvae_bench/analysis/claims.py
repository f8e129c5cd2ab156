"""The paper's claims, as data.

A claim is a list of hypotheses. Each says that the best of some cells (the candidates) outperforms
the best of some others (the rivals) in one metric on one dataset.
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


class ModelAtDim(NamedTuple):
    """A model at a latent dim."""

    model: str
    latent_dim: int

    def __str__(self) -> str:
        return f"{self.model} (L = {self.latent_dim})"


@dataclass(frozen=True)
class Hypothesis:
    """The best candidate outperforms the best rival.

    Attributes:
        table: the paper's table that has the cells.
        dataset, metric: registered names.
        candidates, rivals: the models of each side; the one with the best mean counts.
    """

    table: str
    dataset: str
    metric: str
    candidates: tuple[ModelAtDim, ...]
    rivals: tuple[ModelAtDim, ...]


@dataclass(frozen=True)
class Claim:
    """A statement of the paper.

    Attributes:
        name: short name, for files and links.
        statement: the statement in the terms of this project.
        source: section and table of the paper.
        hypotheses: the statement as comparisons of cells.
        quantifier: how many of the hypotheses have to hold.
    """

    name: str
    statement: str
    source: str
    hypotheses: tuple[Hypothesis, ...]
    quantifier: Literal["all", "most"] = "all"


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


CLAIMS: tuple[Claim, ...] = (
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


def claims_about(tables: Iterable[str]) -> list[Claim]:
    """The claims that are based on any of these tables of the paper."""
    names = set(tables)
    return [
        claim for claim in CLAIMS if names & {hypothesis.table for hypothesis in claim.hypotheses}
    ]
