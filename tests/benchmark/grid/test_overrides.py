"""Settings that replace those of a grid file."""

import pytest

from hgmvae_bench.grid import GridError, parse_grid
from hgmvae_bench.grid.overrides import override, parse_assignments
from hgmvae_bench.plugins.protocols import UnknownNameError


def test_values_are_read_as_in_a_grid_file():
    texts = ["training.epochs=5", "training.learning_rate=1e-4", "model.power=2.0", "a=b=c"]
    assert parse_assignments(texts) == {
        "training.epochs": 5,
        "training.learning_rate": 1e-4,
        "model.power": 2.0,
        "a": "b=c",
    }


@pytest.mark.parametrize("text", ["training.epochs", "=5", ""])
def test_texts_without_a_key_and_a_value_are_refused(text):
    with pytest.raises(GridError, match=r"KEY=VALUE.*got"):
        parse_assignments([text])


def test_values_that_are_no_yaml_are_refused_with_their_key():
    with pytest.raises(GridError, match=r"model\.x.*not valid YAML") as error:
        parse_assignments(["model.x=[1"])
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(GridError, match=r"^model\.x: a: this key occurs twice$"):
        parse_assignments(["model.x={a: 1, a: 2}"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[" * 1000, "nested too deeply"),
        ("[" * 1000 + "]" * 1000, "nested too deeply"),
        ("&a [*a]", "part of"),
        ("!!bool maybe", "expected true or false, got 'maybe'"),
    ],
)
def test_values_that_no_grid_file_may_have_are_refused(value, message):
    with pytest.raises(GridError, match=rf"(?s)^model\.x: .*not valid YAML: .*{message}") as error:
        parse_assignments([f"model.x={value}"])
    assert len(str(error.value)) < 400


def test_changed_settings_are_those_of_the_same_file_with_them(tiny_grid, tiny_text):
    changed = override(tiny_grid, {"training.epochs": 5, "network.width": 4})
    text = tiny_text.replace("epochs: 1", "epochs: 5").replace("width: 2", "width: 4")
    same = parse_grid(text, "tiny.yaml")
    assert [cell.identity for cell in changed.cells] == [cell.identity for cell in same.cells]
    assert changed.sha256 == same.sha256


def test_a_models_setting_changes_every_model_that_has_it(tiny_text):
    text = tiny_text.replace("[vae, wae-imq]", "[vae, wae-imq, wae-rbf]")
    grid = parse_grid(text, "tiny.yaml")
    changed = override(grid, {"model.reg_weight": 3.0})
    settings = {cell.model: cell.model_settings for cell in changed.cells}
    assert "reg_weight" not in settings["vae"]
    assert settings["wae-imq"]["reg_weight"] == settings["wae-rbf"]["reg_weight"] == 3.0
    before, after = ({c.model: c.identity for c in g.cells} for g in (grid, changed))
    assert before["vae"] == after["vae"]
    assert before["wae-imq"] != after["wae-imq"]


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("training.epoch", "training.epochs"),
        ("epochs", "training.epochs"),
        ("network.depth", "network.width"),
        ("model.reg_weigth", "model.reg_weight"),
        ("seeds", "training"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(tiny_grid, key, suggestion):
    with pytest.raises(UnknownNameError, match=suggestion):
        override(tiny_grid, {key: 5})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.epochs", 0, "training.epochs"),
        ("training.learning_rate", float("inf"), "training.learning_rate"),
        ("network.width", 1_000_000, "network.width"),
        ("model.reg_weight", "large", "reg_weight"),
    ],
)
def test_values_out_of_range_are_refused_with_their_key(tiny_grid, key, value, message):
    with pytest.raises(GridError, match=message):
        override(tiny_grid, {key: value})


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (("training", "epochs"), "--set training.epochs: too few"),
        (("models", "wae", "settings", "reg_weight"), "--set model.reg_weight: too few"),
        (("network", "width"), "tiny.yaml:5: network.width: too few"),
    ],
)
def test_errors_of_a_replaced_setting_name_the_option_and_others_the_line(
    tiny_grid, location, message
):
    changed = override(tiny_grid, {"training.epochs": 5, "model.reg_weight": 3.0})
    assert changed.format_error(location, "too few") == message
