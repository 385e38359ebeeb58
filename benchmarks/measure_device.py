"""Measure matmul, attention, memory and launch rates of the present device; write them as a machine of its own.

    python benchmarks/measure_device.py --dry-run                              # what would be measured, on any machine
    python benchmarks/measure_device.py --hardware h100 --out our_h100.yaml    # needs torch and a device
    python benchmarks/measure_device.py --hardware h100 --timings timings.csv --out our_h100.yaml    # fit again

The file extends the named machine and replaces the constants of its kernel equations that were measured; datasheet
figures, links and all else stay. Every kernel is timed back to back on a device that has been busy for a while, at the
clock of a training step, so the share that power costs (``sustained_loss``) stays as it is on the named machine and
``rate_fraction`` takes what was measured. The constants start at those of the named machine.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from dlcalc.calculators import kernels
from dlcalc.costmodel.machine import ELEMENT_BYTES
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import is_file_name, load_hardware
from dlcalc.specs.calibration import AttentionRates, MatmulRates, MemoryRates
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.validation.fit import Prior, fit

Array = NDArray[np.float64]

NOISE = 0.03
"""Log error of one timing that no constant explains."""
SPREAD = 0.6
"""A kernel is measured directly, so the named machine's constants hold it back little."""
WARM_UP_S = 0.3
LEAST_TIMED_S = 0.05
REPEATS = 5
TINY_LAUNCHES = 2000


@dataclass(frozen=True)
class Timing:
    """One kernel, and what it took; sizes that the kernel does not have are 0."""

    kind: str
    """matmul, attention_forward, attention_backward, memory or launch"""
    precision: str = "bf16"
    m: int = 0
    n: int = 0
    k: int = 0
    batch: int = 0
    seq: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    traffic_bytes: int = 0
    seconds: float = 0.0


def plan(precisions: Sequence[str]) -> list[Timing]:
    """What to measure: shapes of linear layers, of causal attention, and sizes of copies."""
    edges = ((1024, 1024), (4096, 1024), (4096, 4096), (8192, 4096), (8192, 8192), (16384, 5120), (16384, 14336))
    found = [
        Timing("matmul", precision, m=m, n=n, k=k)
        for precision in precisions
        for m, n in edges
        for k in (256, 1024, 4096, 8192)
    ]
    extremes = ((128, 128, 64), (16, 8192, 8192), (16, 16384, 8192))  # bound by their launch, and by memory
    found += [Timing("matmul", precision, m=m, n=n, k=k) for precision in precisions for m, n, k in extremes]
    shapes = [(8, 1024, 32, 8, 128), (4, 2048, 32, 8, 128), (2, 4096, 32, 8, 128), (1, 8192, 32, 8, 128),
              (1, 16384, 32, 8, 128), (1, 4096, 8, 1, 128), (4, 2048, 16, 16, 64), (1, 8192, 16, 16, 64)]  # fmt: skip
    found += [
        Timing(f"attention_{way}", batch=batch, seq=seq, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
        for way in ("forward", "backward")
        for batch, seq, heads, kv_heads, head_dim in shapes
    ]
    found += [Timing("memory", traffic_bytes=2**power) for power in (12, 16, 29, 30, 31, 32)]
    return [*found, Timing("launch")]


def described(timing: Timing) -> str:
    sizes = {key: value for key, value in asdict(timing).items() if value and key not in ("kind", "seconds")}
    return f"{timing.kind}: " + ", ".join(f"{key} {value}" for key, value in sizes.items())


# ---- on the device


def measure(planned: Iterable[Timing]) -> list[Timing]:
    """Every kernel of the plan, timed; one that the device or torch refuses is left out with a word."""
    import torch

    if not torch.cuda.is_available():
        raise DlcalcError("torch sees no device; --dry-run shows what would be measured")
    found = []
    for one in planned:
        try:
            run = kernel(torch, one)
            seconds = host_seconds_per_launch(torch, run) if one.kind == "launch" else device_seconds(torch, run)
        except (RuntimeError, AttributeError, TypeError) as error:
            print(f"left out: {described(one)}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        found.append(Timing(**{**asdict(one), "seconds": seconds}))
        torch.cuda.empty_cache()
    return found


def kernel(torch: Any, one: Timing) -> Callable[[], object]:
    """A function that launches the kernel once, on inputs that toggle bits as those of training do."""

    def normal(*shape, dtype=torch.bfloat16):
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16).to(dtype)

    if one.kind == "matmul" and one.precision == "bf16":
        a, b = normal(one.m, one.k), normal(one.n, one.k)
        return lambda: torch.matmul(a, b.t())
    if one.kind == "matmul":
        a, b = (normal(rows, one.k, dtype=torch.float8_e4m3fn) for rows in (one.m, one.n))
        scale = torch.ones((), device="cuda")
        return lambda: torch._scaled_mm(a, b.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)
    if one.kind.startswith("attention"):
        return attention_kernel(torch, one, normal)
    size = max(1, one.traffic_bytes // 4)  # two bytes read and two written per element
    source, target = normal(size), normal(size)
    return lambda: target.copy_(source)


def attention_kernel(torch: Any, one: Timing, normal: Callable[..., Any]) -> Callable[[], object]:
    heads = (one.heads, one.kv_heads, one.kv_heads)
    query, key, value = (normal(one.batch, n, one.seq, one.head_dim).requires_grad_() for n in heads)

    def forward():
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=one.heads != one.kv_heads
        )

    if one.kind == "attention_forward":
        return torch.no_grad()(forward)
    output = forward()
    gradient = torch.randn_like(output)
    return lambda: torch.autograd.grad(output, (query, key, value), gradient, retain_graph=True)


def device_seconds(torch: Any, run: Callable[[], object]) -> float:
    """Time per launch of many back to back, at the clock of a busy device: median of some repeats."""
    until = time.perf_counter() + WARM_UP_S
    launches = 0
    while time.perf_counter() < until:
        run()
        torch.cuda.synchronize()
        launches += 1
    n = max(10, round(LEAST_TIMED_S / (WARM_UP_S / launches)))
    return statistics.median(timed_by_events(torch, run, n) for _ in range(REPEATS))


def timed_by_events(torch: Any, run: Callable[[], object], n: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(n):
        run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e-3 / n


def host_seconds_per_launch(torch: Any, run: Callable[[], object]) -> float:
    """What the host needs to launch a kernel that takes the device almost no time."""
    run()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(TINY_LAUNCHES):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / TINY_LAUNCHES


# ---- timings as a file


def write_timings(path: Path, timings: Iterable[Timing]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [one.name for one in fields(Timing)])
        writer.writeheader()
        writer.writerows(asdict(one) for one in timings)


def read_timings(path: Path) -> list[Timing]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [timing_of(row, f"{path}:{line}") for line, row in enumerate(csv.DictReader(file), start=2)]
    except OSError as error:
        raise DlcalcError(f"{path}: cannot be read: {error.strerror}") from error


KINDS = ("matmul", "attention_forward", "attention_backward", "memory", "launch")


def timing_of(row: dict[str, str], where: str) -> Timing:
    sizes = [one.name for one in fields(Timing) if one.type == "int"]
    try:
        one = Timing(
            kind=row["kind"],
            precision=row["precision"],
            seconds=float(row["seconds"]),
            **{name: int(row[name] or 0) for name in sizes},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DlcalcError(f"{where}: not a timing ({type(error).__name__}: {error})") from error
    if one.kind not in KINDS:
        raise DlcalcError(f"{where}: kind {one.kind!r} is none of {', '.join(KINDS)}")
    if not 0 < one.seconds < np.inf:
        raise DlcalcError(f"{where}: seconds = {one.seconds} must be positive")
    return one


# ---- the fit


@dataclass(frozen=True)
class Fit:
    """Constants of one equation, and how far it is from what was measured."""

    what: str
    n: int
    constants: dict[str, float]
    median_before: float
    median_after: float


def columns(timings: Sequence[Timing], *names: str) -> tuple[Array, ...]:
    return tuple(np.array([float(getattr(one, name)) for one in timings]) for name in names)


def fit_constants(
    what: str,
    start: dict[str, float],
    most: dict[str, float],
    seconds: Callable[[dict[str, float]], Array],
    timings: Sequence[Timing],
) -> Fit:
    """The named constants of one equation, from the timings of its kernels."""
    (measured_s,) = columns(timings, "seconds")
    names = list(start)
    first = {name: max(value, 1e-3) for name, value in start.items()}  # logarithms need a start
    prior = Prior.of([(first[n], SPREAD, first[n] / 50, max(first[n], most.get(n, first[n] * 50))) for n in names])

    def log_errors(x: Array) -> Array:
        return np.log(seconds(dict(zip(names, np.exp(x).tolist(), strict=True))) / measured_s)

    found = fit(log_errors, prior, noise=NOISE)
    constants = {name: float(f"{value:.4g}") for name, value in zip(names, np.exp(found.x).tolist(), strict=True)}
    before = np.abs(seconds(first) / measured_s - 1.0)
    after = np.abs(seconds(constants) / measured_s - 1.0)
    return Fit(what, len(timings), constants, float(np.median(before)), float(np.median(after)))


FRACTIONS = {"rate_fraction": 1.0, "backward_fraction": 1.0, "hbm_fraction": 1.0}


def matmul_seconds(rates: MatmulRates, timings: Sequence[Timing], hardware: HardwareSpec) -> Array:
    device, precision = hardware.device, timings[0].precision
    m, n, k = columns(timings, "m", "n", "k")
    return np.asarray(
        kernels.matmul_time_s(
            m, n, k,
            rates=rates,
            peak_flops_per_s=device.peak_flops_per_s(precision),
            hbm_bytes_per_s=device.hbm_bytes_per_s,
            n_sms=device.n_sms.value,
            input_bytes=ELEMENT_BYTES[precision],
            l2_bytes=device.l2_mib.value * 2.0**20 if device.l2_mib else kernels.L2_BYTES,
        )
    )  # fmt: skip


def attention_seconds(rates: AttentionRates, timings: Sequence[Timing], hardware: HardwareSpec, kernel: str) -> Array:
    device = hardware.device
    found = []
    for one in timings:
        equation = (
            kernels.attention_forward_time_s if one.kind == "attention_forward" else kernels.attention_backward_time_s
        )
        found.append(
            equation(
                float(one.seq), float(one.seq),
                batch=float(one.batch), n_heads=float(one.heads), n_kv_heads=float(one.kv_heads),
                qk_head_dim=float(one.head_dim), v_head_dim=float(one.head_dim),
                rates=rates, peak_flops_per_s=device.peak_flops_per_s("bf16"), hbm_bytes_per_s=device.hbm_bytes_per_s,
                n_sms=device.n_sms.value, kernel=kernel,
            )
        )  # fmt: skip
    return np.array(found, dtype=float)


def memory_seconds(rates: MemoryRates, timings: Sequence[Timing], hardware: HardwareSpec) -> Array:
    (traffic,) = columns(timings, "traffic_bytes")
    return np.asarray(
        kernels.memory_bound_time_s(traffic, rates=rates, hbm_bytes_per_s=hardware.device.hbm_bytes_per_s)
    )


def fit_all(timings: Sequence[Timing], hardware: HardwareSpec, attention_kernel: str) -> dict[str, Any]:
    """``calibration:`` of the measured machine, and the fits behind it under ``fits``."""
    calibration = hardware.calibration
    found: dict[str, Any] = {"fits": []}

    def add(what: str, names: Sequence[str], rates: Any, seconds: Callable[[Any], Array], rows: list[Timing]):
        start = {name: float(getattr(rates, name)) for name in names}
        fitted = fit_constants(what, start, FRACTIONS, lambda c: seconds(rates.model_copy(update=c)), rows)
        found["fits"].append(fitted)
        return fitted.constants

    for precision in dict.fromkeys(one.precision for one in timings if one.kind == "matmul"):
        if precision not in hardware.device.peak_tflops:
            raise DlcalcError(f"{hardware.name} has no {precision}; it has {', '.join(hardware.precisions)}")
        rows = [one for one in timings if one.kind == "matmul" and one.precision == precision]
        base = calibration.matmul.get(precision, calibration.matmul["bf16"])
        names = ("rate_fraction", "k_half", "hbm_fraction", "launch_us")
        constants = add(
            f"matmul {precision}", names, base, lambda r, rows=rows: matmul_seconds(r, rows, hardware), rows
        )
        whole = {**base.model_dump(mode="json"), **constants}
        found.setdefault("matmul", {})[precision] = constants if precision in calibration.matmul else whole
    rows = [one for one in timings if one.kind.startswith("attention")]
    if rows:
        kinds = {one.kind for one in rows}
        names = ["seq_half"]
        names += ["rate_fraction"] if "attention_forward" in kinds else []
        names += ["backward_fraction"] if "attention_backward" in kinds else []
        constants = add(
            "attention", names, calibration.attention["bf16"],
            lambda r: attention_seconds(r, rows, hardware, attention_kernel), rows,
        )  # fmt: skip
        found["attention"] = {"bf16": constants}
    copies = [one for one in timings if one.kind == "memory"]
    if copies:
        names = ("hbm_fraction", "launch_us")
        found["memory"] = add(
            "memory", names, calibration.memory, lambda r: memory_seconds(r, copies, hardware), copies
        )
    return found


def machine_yaml(out: Path, base: str, hardware: HardwareSpec, found: dict[str, Any], timings: Sequence[Timing]) -> str:
    """The machine as a file that extends ``base``."""
    scores = "; ".join(f"{one.what}: {one.n} kernels, median error {one.median_after:.1%}" for one in found["fits"])
    launches = [one.seconds for one in timings if one.kind == "launch"]
    notes = [f"# Written by benchmarks/measure_device.py. What is not said here is as in {base}."]
    if launches:
        notes.append(f"# The host took {launches[0] * 1e6:.1f} us per launch; a trainer's own is in its profile.")
    parts = {key: found[key] for key in ("matmul", "attention", "memory") if key in found}
    content = {
        "name": out.stem,
        "description": f"{hardware.description}; kernels measured on the device",
        "extends": base,
        "calibration": {
            "measured": True,
            "provenance": f"benchmarks/measure_device.py, {scores}. Before: {hardware.calibration.provenance}",
            **parts,
        },
    }
    dumped = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
    return "\n".join([*notes, dumped])


def base_of(hardware: str, out: Path) -> str:
    """How ``out`` names the machine: by name, or by its path, which must not be ``out`` itself."""
    if not is_file_name(hardware):
        return hardware
    if Path(hardware).resolve() == out.resolve():
        raise DlcalcError(f"--out {out}: would overwrite the machine that it extends")
    return str(Path(hardware).resolve())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", default="h100", metavar="NAME", help="the machine to extend  [h100]")
    parser.add_argument("--out", type=Path, metavar="FILE.yaml", help="where to write the machine")
    parser.add_argument("--timings", type=Path, metavar="CSV", help="fit these instead of measuring")
    parser.add_argument("--save-timings", type=Path, metavar="CSV", help="where to keep what was measured")
    parser.add_argument("--precision", nargs="+", default=["bf16"], choices=["bf16", "fp8"], help="of matmuls  [bf16]")
    parser.add_argument(
        "--attention-kernel", default="flash2", help="what torch runs, a key of kernel_fractions  [flash2]"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be measured")
    given = parser.parse_args(arguments)
    try:
        run(given)
    except DlcalcError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(given: argparse.Namespace) -> None:
    planned = plan(given.precision)
    if given.dry_run:
        print(f"{len(planned)} kernels, about {len(planned) * (WARM_UP_S + REPEATS * LEAST_TIMED_S):.0f} s:")
        print("\n".join(f"  {described(one)}" for one in planned))
        return
    hardware = load_hardware(given.hardware)
    timings = read_timings(given.timings) if given.timings else measure(planned)
    if not timings:
        raise DlcalcError("nothing was measured")
    if given.save_timings:
        write_timings(given.save_timings, timings)
    found = fit_all(timings, hardware, given.attention_kernel)
    for one in found["fits"]:
        print(f"{one.what}: {one.n} kernels, median error {one.median_before:.1%} -> {one.median_after:.1%}")
        print("  " + ", ".join(f"{name} {value:g}" for name, value in one.constants.items()))
    if given.out:
        text = machine_yaml(given.out, base_of(given.hardware, given.out), hardware, found, timings)
        given.out.write_text(text, encoding="utf-8")
        print(f"written: {given.out}")


if __name__ == "__main__":
    sys.exit(main())
