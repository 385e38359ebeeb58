"""A study of a billion plans: seconds, memory of all processes, one core against several, smaller studies beside it.

    python benchmarks/billion.py [--jobs 1 2] [--sizes 6 7 8 9] [--no-single] [--markdown]

``benchmarks/billion.yaml`` holds 1,000 scenarios: five models on twenty machines in ten sizes; smaller studies take the
first of each. After it, single scenarios of 15 million to 2.7 billion plans: every knob over its whole range. The
command is run as users run it, and everything is written. Seconds are of the clock, and of all cores together
(``core-s``), which other work on the machine disturbs less. Memory is the sum of resident memory over all processes,
sampled twenty times a second; pages that processes share count for each. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dlcalc.specs.marked_yaml import read_marked

SPACE = Path(__file__).parent / "billion.yaml"
FIRST = {6: (1, 1, 2), 7: (1, 2, 10), 8: (5, 2, 10), 9: (5, 20, 10)}
"""Models, machines and sizes of a study of about ten to the power of."""
SAMPLE_S = 0.05
ONE_SCENARIO = {"llama3-8b": 16, "llama3-70b": 1024, "mixtral-8x22b": 512, "deepseek-v3": 512}
"""Models and numbers of H100."""


def study(exponent: int) -> dict[str, Any]:
    """The space of about that many plans."""
    space, _ = read_marked(SPACE.read_text(encoding="utf-8"))
    models, machines, sizes = FIRST[exponent]
    space["model"], space["hardware"] = space["model"][:models], space["hardware"][:machines]
    space["cluster"]["devices"] = space["cluster"]["devices"][:sizes]
    return dict(space)


def resident_bytes(parent: int) -> int:
    """Of a process and its children."""
    total = 0
    for pid in [parent, *children(parent)]:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:  # it ended meanwhile
            continue
    return total


def children(parent: int) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    except OSError:
        return []


def measure(space: dict[str, Any], jobs: int) -> dict[str, float]:
    """One run of the command."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "space.yaml")
        file.write_text(json.dumps(space))  # JSON is YAML
        command = [sys.executable, "-m", "dlcalc.dlcalc_search", str(file), "-o", f"{folder}/out", "--jobs", str(jobs)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began, peak = time.perf_counter(), 0
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                peak = max(peak, resident_bytes(process.pid))
                time.sleep(SAMPLE_S)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit {process.returncode}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        summary = json.loads(Path(folder, "out", "_summary.json").read_text())
    cores = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "plans": summary["n_plans"],
        "scenarios": len(summary["scenarios"]),
        "fit": summary["n_fit"],
        "s": seconds,
        "core_s": cores,
        "bytes": peak,
    }


def print_markdown(studies: list[dict[str, Any]], jobs: list[int]) -> None:
    """A row a study, its core-seconds and memory with each number of jobs side by side."""
    many = [f"{n} job{'s' if n > 1 else ''}" for n in jobs]
    print(f"| plans | scenarios | core-seconds, {' | '.join(many)} | MiB, {' | '.join(many)} |")
    print("|" + "---|" * (2 + 2 * len(jobs)))
    for space in studies:
        found = [measure(space, n) for n in jobs]
        told = [f"{one['core_s']:.1f}" for one in found] + [f"{one['bytes'] / 2**20:.0f}" for one in found]
        print(f"| {found[0]['plans']:,} | {found[0]['scenarios']:,} | {' | '.join(told)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", choices=sorted(FIRST), default=sorted(FIRST))
    parser.add_argument("--no-single", action="store_true", help="leave out the single scenarios")
    parser.add_argument("--markdown", action="store_true", help="the table of docs/scaling.md")
    arguments = parser.parse_args()
    studies = [study(exponent) for exponent in arguments.sizes]
    # other exchanges over cp would triple the plans by ones that are mostly refused
    recipe = {**study(9)["recipe"], "profile": {"cp_exchanges": ["ring"]}}
    alone = {"hardware": "h100", "space": "full", "recipe": recipe}
    if not arguments.no_single:
        studies += [
            study(9) | alone | {"model": model, "cluster": {"devices": devices}}
            for model, devices in ONE_SCENARIO.items()
        ]
    if arguments.markdown:
        print_markdown(studies, arguments.jobs)
        return
    print(f"{'plans':>15} {'fit':>12} {'jobs':>4} {'seconds':>8} {'core-s':>7} {'M plans/s':>10} {'MiB':>6}")
    for space in studies:
        for jobs in arguments.jobs:
            one = measure(space, jobs)
            print(
                f"{one['plans']:15,} {one['fit']:12,} {jobs:4} {one['s']:8.1f} {one['core_s']:7.1f} "
                f"{one['plans'] / one['s'] / 1e6:10.1f} {one['bytes'] / 2**20:6.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
