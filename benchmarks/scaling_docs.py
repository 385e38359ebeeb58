"""Write the measured parts of docs/scaling.md anew, on a machine that does nothing else meanwhile. Ten minutes.

    python benchmarks/scaling_docs.py [--only time|billion|writing|scaling ...]

Each stands between two comments; nothing else is touched:

time       where the time of a search goes (search_speed.py --profile)
billion    core-seconds and memory of studies of up to a billion plans, on one core and on two (billion.py)
writing    rows a second and bytes a row (write_speed.py)
scaling    shards, tasks and workers of a cluster (cluster_scaling.py), which docs/machines.md refers to
"""

from __future__ import annotations

import argparse
import sys

from readme import ROOT, between, run

PAGE = ROOT / "docs" / "scaling.md"
STEPS = "where the time goes, under cProfile:"


def fenced(text: str) -> str:
    return f"```text\n{text.strip()}\n```"


def time_of_a_search() -> str:
    printed = run(sys.executable, "benchmarks/search_speed.py", "--profile")
    return fenced(STEPS + printed.partition(STEPS)[2])


def billion() -> str:
    return run(sys.executable, "benchmarks/billion.py", "--markdown")


def writing() -> str:
    return fenced(run(sys.executable, "benchmarks/write_speed.py"))


def scaling() -> str:
    return fenced(run(sys.executable, "benchmarks/cluster_scaling.py"))


PARTS = {"time": time_of_a_search, "billion": billion, "writing": writing, "scaling": scaling}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    for name in parser.parse_args().only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        part = PARTS[name]()
        PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), name, part), encoding="utf-8")


if __name__ == "__main__":
    main()
