"""Runs the shards of a study: in this process, in several, or on a cluster (:mod:`dlcalc.search.dask_executor`).

A shard is a range of mesh rows of one scenario and a pure function of the study, so where it runs and in which order
changes nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from dlcalc.errors import DlcalcError
from dlcalc.search.space import Scenario

T = TypeVar("T")
SHARD_PLANS = 1 << 26
"""At most so many plans in one shard: what one file holds, and what an interruption loses."""
WORTH_A_SHARD = 1 << 23
N_SHARDS = 32
"""So many shards are wanted, that cores finish together, as long as each is worth one."""
WORTH_A_POOL = 8_000_000
"""Below this many plans a single process is done before others have started."""


class Task(Protocol):
    """Some work: what it needs goes to the process that does it."""

    @property
    def n_plans(self) -> int:
        """How much of it."""


W = TypeVar("W", bound=Task)


@dataclass(frozen=True)
class Shard:
    """Mesh rows ``start`` to ``stop`` of a scenario."""

    scenario: int
    number: int
    start: int
    stop: int
    n_plans: int


def shards_of(scenarios: Sequence[Scenario]) -> list[Shard]:
    """The study in pieces that depend on nothing but the study."""
    n_plans = sum(scenario.n_plans for scenario in scenarios)
    shard_plans = min(SHARD_PLANS, max(WORTH_A_SHARD, n_plans // N_SHARDS))
    shards = []
    for position, scenario in enumerate(scenarios):
        per_row = scenario.n_plans // scenario.shape[0]
        shards += [
            Shard(position, number, start, stop, per_row * (stop - start))
            for number, (start, stop) in enumerate(scenario.blocks(shard_plans))
        ]
    return shards


Ready = Callable[[], str | None]
"""Asked where a shard may run: why it cannot, or None."""


class Executor(Protocol):
    """Somewhere to run shards, from ``with`` on."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...

    def run(self, work: Callable[[W], T], tasks: Sequence[W], *, ready: Ready | None = None) -> Iterator[tuple[W, T]]:
        """Results of ``work`` as they come, in any order."""


@dataclass(frozen=True)
class LocalExecutor:
    """Processes of this machine."""

    jobs: int | None = None
    """How many. None: as many as are worth it."""
    forks: bool = True
    """Whether processes may be forked: not where threads of a store's client would be lost in them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing is left open: processes end with :meth:`run`."""

    def run(self, work: Callable[[W], T], tasks: Sequence[W], *, ready: Ready | None = None) -> Iterator[tuple[W, T]]:
        """Results of ``work`` as they come, in any order. What this process sees, its own processes see."""
        return run(work, tasks, jobs=self.jobs, forks=self.forks)


def run(
    work: Callable[[W], T], tasks: Sequence[W], *, jobs: int | None = None, forks: bool = True
) -> Iterator[tuple[W, T]]:
    """Results of ``work`` as they come, in any order; large tasks go first, so that cores finish together."""
    n_plans = sum(task.n_plans for task in tasks)
    processes = min(jobs or os.cpu_count() or 1, len(tasks))
    if processes <= 1 or (jobs is None and n_plans < WORTH_A_POOL):
        for task in tasks:
            yield task, work(task)
        return
    forks = forks and "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if forks else "spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_serve_one_parent) as pool:
        running: dict[Future[T], W] = {}
        try:
            for task in sorted(tasks, key=lambda task: -task.n_plans):
                with _signals_wait():
                    running[pool.submit(work, task)] = task
                if len(running) >= 2 * processes:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        except BrokenProcessPool as error:
            raise DlcalcError(
                "a worker process was lost, perhaps for want of memory; what was finished is kept: run again with "
                "--resume, and fewer --jobs"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass(frozen=True)
class _Call:
    """Arguments of one of many like calls."""

    position: int
    arguments: tuple[Any, ...]
    n_plans: int = WORTH_A_POOL


def shared_out(
    function: Callable[..., T], arguments: Iterable[tuple[Any, ...]], *, jobs: int | None = None, forks: bool = True
) -> list[T]:
    """``function`` of each of ``arguments``, in order."""
    calls = [_Call(position, each) for position, each in enumerate(arguments)]
    results = {call.position: result for call, result in run(partial(_called, function), calls, jobs=jobs, forks=forks)}
    return [results[position] for position in range(len(calls))]


def _called(function: Callable[..., T], call: _Call) -> T:
    return function(*call.arguments)


STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals to stop come later: a worker begun meanwhile would give its parent's answer, until it has its own."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve_one_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the parent's answer, which a fork inherits
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _finished(running: dict[Future[T], W]) -> Iterator[tuple[W, T]]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        yield running.pop(future), future.result()
