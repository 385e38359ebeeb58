"""sps2mfu: samples per second as model FLOPs utilization."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from dlcalc.costmodel.estimate import estimate
from dlcalc.costmodel.plans import Plans
from dlcalc.report.model_report import report_model
from dlcalc.specs.load import config_dir
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.quantities import device_count, model_size
from dlcalc.sps2mfu import main
from tests.scenarios import scenario

CONFIGS = Path(__file__).parents[1] / "data" / "hf_configs"
USUAL = {"-s": "52.4", "-l": "4096", "-m": "70b", "-n": "64x8", "-t": "989.4"}


def run(*arguments: object, **changes: object):
    """With the usual options, but for ``changes`` of them by letter."""
    options = USUAL | {f"-{letter}": str(value) for letter, value in changes.items()}
    given = [part for option in options.items() for part in option]
    return CliRunner().invoke(main, [*given, *map(str, arguments)], catch_exceptions=False)


def answer(*arguments: object, **changes: object) -> dict:
    result = run(*arguments, "--json", **changes)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(*arguments: object, **changes: object) -> str:
    result = run(*arguments, **changes)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


# ---- the numbers


def test_a_size_counts_six_flops_per_parameter_and_token():
    """6 x 70e9 x 52.4 x 4096 / (512 x 989.4e12)."""
    found = answer()
    assert found["mfu_fraction"] == pytest.approx(6 * 70e9 * 52.4 * 4096 / (512 * 989.4e12), rel=1e-14)
    assert found["convention"] == "six_n"
    assert list(found["mfu_fraction_by_convention"]) == ["six_n"]
    assert found["n_devices"] == 512
    assert found["tokens_per_day"] == pytest.approx(52.4 * 4096 * 86_400)


def test_the_text_says_the_number_its_convention_and_the_tokens_of_a_day():
    text = run().stdout
    assert "17.80% MFU (six n)\n" in text
    assert "18.54B tokens/day (18,544,066,560)\n" in text


def test_long_names_are_the_same_options():
    names = {"-s": "--samples-per-sec", "-l": "--seqlen", "-m": "--model-size", "-n": "--n-accelerators"}
    names["-t"] = "--tflops-per-accelerator"
    given = [part for letter, value in USUAL.items() for part in (names[letter], value)]
    assert CliRunner().invoke(main, given).stdout == run().stdout


@pytest.mark.parametrize(
    ("text", "params"),
    [("70b", 70e9), ("1.5t", 1.5e12), ("350m", 350e6), ("70B", 70e9), ("350M", 350e6), ("900k", 9e5)],
)
def test_sizes(text, params):
    assert model_size(text, "") == params


@pytest.mark.parametrize(("text", "devices"), [("512", 512), ("64x8", 512), ("64X8", 512), (" 8 ", 8)])
def test_device_counts(text, devices):
    assert device_count(text, "") == devices


@pytest.mark.parametrize("name", ["llama3-70b", "deepseek-v3", "gpt-oss-120b"])
@pytest.mark.parametrize("convention", ["full_attention", "causal_attention", "six_n"])
def test_flops_of_a_model_are_those_of_the_model_report(name, convention):
    found = answer("--convention", convention, m=name)
    report = report_model(load_model(name), seq_len=4096)
    assert found["flops_per_token"] == report.flops_per_token[convention]
    assert found["convention"] == convention
    assert found["parameters_active"] == report.parameters_active
    assert found["mfu_fraction"] == found["mfu_fraction_by_convention"][convention]
    assert found["mfu_fraction"] == pytest.approx(
        report.flops_per_token[convention] * 52.4 * 4096 / (512 * 989.4e12), rel=1e-14
    )


def test_a_model_shows_every_convention():
    text = run(m="llama3-70b").stdout
    assert "19.03% MFU (full attention)" in text
    assert "(18.35% by causal attention, 17.94% by six n)" in text


def test_a_mixture_of_experts_counts_its_active_parameters():
    assert "671 G parameters, 37.6 G of them active" in run(m="deepseek-v3").stdout


def test_a_config_json_is_a_model():
    assert answer(m=CONFIGS / "llama-3.1-70b.json")["mfu_fraction"] == answer(m="llama3-70b")["mfu_fraction"]


def test_a_search_of_the_same_step_says_the_same():
    """A step of ``global_batch`` sequences per ``step_time_s`` is that many samples per second."""
    study = scenario("dense")
    plans = Plans.point(tp=2, dp=8, micro_batch=1)
    found = estimate(study.model, study.hardware, study.recipe, plans)
    samples_per_s = study.recipe.global_batch / float(found.step_time_s)
    same = answer(s=repr(samples_per_s), l=study.recipe.seq_len, m="llama3-8b", n=16, t="h100")
    assert same["mfu_fraction"] == pytest.approx(float(found.mfu), rel=1e-12)


# ---- the peak


def test_hardware_gives_the_peak_of_a_precision():
    """989.4 and 1978.9 TFLOP/s dense: NVIDIA's H100 datasheet."""
    assert answer(t="h100")["peak_flops_per_s_per_device"] == 989.4e12
    assert answer(t="h100")["precision"] == "bf16"
    assert answer("--precision", "fp8", t="h100")["peak_flops_per_s_per_device"] == 1978.9e12
    assert answer(t="p5.48xlarge")["peak_flops_per_s_per_device"] == 989.4e12
    assert "(h100, bf16)" in run(t="h100").stdout


def test_hardware_of_the_user_is_found(tmp_path, monkeypatch):
    described = "name: ours\ndescription: ours\nextends: h100\n"
    (tmp_path / "ours.yaml").write_text(described)
    assert answer("--hardware-dir", tmp_path, t="ours")["hardware"] == "ours"
    assert answer(t=tmp_path / "ours.yaml")["hardware"] == "ours"
    monkeypatch.setenv("DLCALC_HARDWARE_PATH", str(tmp_path))
    assert answer(t="ours")["hardware"] == "ours"


def test_every_machine_has_a_peak():
    for file in sorted(config_dir().glob("[a-h]*.yaml")):
        if "\ndevice:" in file.read_text():
            assert answer(t=file)["peak_flops_per_s_per_device"] > 1e12


# ---- above 100 %


def test_more_than_all_is_warned_of_and_still_converted():
    result = run(m="1.5t")
    assert result.exit_code == 0
    assert "381.32% MFU" in result.stdout
    assert result.stderr.startswith("warning: an MFU of 381.32% is above 100%")
    assert result.stderr.count("\n") == 1


def test_json_stays_json_above_100_percent():
    result = run("--json", m="1.5t")
    assert json.loads(result.stdout)["mfu_fraction"] > 1
    assert "above 100%" in result.stderr


def test_exactly_all_is_not_warned_of():
    """6 x 1e9 FLOPs per token, 1000 tokens/s: 6 TFLOP/s."""
    result = run(s=1, l=1000, m="1b", n=1, t=6)
    assert "100.00% MFU" in result.stdout
    assert result.stderr == ""


# ---- what bad input gets


@pytest.mark.parametrize("nonsense", ["70q", "70", "0b", "-70b", "nan", "inf", "1e10", "70bb", "999999999t"])
def test_a_size_is_a_number_and_its_unit(nonsense):
    assert refused(m=nonsense).startswith("error: --model-size: ")


def test_a_unit_nobody_knows_is_named():
    assert refused(m="70q") == (
        "error: --model-size: '70q' is not a size: 'q' is no unit; sizes are such as 350m, 70b or 1.5t\n"
    )


def test_a_misspelt_model_or_machine_gets_the_nearest_ones():
    assert "did you mean llama3-70b" in refused(m="lama3-70b")
    assert "did you mean h100" in refused(t="h10O")
    assert "no such file" in refused(m="nowhere/config.json")


@pytest.mark.parametrize("nonsense", ["0", "-8", "0x8", "8x0", "8x", "x8", "8x8x8", "5.5", "1e3", "nan", "99999999999"])
def test_a_device_count_is_whole(nonsense):
    assert refused(n=nonsense).startswith("error: --n-accelerators: ")


@pytest.mark.parametrize("nonsense", ["0", "-989", "nan", "inf", "1e300"])
def test_a_peak_is_above_0(nonsense):
    assert refused(t=nonsense).startswith("error: --tflops-per-accelerator: ")


def test_samples_and_tokens_are_above_0():
    assert refused(s=0).startswith("error: --samples-per-sec: ")
    assert refused(s="nan").startswith("error: --samples-per-sec: ")
    assert refused(l=-1).startswith("error: --seqlen: ")


def test_a_precision_must_be_the_machines():
    assert refused("--precision", "fp8", t="a100") == (
        "error: --precision: a100_80gb has no peak in fp8; it has fp32, tf32, fp16, bf16\n"
    )
    assert "did you mean" in refused("--precision", "bf61", t="h100")
    assert "the peak given is a number" in refused("--precision", "bf16")


def test_a_convention_must_suit_what_is_known():
    assert "70b is only a size" in refused("--convention", "full_attention")
    assert "did you mean full_attention" in refused("--convention", "full_atention", m="llama3-8b")


@pytest.mark.parametrize("arguments", [("-x",), ("more",)])
def test_wrong_usage_exits_2(arguments):
    assert run(*arguments).exit_code == 2
