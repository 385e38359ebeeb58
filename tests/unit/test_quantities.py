"""Numbers of dlcalc-compare's options: tokens, and numbers that belong to a name."""

import pytest

from dlcalc.errors import DlcalcError
from dlcalc.specs.quantities import named_number, token_count


@pytest.mark.parametrize(
    ("text", "tokens"), [("15T", 15e12), ("15t", 15e12), ("300b", 300e9), ("15e12", 15e12), (" 1.5T ", 1.5e12)]
)
def test_tokens_as_people_write_them(text, tokens):
    assert token_count(text, "--tokens") == tokens


@pytest.mark.parametrize("text", ["", "T", "15X", "nan", "inf", "1_000", "-1", "0", "0T", "1e400", "15 T T"])
def test_what_is_no_number_of_tokens(text):
    with pytest.raises(DlcalcError, match=r"^--tokens: "):
        token_count(text, "--tokens")


def test_a_name_may_hold_an_equals_sign():
    assert named_number("our = h100=2.5", "--price", "h100=2.49") == ("our = h100", 2.5)


@pytest.mark.parametrize("text", ["", "=", "h100", "h100=", "=2", "h100=x", "h100=nan", "h100=-1", "h100=0"])
def test_what_is_no_named_number(text):
    with pytest.raises(DlcalcError, match=r"^--price"):
        named_number(text, "--price", "h100=2.49")
