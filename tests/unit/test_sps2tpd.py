"""sps2tpd: samples per second as tokens per day."""

import json

import pytest
from click.testing import CliRunner

from dlcalc.calculators.throughput import day_tokens
from dlcalc.sps2tpd import main


def run(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_day_has_86400_seconds():
    assert day_tokens(samples_per_s=2.0, seq_len=1000.0, goodput_fraction=0.5) == 86_400_000.0


def test_it_says_the_tokens_of_a_day():
    """10 x 4096 x 86,400 = 3,538,944,000."""
    assert run("-t", 10, "-s", 4096).stdout == (
        "10 samples/sec with sequence length 4096 and 100.00% goodput translates to 3.54B tokens/day (3,538,944,000)\n"
    )


def test_goodput_takes_its_share():
    done = run("--samples-per-sec", 10, "--seqlen", 4096, "--goodput", 0.25)
    assert "25.00% goodput translates to 0.88B tokens/day (884,736,000)" in done.stdout


def test_json_has_every_number():
    assert json.loads(run("-t", "1e1", "-s", "4096", "-g", ".5", "--json").stdout) == {
        "samples_per_s": 10.0,
        "seq_len": 4096,
        "goodput_fraction": 0.5,
        "tokens_per_s": 40_960.0,
        "tokens_per_day": 1_769_472_000.0,
    }


@pytest.mark.parametrize(
    "nonsense", ["0", "-5", "nan", "inf", "-inf", "", "ten", "1_000", "1e400", "1e-30", "0x10", "5 5"]
)
def test_samples_per_second_are_a_number_above_0(nonsense):
    assert refused("-t", nonsense, "-s", 4096).startswith("error: --samples-per-sec: ")


@pytest.mark.parametrize("nonsense", ["0", "-4096", "4096.5", "nan", "4k", "1e30", "9" * 5000])
def test_a_sequence_is_a_whole_number_of_tokens(nonsense):
    assert refused("-t", 10, "-s", nonsense).startswith("error: --seqlen: ")


@pytest.mark.parametrize("nonsense", ["0", "-0.5", "1.01", "nan", "95%"])
def test_goodput_is_a_share(nonsense):
    assert refused("-t", 10, "-s", 4096, "-g", nonsense).startswith("error: --goodput: ")


def test_percent_given_for_a_share_is_pointed_out():
    assert "95 % is 0.95" in refused("-t", 10, "-s", 4096, "-g", 95)


@pytest.mark.parametrize("arguments", [(), ("-t", 1), ("-s", 1), ("-t", 1, "-s", 1, "-x")])
def test_wrong_usage_exits_2(arguments):
    assert run(*arguments).exit_code == 2
