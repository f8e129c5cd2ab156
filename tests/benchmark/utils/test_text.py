import pytest

from hgmvae_bench.utils.text import escape_controls, hidden_characters


@pytest.mark.parametrize(
    "character",
    [
        "\x00",
        "\x1b",
        "\x9b",
        "\xad",
        "\u200b",
        "\u200d",
        "\u202e",
        "\u2028",
        "\ufeff",
        "\ud800",
        "\ue000",
        "\uffff",
        "\ufdd0",
    ],
)
def test_invisible_and_steering_characters_are_escaped(character):
    escape = character.encode("unicode_escape").decode()
    assert escape_controls(f"a{character}β") == f"a{escape}β"
    assert hidden_characters(f"a{character}β") == {1: escape}


@pytest.mark.parametrize(
    "text",
    [
        "HGMVAE-G, β = 2 · é 中",
        "می\u200cخواهم",
        "\N{WOMAN}\u200d\N{MICROSCOPE}",
        "\N{WOMAN}\U0001f3fd\u200d\N{MICROSCOPE}",
        "\N{HEAVY BLACK HEART}\ufe0f\u200d\N{FIRE}",
        "\U0001fae8",  # Unassigned in Python 3.11.
    ],
)
def test_letters_signs_and_emoji_stay(text):
    assert escape_controls(text) == text


def test_characters_to_keep_are_not_escaped():
    assert escape_controls("a\n\x1b\tb", keep="\n\t") == "a\n\\x1b\tb"
