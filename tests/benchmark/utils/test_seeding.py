import pytest

from hgmvae_bench.utils.seeding import derive_seed, digest


def test_digest_is_of_the_content_not_of_its_order():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    # Known answer: sha256 of '{"a":1}'.
    assert digest({"a": 1}).startswith("015abd7f5cc57a2d")


def test_digest_refuses_what_json_cannot_hold():
    with pytest.raises(ValueError, match="JSON compliant"):
        digest({"a": float("nan")})


def test_seeds_of_purposes_and_identities_differ_and_stay():
    seeds = {derive_seed(f"run{i}", p) for i in range(100) for p in ("training", "batches")}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert derive_seed("run", "training") == derive_seed("run", "training")
