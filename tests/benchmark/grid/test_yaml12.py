"""Grid files that are hostile, ambiguous or far too large."""

import re
import time

import pytest
import yaml

from hgmvae_bench.grid import GridError, load_grid, parse_grid
from hgmvae_bench.grid.yaml12 import MAX_BYTES, Loader, dump


def refusal(text):
    """The message of the error that a grid file raises."""
    with pytest.raises(GridError) as error:
        parse_grid(text, "g.yaml")
    return str(error.value)


def bomb(key, depth=9, width=10):
    """A list of ``width ** depth`` entries under one key, by nested aliases."""
    lines = ["a0: &a0 [sc]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth)]
    return "\n".join([*lines, f"{key}: [{', '.join([f'*a{depth - 1}'] * width)}]"])


@pytest.mark.parametrize("key", ["metrics", "seeds"])
def test_nested_aliases_are_refused_before_they_are_expanded(tiny_text, key):
    text = tiny_text.replace("seeds: 2\n", "") + bomb(key)
    start = time.process_time()
    message = refusal(text)
    assert time.process_time() - start < 0.5
    assert "more than 100,000 keys and values" in message
    assert len(message) < 300


def test_nested_merge_keys_are_refused_before_they_are_expanded(tiny_text):
    lines = ["m0: &m0 { vae: { title: A } }"]
    lines += [f"m{i}: &m{i} {{ <<: [{', '.join([f'*m{i - 1}'] * 10)}] }}" for i in range(1, 9)]
    assert "more than 100,000 keys and values" in refusal(tiny_text + "\n".join(lines))


def test_a_file_beyond_the_limit_is_not_parsed(tiny_text, tmp_path):
    text = tiny_text + "#" * MAX_BYTES
    assert "larger than 1,000,000 bytes" in refusal(text)
    (tmp_path / "large.yaml").write_text(text)
    with pytest.raises(GridError, match=r"large.yaml: .* larger than 1,000,000 bytes"):
        load_grid(str(tmp_path / "large.yaml"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: tiny", f"name: {'a/' * 5000}"),
        ("seeds: 2", f"seeds: {list(range(5000))}"),
        ("seeds: 2", f"{'s' * 5000}: 2"),
        ("[vae, wae-imq]", f"[{'v' * 900}]"),
        ("latent_dims: [2]", f"latent_dims: {[7] * 5000}"),
        ("seeds: 2", f"models: {{ vae: {{ settings: {{ {'b' * 5000}: 1 }} }} }}"),
    ],
)
def test_a_message_quotes_long_values_in_part(tiny_text, old, new):
    assert old in tiny_text
    message = refusal(tiny_text.replace(old, new))
    assert message.startswith("g.yaml:")
    assert max(map(len, message.splitlines())) < 400


def test_a_message_lists_at_most_twenty_errors(tiny_text):
    message = refusal(tiny_text.replace("[sc, accuracy]", str([f"m{i}" for i in range(500)])))
    assert len(message.splitlines()) == 21
    assert message.endswith("and 480 more errors")


@pytest.mark.parametrize(
    ("old", "new", "key", "expected"),
    [
        ("width: 2", "width: 1000000", "5: network.width", "at most 1,024, got 1000000"),
        ("seeds: 2", "seeds: 1000000000", "4: seeds", "at most 10,000, got 1000000000"),
        ("epochs: 1", "epochs: 1000000", "6: training.epochs", "at most 100,000, got"),
        ("batch_size: 64", "batch_size: 100000", "6: training.batch_size", "at most 65,536, got"),
        ("latent_dims: [2]", "latent_dims: [70000]", "tables[0].latent_dims[0]", "at most 65,536"),
        (
            "seeds: 2",
            "datasets: { digits: { image_size: 4096 } }",
            "4: datasets.digits.image_size",
            "at most 1,024, got 4096",
        ),
        ("seeds: 2", f"seeds: 0x{'f' * 20000}", "4", "is too large"),
        ("seeds: 2", f"seeds: {'9' * 20000}", "4", "is too large"),
        (
            "epochs: 1",
            "learning_rate: .inf",
            "6: training.learning_rate",
            "a finite number, got inf",
        ),
        (
            "epochs: 1",
            "learning_rate: .nan",
            "6: training.learning_rate",
            "a finite number, got nan",
        ),
        ("epochs: 1", "weight_decay: .INF", "training.weight_decay", "finite number, got inf"),
        (
            "epochs: 1",
            "weight_decay: 1e999",
            "6: training.weight_decay",
            "a finite number, got inf",
        ),
        (
            "seeds: 2",
            "models: { beta-vae: { settings: { beta: .nan } } }",
            "4: models.beta-vae.settings.beta",
            "a finite number, got nan",
        ),
    ],
)
def test_numbers_out_of_range_are_refused_with_line_and_key(tiny_text, old, new, key, expected):
    assert old in tiny_text
    message = refusal(tiny_text.replace(old, new))
    assert f"g.yaml:{key}" in message or key in message
    assert expected in message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("!!bool maybe", "expected true or false, got 'maybe'"),
        ("!!bool ''", "expected true or false"),
        ("!!timestamp no", ""),
        ("!!float no", "no"),
        ("!!int no", "no"),
        ("!!binary é", "base64"),
    ],
)
def test_a_value_that_its_tag_refuses_is_refused_with_its_line(tiny_text, value, message):
    refused = refusal(tiny_text.replace("seeds: 2", f"seeds: {value}"))
    assert refused.startswith("g.yaml:4: not valid YAML: ")
    assert message in refused


def test_a_grid_with_too_many_runs_names_its_size_and_the_limit(tiny_text):
    text = (
        tiny_text.replace("seeds: 2", "seeds: 10000")
        .replace("latent_dims: [2]", f"latent_dims: {list(range(1, 1001))}")
        .replace("rows: [metric]", "rows: [metric, latent_dim]")
    )
    message = refusal(text)
    assert re.search("tables: .*20,000,000 runs.* 2,000,000", message)


def test_replaced_settings_are_checked_too(tiny_grid):
    with pytest.raises(GridError, match=r"grid tiny: seeds: expected at most 10,000, got"):
        tiny_grid.select(seeds=1_000_000_000)
    with pytest.raises(GridError, match=r"image_size: expected at most 1,024, got 100000"):
        tiny_grid.select(image_size=100_000)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+12", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("1:30:00", "1:30:00"),
        ("1:30.5", "1:30.5"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("off", "off"),
        ("2026-11-29", "2026-11-29"),
        ("=", "="),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text, value):
    (read,) = yaml.load(f"- {text}", Loader)  # noqa: S506 (a SafeLoader)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["1e3", "0o7", "08", "1:30", "yes", "1_000", ".inf", "007", "=x"])
def test_written_text_reads_back_as_text_in_yaml_1_1_and_1_2(text):
    written = dump({"name": text})
    assert yaml.load(written, Loader) == {"name": text}  # noqa: S506 (a SafeLoader)
    assert yaml.safe_load(written) == {"name": text}


def test_sexagesimal_numbers_and_leading_zeros_are_refused(tiny_text):
    seeds = tiny_text.replace("seeds: 2", "seeds: 1:30:00")
    assert "g.yaml:4: seeds: expected an integer, got '1:30:00'" in refusal(seeds)
    zero = tiny_text.replace("latent_dims: [2]", "latent_dims: [010]")
    assert "g.yaml:12: not valid YAML: 010 has a leading zero: write 10 or 0o10" in refusal(zero)


@pytest.mark.parametrize(
    "control", ["\\0", "\\e[31m", "\\u202E", "\\u2066", "\\x9b", "\\n", "\\u2028", "\\u200b"]
)
@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("title: Two models, one epoch", 'title: "A{}B"', "3: title"),
        ("title: Clustering", 'title: "A{}B"', "9: tables[0].title"),
        ("name: tiny", 'name: "a{}b"', "2: name"),
        ("[vae, wae-imq]", '["vae{}"]', "11: tables[0].models[0]"),
        ("[digits]", '["digits{}"]', "10: tables[0].datasets[0]"),
        ("seeds: 2", 'models: {{ "x{}": {{ model: vae }} }}', "4: models."),
        ("seeds: 2", 'datasets: {{ x: {{ title: "A{}" }} }}', "4: datasets.x.title"),
    ],
)
def test_control_characters_in_names_and_titles_are_refused(tiny_text, control, old, new, key):
    assert old in tiny_text
    message = refusal(tiny_text.replace(old, new.format(control)))
    assert f"g.yaml:{key}" in message
    assert message.isprintable() or "\n" in message
    assert all(line.isprintable() for line in message.splitlines())


def test_letters_of_every_script_are_allowed_in_titles(tiny_text):
    for title in ("β-VAE", "变分自编码器", "נתונים", "می‌خواهم", "👩‍🔬"):
        text = tiny_text.replace("title: Two models, one epoch", f"title: {title}")
        assert parse_grid(text, "g.yaml").spec.title == title


def test_presets_keep_their_hashes():
    """The hashes that results folders have stored since YAML 1.1 was read."""
    assert {name: load_grid(name).sha256[:16] for name in ("paper", "small", "smoke")} == {
        "paper": "8c9ffa32b05bbc85",
        "small": "5940d78d71c09909",
        "smoke": "2d69a6938c74b07d",
    }
