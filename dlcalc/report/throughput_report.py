"""Throughput as tokens per day and as MFU: what sps2tpd and sps2mfu print."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

from dlcalc.calculators import throughput
from dlcalc.calculators.flops import model_flops_per_token_flops
from dlcalc.calculators.params import active_params, total_params
from dlcalc.errors import DlcalcError, UnknownNameError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.specs.hardware import Precision
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.quantities import is_number, model_size, positive_number
from dlcalc.specs.recipe import MfuConvention
from dlcalc.utils.units import count, short_count, significant

CONVENTIONS: dict[MfuConvention, str] = {
    "full_attention": "matmuls with the LM head, attention to the whole sequence",
    "causal_attention": "matmuls with the LM head, attention halved by its mask",
    "six_n": "6 per active parameter, no attention",
}
DEFAULT_CONVENTION: MfuConvention = "full_attention"
"""Where the model is known; the one that searches rank by unless told otherwise."""


@dataclass(frozen=True)
class TokensPerDay:
    """Everything that sps2tpd prints."""

    samples_per_s: float
    seq_len: int
    goodput_fraction: float
    tokens_per_s: float
    tokens_per_day: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def report_tokens_per_day(*, samples_per_s: float, seq_len: int, goodput_fraction: float) -> TokensPerDay:
    """Tokens per second while it runs, and per day with what is lost."""
    return TokensPerDay(
        samples_per_s=samples_per_s,
        seq_len=seq_len,
        goodput_fraction=goodput_fraction,
        tokens_per_s=samples_per_s * seq_len,
        tokens_per_day=float(
            throughput.day_tokens(samples_per_s=samples_per_s, seq_len=seq_len, goodput_fraction=goodput_fraction)
        ),
    )


def tokens_per_day_lines(report: TokensPerDay) -> Iterator[str]:
    """The report as text."""
    yield (
        f"{report.samples_per_s:g} samples/sec with sequence length {report.seq_len} "
        f"and {100 * report.goodput_fraction:.2f}% goodput translates to {_billions(report.tokens_per_day)}"
    )


@dataclass(frozen=True)
class Peak:
    """What a device could do at best, and who says so."""

    flops_per_s: float
    hardware: str | None = None
    precision: str | None = None


@dataclass(frozen=True)
class Size:
    """A model, or nothing but its size."""

    name: str
    active_params: float
    total_params: float
    model: ModelSpec | None = None


@dataclass(frozen=True)
class Mfu:
    """Everything that sps2mfu prints."""

    samples_per_s: float
    seq_len: int
    model: str
    parameters_total: float
    parameters_active: float
    n_devices: int
    hardware: str | None
    precision: str | None
    peak_flops_per_s_per_device: float
    convention: MfuConvention
    flops_per_token: float
    achieved_flops_per_s_per_device: float
    tokens_per_s: float
    tokens_per_day: float
    mfu_fraction: float
    mfu_fraction_by_convention: dict[str, float]
    """All that the model allows: of a bare size, only six_n."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def report_mfu(
    *, samples_per_s: float, seq_len: int, size: Size, n_devices: int, peak: Peak, convention: MfuConvention
) -> Mfu:
    """Model FLOPs over peak, in ``convention`` and in every other that can be told."""
    token_flops = _token_flops(size, seq_len)
    achieved = {
        name: throughput.device_flops_per_s(
            samples_per_s=samples_per_s, seq_len=seq_len, token_flops=flops, n_devices=n_devices
        )
        for name, flops in token_flops.items()
    }
    mfu = {
        name: float(throughput.mfu_fraction(achieved_flops_per_s=rate, peak_flops_per_s=peak.flops_per_s))
        for name, rate in achieved.items()
    }
    return Mfu(
        samples_per_s=samples_per_s,
        seq_len=seq_len,
        model=size.name,
        parameters_total=size.total_params,
        parameters_active=size.active_params,
        n_devices=n_devices,
        hardware=peak.hardware,
        precision=peak.precision,
        peak_flops_per_s_per_device=peak.flops_per_s,
        convention=convention,
        flops_per_token=token_flops[convention],
        achieved_flops_per_s_per_device=float(achieved[convention]),
        tokens_per_s=samples_per_s * seq_len,
        tokens_per_day=float(throughput.day_tokens(samples_per_s=samples_per_s, seq_len=seq_len)),
        mfu_fraction=mfu[convention],
        mfu_fraction_by_convention={name: float(fraction) for name, fraction in mfu.items()},
    )


def _token_flops(size: Size, seq_len: int) -> dict[MfuConvention, float]:
    if size.model is None:
        return {"six_n": float(throughput.six_n_token_flops(size.active_params))}
    return {
        convention: float(model_flops_per_token_flops(size.model, seq_len=float(seq_len), convention=convention))
        for convention in CONVENTIONS
    }


def mfu_lines(report: Mfu) -> Iterator[str]:
    """The report as text."""
    active = report.parameters_active
    of_them = f", {short_count(active)} of them active" if active != report.parameters_total else ""
    yield f"model      {report.model}: {short_count(report.parameters_total)} parameters{of_them}"
    name = f" ({report.hardware}, {report.precision})" if report.hardware else ""
    yield f"devices    {count(report.n_devices)} of {_tflops(report.peak_flops_per_s_per_device)}{name}"
    yield (
        f"throughput {significant(report.samples_per_s, 4)} samples/s of {count(report.seq_len)} tokens, "
        f"{count(report.tokens_per_s)} tokens/s"
    )
    yield (
        f"work       {short_count(report.flops_per_token)}FLOPs per token "
        f"({_words(report.convention)}: {CONVENTIONS[report.convention]}), "
        f"{_tflops(report.achieved_flops_per_s_per_device)} per device"
    )
    others = [
        f"{100 * mfu:.2f}% by {_words(name)}"
        for name, mfu in report.mfu_fraction_by_convention.items()
        if name != report.convention
    ]
    yield ""
    yield _billions(report.tokens_per_day)
    yield f"{100 * report.mfu_fraction:.2f}% MFU ({_words(report.convention)})"
    if others:
        yield f"({', '.join(others)})"


def mfu_warning(report: Mfu) -> str | None:
    """What to say of an MFU that cannot be."""
    if report.mfu_fraction <= 1.0:
        return None
    return (
        f"an MFU of {100 * report.mfu_fraction:.2f}% is above 100%: the devices cannot do this; check the number of "
        f"devices, their dense peak of {_tflops(report.peak_flops_per_s_per_device)}, and whether the samples are "
        f"those of the whole job"
    )


# ---- what was asked for


def find_size(text: str) -> Size:
    """The size or the model that ``--model-size`` names."""
    params = model_size(text, "--model-size")
    if params is not None:
        return Size(text.strip(), params, params)
    model = load_model(text)
    return Size(model.name, float(active_params(model)), float(total_params(model)), model)


def find_convention(text: str | None, size: Size) -> MfuConvention:
    """The convention asked for, or the one that suits what is known of the model."""
    if text is None:
        return "six_n" if size.model is None else DEFAULT_CONVENTION
    for convention in CONVENTIONS:
        if text.strip().casefold().replace("-", "_") == convention:
            if size.model is None and convention != "six_n":
                raise DlcalcError(
                    f"--convention: {convention} counts the matmuls of a model, and {size.name} is only a size; "
                    f"give --model-size the name or the config.json of a model"
                )
            return convention
    raise UnknownNameError("convention", text, CONVENTIONS)


def find_peak(text: str, precision: str | None, hardware: HardwareRegistry) -> Peak:
    """The peak that ``--tflops-per-accelerator`` gives as a number or by the name of a machine."""
    if is_number(text):
        if precision is not None:
            raise DlcalcError("--precision: goes with the name of a machine; the peak given is a number")
        return Peak(positive_number(text, "--tflops-per-accelerator") * 1e12)
    machine = hardware.load(text)
    peaks = machine.device.peak_tflops
    if precision is None:
        chosen: Precision = "bf16" if "bf16" in peaks else "fp16"
    elif precision not in get_args(Precision):
        raise UnknownNameError("precision", precision, get_args(Precision))
    elif precision not in peaks:
        raise DlcalcError(f"--precision: {machine.name} has no peak in {precision}; it has {', '.join(peaks)}")
    else:
        chosen = next(known for known in peaks if known == precision)
    return Peak(machine.device.peak_flops_per_s(chosen), machine.name, chosen)


def _words(convention: str) -> str:
    return convention.replace("_", " ")


def _tflops(flops_per_s: float) -> str:
    return f"{significant(flops_per_s / 1e12, 4)} TFLOP/s"


def _billions(tokens_per_day: float) -> str:
    return f"{tokens_per_day * 1e-9:.2f}B tokens/day ({count(tokens_per_day)})"
