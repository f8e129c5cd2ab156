import csv
from pathlib import Path

import pytest

import hgmvae_bench as hb
from hgmvae_bench.grid import load_grid

GIVEN = Path(__file__).parents[3].parent / "shared/paper/tables.csv"
NAMES = {
    "3d_chairs": "3d-chairs",
    "fashion_mnist": "fashion-mnist",
    "SVM accuracy": "svm-accuracy",
    "HGMVAE-G-noF": "hgmvae-g-nofisher",
    "HGMVAE-U-noF": "hgmvae-u-nofisher",
}


@pytest.fixture(scope="module")
def published():
    return hb.published()


def test_every_entry_of_the_five_tables_is_published(published):
    """The grid ``paper`` mirrors the tables row by row and column by column."""
    grid = load_grid("paper")
    expected = {
        (table.name, dataset, metric, model, latent_dim)
        for table in grid.spec.tables
        for dataset in table.datasets
        for metric in table.metrics
        for model in table.models
        for latent_dim in table.latent_dims
    }
    keys = ["table", "dataset", "metric", "model", "latent_dim"]
    found = list(published[keys].itertuples(index=False, name=None))
    assert len(found) == 392
    assert set(found) == expected


def test_values_agree_with_the_transcription(published):
    if not GIVEN.exists():
        pytest.skip("the transcription is not beside the checkout")
    with GIVEN.open() as file:
        given = {
            (
                row["table"],
                NAMES.get(row["dataset"], row["dataset"]),
                NAMES.get(row["metric"], row["metric"].lower()),
                NAMES.get(row["model"], row["model"].lower()),
                int(row["latent_dim"]),
            ): float(row["value"])
            for row in csv.DictReader(file)
        }
    ours = {tuple(row[:5]): row[5] for row in published.itertuples(index=False, name=None)}
    assert ours == given


def test_cells_of_contradicting_tables_have_notes(published):
    keys = ["dataset", "metric", "model", "latent_dim"]
    several = published[published.duplicated(keys, keep=False)].groupby(keys)
    assert len(several) == 63 + 48
    contradicting = {key: group for key, group in several if group["value"].nunique() > 1}
    assert len(contradicting) == 7
    for group in contradicting.values():
        (third, fifth) = group.sort_values("table").itertuples()
        assert f"Table 5 gives {fifth.value:.3f}" in third.note
        assert f"Table 3 gives {third.value:.3f}" in fifth.note
    repeated = published[published["note"].str.contains("repeats the CelebA row")]
    assert (set(repeated["dataset"]), set(repeated["table"])) == ({"3d-chairs"}, {"3"})
    celeba = published[(published["dataset"] == "celeba") & (published["table"] == "3")]
    of_celeba = celeba[celeba["model"] == "hgmvae-g"].set_index("metric")["value"]
    assert repeated.set_index("metric")["value"].to_dict() == of_celeba.to_dict()
