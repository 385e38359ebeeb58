"""Where fits end up: tables on the terminal, YAML files of devices and trainers, a CSV of left-out errors."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dlcalc.specs.load import config_dir
from run_fit.constants import HOSTS, Constant, profiles_of
from run_fit.runs import Array, Group


def summary(groups: Sequence[Group], found: Iterable[Array]) -> dict[str, Array]:
    by_source: dict[str, list[float]] = {}
    for group, error in zip(groups, found, strict=True):
        for source, value in zip(group.sources, np.expm1(error), strict=True):
            by_source.setdefault(source, []).append(float(value))
    return {source: np.array(values) for source, values in sorted(by_source.items())}


def show(title: str, table: dict[str, Array]) -> None:
    print(f"\n{title}\n{'source':20s} {'runs':>5s} {'median':>7s} {'mean':>7s} {'p90':>7s} {'worst':>7s} {'bias':>7s}")
    for source, values in table.items():
        a = np.abs(values) * 100
        columns = (np.median(a), a.mean(), np.quantile(a, 0.9), a.max())
        bias = np.median(values) * 100
        print(f"{source:20s} {len(a):5d}", *(f"{column:7.1f}" for column in columns), f"{bias:+7.1f}")


def write(constants: Sequence[Constant], values: Array) -> None:
    """Put the constants into their YAML files, changing nothing else."""
    folder = config_dir()
    for constant, value in zip(constants, values, strict=True):
        owners = HOSTS[constant.owner] if constant.kind == "host" else profiles_of(constant.owner)
        for owner in owners:
            where = folder / "frameworks" if constant.kind == "framework" else folder
            write_one(where / f"{owner}.yaml", constant, value)


def write_one(file: Path, constant: Constant, value: float) -> None:
    text = file.read_text()
    if constant.kind == "framework":
        line = f"{constant.path}: {rounded(value)}"
        text, n = re.subn(rf"^{constant.path}:.*$", line, text, flags=re.M)
        if not n:
            text = text.rstrip("\n") + f"\n{line}\n"
    elif constant.kind == "host":
        text = re.sub(r"(host_factor: )[\d.]+", rf"\g<1>{rounded(value)}", text)
    elif constant.kind == "attention":
        text = re.sub(rf"(kernel_fractions: {{.*?{constant.path}: )[\d.]+", rf"\g<1>{rounded(value)}", text)
    else:
        key = constant.path.partition(".")[2]
        if re.search(r"^  training_factor:", text, flags=re.M):
            old = dict(re.findall(r"(\w+): ([\d.]+)", re.search(r"^  training_factor: \{(.*)\}", text, flags=re.M)[1]))
        else:
            old = {}
            text = re.sub(
                r"^calibration: \{like: (\w+)\}$",
                r"calibration:\n  like: \1\n  training_factor: {}",
                text,
                flags=re.M,
            )
            text = re.sub(
                r"^  node_collectives:", "  training_factor: {}\n  node_collectives:", text, count=1, flags=re.M
            )
            if "training_factor" not in text:
                text = re.sub(r"^(calibration:.*)$", r"\1\n  training_factor: {}", text, count=1, flags=re.M)
        old[key] = f"{value:.3f}"
        body = ", ".join(f"{k}: {v}" for k, v in sorted(old.items()))
        text = re.sub(r"^  training_factor: \{.*\}", f"  training_factor: {{{body}}}", text, flags=re.M)
    file.write_text(text)


def rounded(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{float(f'{value:.3g}'):g}" if value < 1e5 else f"{value:.0f}"


def save(path: Path, cases: Iterable[tuple[str, str, float]]) -> None:
    """What fit_uncertainty.py reads."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("source", "case", "estimated_over_measured"))
        writer.writerows(cases)
