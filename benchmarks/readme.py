"""Write the measured parts of README.md and docs/ anew: printed examples, the accuracy table and the speed table.

    python benchmarks/readme.py [--leave-out FILE] [--only compare|sampled|search|speed]

Each stands between two comments; nothing else is touched. ``--leave-out`` takes what ``fit_runs.py --leave-out``
printed; ``--only`` writes one of them alone.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from dlcalc.validation.sources import known_sources

ROOT = Path(__file__).parent.parent


def run(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def between(text: str, name: str, body: str) -> str:
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{body.strip()}\n{match[2]}", text, flags=re.S)


def example() -> str:
    with tempfile.TemporaryDirectory() as folder:
        printed = run(
            sys.executable,
            "-m",
            "dlcalc.dlcalc_search",
            "search_spaces/llama3_70b_h100.yaml",
            "-o",
            f"{folder}/study",
            "--top",
            "3",
        )
    lines = printed.splitlines()
    second = next(i for i, line in enumerate(lines) if line.startswith("llama3_70b on 128 h100, bf16, "))
    return "```text\n" + "\n".join(line.rstrip() for line in lines[:second]).strip() + "\n```"


def left_out_medians(file: Path | None) -> dict[str, float]:
    if file is None:
        return {}
    table = file.read_text().split("\nleft out\n", 1)[1]
    return {match[1]: float(match[2]) for match in re.finditer(r"^(\w+)\s+\d+\s+([\d.]+)", table, flags=re.M)}


def accuracy(left_out: dict[str, float]) -> str:
    summary = json.loads(run(sys.executable, "-m", "dlcalc.dlcalc_validate", "--json"))
    lines = [
        "| source | runs | step time, median error | 90th percentile "
        "| left out, median | memory, median | out of memory right |",
        "|---|---|---|---|---|---|---|",
    ]
    titles = known_sources()
    for source in summary["sources"]:
        step, memory, oom = source["step_time"], source["memory"], source["out_of_memory"]
        name = source["source"]
        lines.append(
            f"| {name}: {titles[name].title} | {source['runs']} "
            f"| {percent(step.get('median'))} | {percent(step.get('p90'))} "
            f"| {left_out.get(name, '') and f'{left_out[name]:.1f} %'} "
            f"| {percent(memory.get('median'))} | {percent(oom.get('accuracy'))} |"
        )
    return "\n".join(lines)


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def speed() -> str:
    return "```text\n" + run(sys.executable, "benchmarks/search_speed.py").strip() + "\n```"


COMPARED = {
    "compare": ((), "llama3-405b: the best plan", "Prices and powers"),
    "limits": (
        ("--budget-usd", "200e6", "--deadline-days", "90", "--tokens", "15T"),
        "The fastest within",
        "Nothing fits",
    ),
    "failures": (
        ("--objective", "days", "--mtbf-hours-per-device", "50675", "--checkpoint-write-s", "60", "--restart-s", "600"),
        "Failures every",
        "Prices and powers",
    ),
}
"""Options of each example of docs/compare.md, and the lines that what is shown begins with and ends before."""


def compared(text: str) -> str:
    """docs/compare.md with its examples printed anew."""
    with tempfile.TemporaryDirectory() as folder:
        space = "search_spaces/sku_shootout_llama3_405b.yaml"
        run(sys.executable, "-m", "dlcalc.dlcalc_search", space, "-o", f"{folder}/study", "--quiet")
        for name, (options, first, last) in COMPARED.items():
            printed = run(sys.executable, "-m", "dlcalc.dlcalc_compare", f"{folder}/study", *options)
            lines = [line.rstrip() for line in printed.splitlines()]
            begin, end = (next(i for i, line in enumerate(lines) if line.startswith(mark)) for mark in (first, last))
            text = between(text, f"example: {name}", "```text\n" + "\n".join(lines[begin:end]).strip() + "\n```")
    return text


SAMPLED = {
    "shape": "search_spaces/designs/llama3_70b_shape.yaml",
    "stages": "search_spaces/designs/gpt3_175b_stages.yaml",
}
"""Space of each example of docs/search.md; shown is the table of designs."""


def sampled(text: str) -> str:
    """docs/search.md with its examples printed anew."""
    for name, space in SAMPLED.items():
        with tempfile.TemporaryDirectory() as folder:
            printed = run(sys.executable, "-m", "dlcalc.dlcalc_search", space, "-o", f"{folder}/study")
        text = between(text, f"example: {name}", f"```text\n{printed.strip().partition(chr(10) * 2)[0]}\n```")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leave-out", type=Path)
    parser.add_argument("--only", choices=["compare", "sampled", "search", "speed"])
    arguments = parser.parse_args()
    only = arguments.only
    if only in (None, "compare"):
        comparison = ROOT / "docs" / "compare.md"
        comparison.write_text(compared(comparison.read_text()))
    if only in (None, "sampled"):
        page = ROOT / "docs" / "search.md"
        page.write_text(sampled(page.read_text()))
    file = ROOT / "README.md"
    text = file.read_text()
    if only in (None, "search"):
        text = between(text, "example: search", example())
    if only == "speed":
        text = between(text, "speed", speed())
    if only:
        file.write_text(text)
        return
    table = accuracy(left_out_medians(arguments.leave_out))
    text = between(text, "accuracy", table)
    text = between(text, "speed", speed())
    file.write_text(text)
    document = ROOT / "docs" / "accuracy.md"
    document.write_text(between(document.read_text(), "accuracy", table))


if __name__ == "__main__":
    main()
