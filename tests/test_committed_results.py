"""Committed records: valid, and from code that can be looked up."""

from pathlib import Path

import pytest

from hgmvae_bench.storage.store import Store

RESULTS = Path(__file__).parents[1] / "results"
FOLDERS = sorted(path.parent for path in RESULTS.rglob("records"))

# Records from before this rule: made from an installed wheel that named no commit, or from a
# checkout with uncommitted changes.
EXEMPT = {"measured": 20, "study/fashion-mnist": 9, "study/mnist": 32}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.relative_to(RESULTS).as_posix())
def test_records_are_valid_and_name_a_clean_commit(folder: Path) -> None:
    runs = Store(folder).runs()
    assert runs
    unknown = []
    for key, run in runs.items():
        code = run.record.provenance.get("code")
        if code is None or code["dirty"] or len(code["commit"]) != 40:
            unknown.append(key)
    allowed = EXEMPT.get(folder.relative_to(RESULTS).as_posix(), 0)
    assert len(unknown) <= allowed, (
        f"{len(unknown)} records name no clean commit, such as {unknown[-1]}; run them from a "
        "checkout without uncommitted changes, or from a wheel built from one"
    )


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.relative_to(RESULTS).as_posix())
def test_every_record_belongs_to_a_grid_of_its_folder(folder: Path) -> None:
    grids = [Store(folder).grid(path.stem) for path in (folder / "grids").glob("*.yaml")]
    known = {cell.identity for grid in grids for cell in grid.cells}
    strangers = [key for key, run in Store(folder).runs().items() if run.record.cell not in known]
    assert strangers == []
