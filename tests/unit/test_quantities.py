"""Numbers of dlcalc-compare's options: tokens, and numbers that belong to a name."""

import pytest

from dlcalc.errors import DlcalcError
from dlcalc.specs.quantities import dollars, named_number, token_count


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("h200", "--price: 'h200' has no number; write NAME=NUMBER, such as --price h200=2.49"),
        ("h200=", "--price: 'h200=' has no number; write NAME=NUMBER, such as --price h200=2.49"),
        ("3.2", "--price: '3.2' has no name; write NAME=NUMBER, such as --price h100=3.2"),
        ("=3.2", "--price: '=3.2' has no name; write NAME=NUMBER, such as --price h100=3.2"),
        ("$3", "--price: '$3' has no name; write NAME=NUMBER, such as --price h100=$3"),
        ("h100:3", "--price: 'h100:3' is not NAME=NUMBER, such as h100=2.49"),
        ("h100=2,49", "--price h100: '2,49' is not a number of US dollars above 0, such as 2.49"),
    ],
)
def test_what_a_named_number_lacks_is_said_with_what_was_typed(text, said):
    with pytest.raises(DlcalcError) as caught:
        named_number(text, "--price", "h100=2.49", is_money=True)
    assert str(caught.value) == said


@pytest.mark.parametrize(("text", "usd"), [("50M", 50e6), ("$50M", 50e6), ("50e6", 50e6), ("$2.49", 2.49), ("1b", 1e9)])
def test_dollars_as_people_write_them(text, usd):
    assert dollars(text, "--budget-usd", "50M") == usd


@pytest.mark.parametrize("text", ["", "$", "50Q", "50 M M", "nan", "-1", "0", "2,49", "50€"])
def test_what_is_no_amount_of_dollars(text):
    with pytest.raises(DlcalcError, match=r"^--budget-usd: "):
        dollars(text, "--budget-usd", "50M")


@pytest.mark.parametrize("text", ["", "=", "h100", "h100=", "=2", "h100=x", "h100=nan", "h100=-1", "h100=0"])
def test_what_is_no_named_number(text):
    with pytest.raises(DlcalcError, match=r"^--price"):
        named_number(text, "--price", "h100=2.49")
