"""What the fit leaves behind: calibration in ``configs/``, error tables in the docs, samples for the tests."""

from __future__ import annotations

import csv
import re

import numpy as np
import yaml

from kernel_fit.devices import DeviceFit
from kernel_fit.sources import ROOT


def _flow(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def calibration_yaml(calibration: dict[str, object]) -> str:
    """The section as a person would write it: one line per kernel."""
    return "calibration:\n" + entries_yaml(calibration)


def entries_yaml(calibration: dict[str, object]) -> str:
    lines = []
    for key, value in calibration.items():
        if key == "provenance":
            lines.append(f"  provenance: >-\n    {value}")
        elif isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()):
            lines.append(f"  {key}:")
            lines += [f"    {name}: {_flow(item)}" for name, item in value.items()]
        else:
            lines.append(f"  {key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def write_calibration(device: str, calibration: dict[str, object]) -> None:
    """Replace the ``calibration:`` section, leaving every other line of the file as it is."""
    path = ROOT / "configs" / f"{device}.yaml"
    text = path.read_text()
    section = re.compile(r"^calibration:.*?(?=^\S|\Z)", re.DOTALL | re.MULTILINE)
    if len(section.findall(text)) != 1:
        raise SystemExit(f"{path}: expected one calibration section")
    path.write_text(section.sub(lambda _: calibration_yaml(calibration), text))


def write_collectives(device: str, calibration: dict[str, object]) -> None:
    """Replace ``node_collectives`` within the ``calibration:`` section."""
    path = ROOT / "configs" / f"{device}.yaml"
    text = path.read_text()
    entry = re.compile(r"^  node_collectives:\n(?:    .*\n)+", re.MULTILINE)
    if len(entry.findall(text)) != 1:
        raise SystemExit(f"{path}: expected one entry node_collectives")
    path.write_text(entry.sub(lambda _: entries_yaml(calibration), text))


def write_sample(fit_of_device: DeviceFit) -> None:
    """A few hundred measured points and the harness constants that the inference servers add to them."""
    folder = ROOT / "tests" / "data" / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    columns = ["kind", "precision", "m", "n", "k", "batch", "seq", "heads", "kv_heads", "head_dim", "window",
               "n_ranks", "size_bytes", "traffic_bytes", "latency_ms"]  # fmt: skip
    with (folder / f"{fit_of_device.device}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in fit_of_device.sample.reindex(columns=columns).itertuples(index=False):
            writer.writerow(
                ["" if isinstance(x, float) and np.isnan(x) else f"{x:.6g}" if isinstance(x, float) else x for x in row]
            )


def write_harness(fits: list[DeviceFit]) -> None:
    path = ROOT / "tests" / "data" / "kernels" / "harness.yaml"
    known = yaml.safe_load(path.read_text()) if path.exists() else {}
    for one in fits:
        known[one.device] = {score.what: score.harness for score in one.scores if score.harness}
    path.write_text(
        "# What inference servers do around the kernel, fitted alongside: bytes per element, and a floor.\n"
        + yaml.safe_dump(known, sort_keys=True)
    )


def write_docs(fits: list[DeviceFit]) -> None:
    """Replace rows of the tables between the markers of docs/kernels.md."""
    path = ROOT / "docs" / "kernels.md"
    text = path.read_text()
    for one in fits:
        block = re.compile(rf"(<!-- fit {one.device} -->)(.*?)(<!-- end -->)", re.DOTALL)
        shown = block.search(text)
        rows = dict(re.findall(r"^(\| (?!kernel\b).+? \|)( \d.*)$", shown[2], re.MULTILINE)) if shown else {}
        rows |= {
            f"| {s.what} |": f" {s.n_fitted} | {s.fitted[0]:.1f} | {s.fitted[1]:.1f} "
            f"| {s.n_left_out} | **{s.left_out[0]:.1f}** | {s.left_out[1]:.1f} |"
            for s in one.scores
        }
        lines = [
            "",
            "| kernel | shapes fitted | median % | p90 % | shapes left out | median % | p90 % |",
            "|---|---|---|---|---|---|---|",
            *(what + figures for what, figures in rows.items()),
        ]
        text = block.sub(lambda found, lines=lines: found[1] + "\n".join(lines) + "\n" + found[3], text)
    path.write_text(text)
