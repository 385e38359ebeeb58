"""What a shard takes, what Dask adds to it, how one worker compares with two; and from these, a study past one machine.

    python benchmarks/cluster_scaling.py [--plans 1e12] [--cores 1000] [--workers 1 2] [--tasks 2000]

Everything is measured on this machine, workers being processes of it:

shard      the whole work of a shard of the largest size (search, file, hash), in seconds of one core
task       what a shard costs beside its work: so many tasks that do nothing but return what a shard returns, through
           the same executor, hundreds of them under way; client, scheduler and workers share this machine's cores
start      from the command's first call to the first shard on its way
workers    one study, searched on one worker and on more, both ends of it included: seconds of the clock and of cores

A cluster with many cores waits for whichever is slower, its cores or its scheduler, and in the end for one last shard:

    time = start + max(shards x shard / cores, shards x task) + shard
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path

from distributed import Client, LocalCluster

from dlcalc.costmodel.plans import NAMES
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.results.writer import open_study
from dlcalc.search.dask_executor import DaskExecutor
from dlcalc.search.executors import SHARD_PLANS, Shard
from dlcalc.search.study import scenarios_of
from dlcalc.specs.load import load_spec
from dlcalc.specs.space import SpaceSpec
from dlcalc.workflows.search import run_search
from dlcalc.workflows.search_origin import origin_of
from dlcalc.workflows.sweep import _shard, _Task

KEPT = 100
THREADS = 200
"""Of a worker in the measurement of tasks that do nothing: as many are under way as on a cluster of many cores."""
SPACE = f"""
study: reference
model: llama3-70b
hardware: h100
cluster: {{devices: DEVICES}}
recipe: {{seq_len: 8192, global_batch: 4096, precision: bf16, framework: megatron, profile: {{cp_exchanges: [ring]}}}}
space: full
keep: {{top: {KEPT}}}
"""
"""The largest space of a dense model: every knob over its whole range."""


@dataclass(frozen=True)
class Nothing:
    """A task without work."""

    n_plans: int = 1


def answer(result: bytes, _task: Nothing) -> object:
    """What a shard would return."""
    return pickle.loads(result)


def space_file(folder: Path, devices: str) -> Path:
    file = folder / "space.yaml"
    file.write_text(SPACE.replace("DEVICES", devices), encoding="utf-8")
    return file


@contextmanager
def cluster(n_workers: int, threads: int = 1) -> Iterator[str]:
    """The address of a scheduler with so many workers."""
    told = {"threads_per_worker": threads, "processes": True, "dashboard_address": None, "memory_limit": 0}
    with LocalCluster(n_workers=n_workers, **told) as started:
        yield started.scheduler_address


def measured_shards(folder: Path) -> tuple[float, int, bytes]:
    """Core-seconds and plans of shards of the largest size, and what one of them returns."""
    file = space_file(folder, "1024")
    space = load_spec(file, SpaceSpec)
    scenarios = scenarios_of(space, folder, HardwareRegistry())
    (scenario,) = scenarios
    origin = origin_of(space, file, scenarios, what="top", n_kept=KEPT, sort="step_time")
    blocks = list(scenario.blocks(SHARD_PLANS))
    n_plans = scenario.n_plans
    with open_study(folder / "shards", origin) as study:
        header = study.header(0, NAMES)
        work = partial(_shard, folder / "shards", "top", KEPT, "step_time")
        began = time.process_time()
        for number, (start, stop) in enumerate(blocks):
            result = work(_Task(Shard(0, number, start, stop, 1), scenario, header))
        core_s = time.process_time() - began
    return core_s, n_plans, pickle.dumps(result)


def measured_task(address: str, result: bytes, n_tasks: int) -> tuple[float, float]:
    """Seconds from nothing to the first answer, and for each further one."""
    began = time.perf_counter()
    with DaskExecutor(address) as executor:
        answers = executor.run(partial(answer, result), [Nothing()] * n_tasks)
        next(answers)
        first = time.perf_counter()
        for _ in answers:
            pass
        return first - began, (time.perf_counter() - first) / (n_tasks - 1)


@dataclass(frozen=True)
class Searched:
    """A study on some workers: seconds of the clock, and of each worker's core, which other work disturbs less."""

    n_plans: int
    seconds: float
    core_s: list[float]


def measured_study(file: Path, out: Path, address: str) -> Searched:
    """The study searched twice, of which the second time counts: by then workers have loaded what they need."""
    with Client(address, set_as_default=False) as client:
        for overwrite in (False, True):
            before = client.run(time.process_time)
            began = time.perf_counter()
            found = run_search(file, out=out, executor="dask", scheduler=address, overwrite=overwrite)
            seconds = time.perf_counter() - began
            after = client.run(time.process_time)
    return Searched(found["n_plans"], seconds, [after[worker] - before[worker] for worker in after])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=float, default=1e12)
    parser.add_argument("--cores", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--devices", default="[512, 1024, 2048]", help="Of the study that is searched on workers.")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        core_s, n_plans, result = measured_shards(folder)
        per_plan = core_s / n_plans
        shard_s = per_plan * SHARD_PLANS
        print(
            f"shard     {shard_s:.3f} core-s for {SHARD_PLANS:,} plans ({1 / per_plan / 1e6:.1f} M plans/s on one core)"
        )
        with cluster(max(told.workers), THREADS) as address:
            start_s, task_s = measured_task(address, result, told.tasks)
        print(f"task      {task_s * 1e3:.2f} ms, {len(result):,} bytes returned; start {start_s:.2f} s")
        first: Searched | None = None
        for n_workers in told.workers:
            with cluster(n_workers) as address:
                now = measured_study(space_file(folder, told.devices), folder / f"w{n_workers}", address)
            first = first or now
            cores = ", ".join(f"{core_s:.2f}" for core_s in now.core_s)
            faster, share = first.seconds / now.seconds, max(now.core_s) / max(first.core_s)
            print(
                f"workers   {n_workers}: {now.n_plans:,} plans in {now.seconds:.2f} s ({faster:.2f} times as fast); "
                f"core-s {cores} (the busiest has {share:.0%} of one's)"
            )
    n_shards = ceil(told.plans / SHARD_PLANS)
    cores_s, scheduler_s = n_shards * shard_s / told.cores, n_shards * task_s
    total_s = start_s + max(cores_s, scheduler_s) + shard_s
    print(f"{told.plans:.3g} plans are {n_shards:,} shards; on {told.cores:,} cores:")
    print("  start + max(shards x shard / cores, shards x task) + shard")
    print(f"  = {start_s:.2f} + max({cores_s:.1f}, {scheduler_s:.1f}) + {shard_s:.2f} = {total_s:.1f} s")


if __name__ == "__main__":
    main()
