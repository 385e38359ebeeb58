"""Runs the shards of a study on a Dask cluster: Slurm, Kubernetes, or whatever else starts Dask workers.

Only so many shards are under way as keep the workers busy, and of each only its summary comes back, so neither the
scheduler's memory nor this process's grows with the plans. A shard whose worker is lost runs again elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import queue
import re
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import numpy as np
import pyarrow as pa

from dlcalc import __version__
from dlcalc.errors import DlcalcError
from dlcalc.search.executors import Ready, Task

T = TypeVar("T")
W = TypeVar("W", bound=Task)
Versions = dict[str, str]

CONNECT_S = 10.0
"""For a scheduler to answer."""
WORKERS_S = 60.0
"""For a first worker to come, and for another when the last one went."""
REFRESH_S = 5.0
"""How often workers are counted."""
KEPT = "what was finished is kept: run again with --resume"


class DaskExecutor:
    """Shards on the workers of the scheduler at ``address``, between ``with`` and its end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._threads, self._counted_at_s = 0, -REFRESH_S
        self._alone_since_s: float | None = None
        self._client: Any = None

    def __enter__(self) -> Self:
        try:
            import distributed
        except ImportError as error:
            raise DlcalcError("--executor dask needs Dask: pip install 'dlcalc[distributed]'") from error
        self._log_level = logging.getLogger("distributed").level
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is said in one line, below
        try:
            self._knock(distributed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of versions that differ: those that matter are refused
                connect: Any = distributed.Client
                self._client = connect(self.address, timeout=CONNECT_S, set_as_default=False)
        except BaseException:
            self._restore_log()
            raise
        try:
            self._wait_for_workers()
            self._compare_versions()
        except BaseException:
            self._close()
            raise
        return self

    def _knock(self, distributed: Any) -> None:  # noqa: ANN401 - the package
        """Whether a scheduler listens: Dask's own client, once it has tried in vain, is not got rid of."""

        async def greet() -> None:
            told = distributed.Security().get_connection_args("client")
            comm = await distributed.core.connect(self.address, timeout=CONNECT_S, deserialize=False, **told)
            comm.abort()

        try:
            asyncio.run(asyncio.wait_for(greet(), CONNECT_S + 1.0))
        except Exception as error:  # whatever a server says that is no scheduler
            reason = re.sub(r"in <[^>]*>: ", "", " ".join(str(error.__cause__ or error).split()))[:160]
            raise DlcalcError(
                f"--scheduler {self.address}: no Dask scheduler answers there within {CONNECT_S:g} s "
                f"({reason or type(error).__name__})"
            ) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        with suppress(Exception):  # nobody may be there to be told
            self._client.close(timeout=CONNECT_S)
        self._restore_log()

    def _restore_log(self) -> None:
        logging.getLogger("distributed").setLevel(self._log_level)

    def _wait_for_workers(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=WORKERS_S)
        except TimeoutError as error:
            raise DlcalcError(
                f"--scheduler {self.address}: no worker came within {WORKERS_S:g} s; start some with: "
                f"dask worker {self.address}"
            ) from error

    def _compare_versions(self) -> None:
        """Refuse workers that would not do what this process would."""
        own = versions()
        for worker, theirs in self._everywhere(_probe()).items():
            if problem := difference(own, theirs):
                raise DlcalcError(f"worker {worker}: {problem}")

    def _everywhere(self, ask: Callable[[], T]) -> dict[str, T]:
        """The answer of each worker."""
        try:
            return dict(self._client.run(ask))
        except DlcalcError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DlcalcError(
                f"--scheduler {self.address}: its workers cannot do what they are sent; they need the Python and the "
                f"dlcalc of this machine ({reason[:160]})"
            ) from error

    def run(self, work: Callable[[W], T], tasks: Sequence[W], *, ready: Ready | None = None) -> Iterator[tuple[W, T]]:
        """Results of ``work`` as they come, in any order; before anything is sent, ``ready`` is asked everywhere."""
        if not tasks:
            return
        for worker, problem in self._everywhere(ready).items() if ready else ():
            if problem:
                raise DlcalcError(f"worker {worker}: {problem}")
        running: dict[Any, W] = {}
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        waiting = sorted(tasks, key=lambda task: task.n_plans)
        name = f"dlcalc-{uuid4().hex[:8]}"
        try:
            while waiting or running:
                room = min(2 * self._n_threads() - len(running), len(waiting))
                if room > 0:
                    some = [waiting.pop() for _ in range(room)]
                    self._send(work, some, f"{name}-{len(waiting)}", running, done)
                yield from self._finished(running, done)
        finally:
            if running and self._client.status == "running":
                with suppress(Exception):  # nobody may be there to be told
                    self._client.cancel(list(running), force=True)

    def _send(
        self, work: Callable[[W], T], tasks: Sequence[W], name: str, running: dict[Any, W], done: queue.SimpleQueue[Any]
    ) -> None:
        """Put tasks under way, in one message."""
        sent = [pickle.dumps((work, task)) for task in tasks]
        keys = [f"{name}-{number}" for number in range(len(tasks))]
        for future, task in zip(
            self._client.map(_do, sent, expected=versions(), key=keys, pure=False), tasks, strict=True
        ):
            running[future] = task
            future.add_done_callback(done.put)

    def _n_threads(self) -> int:
        """Shards that the cluster can do at once, as of a few seconds ago."""
        if time.monotonic() - self._counted_at_s >= REFRESH_S:
            self._threads = max(1, self._count_threads())
            self._counted_at_s = time.monotonic()
        return self._threads

    def _count_threads(self) -> int:
        try:
            return sum(self._client.nthreads().values())
        except Exception as error:  # what Dask says of a scheduler that is gone is not always the same
            raise self._lost() from error

    def _lost(self) -> DlcalcError:
        return DlcalcError(f"--scheduler {self.address}: the scheduler was lost; {KEPT}")

    def _finished(self, running: dict[Any, W], done: queue.SimpleQueue[Any]) -> list[tuple[W, Any]]:
        """The tasks that have ended, one at least, with their results; their futures are let go at once."""
        ended = [self._ended(done)]
        with suppress(queue.Empty):
            while True:
                ended.append(done.get_nowait())
        try:
            results = self._gathered(ended)
        except DlcalcError:
            raise
        except Exception as error:
            raise self._explained(error) from error
        tasks = [running.pop(future) for future in ended]
        for future in ended:
            future.release()
        return list(zip(tasks, results, strict=True))

    def _ended(self, done: queue.SimpleQueue[Any]) -> Any:  # noqa: ANN401 - a Future of Dask
        """A future that ended; ``DlcalcError`` when nobody is left who could end one."""
        self._alone_since_s = None
        while True:
            try:
                return done.get(timeout=REFRESH_S)
            except queue.Empty:
                self._watch()

    def _gathered(self, ended: Sequence[Any]) -> list[Any]:
        """Results of futures that ended; a result that went with its worker is worked out again, if one is left."""
        self._alone_since_s = None
        gathering = asyncio.run_coroutine_threadsafe(
            self._client.gather(ended, asynchronous=True), self._client.loop.asyncio_loop
        )
        while True:
            try:
                return list(gathering.result(timeout=REFRESH_S))
            except TimeoutError:
                if gathering.done():
                    raise
                try:
                    self._watch()
                except DlcalcError:
                    gathering.cancel()
                    raise

    def _watch(self) -> None:
        """After another while in vain: ``DlcalcError`` when the scheduler is gone, or has had no worker for long."""
        if self._client.status != "running":
            raise self._lost()
        if self._count_threads():
            self._alone_since_s = None
            return
        self._alone_since_s = self._alone_since_s or time.monotonic()
        if time.monotonic() - self._alone_since_s >= WORKERS_S:
            raise DlcalcError(
                f"--scheduler {self.address}: all workers were lost, and none came back within {WORKERS_S:g} s; {KEPT}"
            )

    def _explained(self, error: Exception) -> Exception:
        """What Dask says, in one line; an error of the work itself stays what it is."""
        match type(error).__name__:
            case "KilledWorker":
                return DlcalcError(
                    f"--scheduler {self.address}: the same shard ended its worker again and again, perhaps for want of "
                    f"memory; give workers more of it, or fewer threads; {KEPT}"
                )
            case "CancelledError" | "FutureCancelledError" | "CommClosedError" | "FuturesDictLost":
                return self._lost()
        return error


def _do(sent: bytes, expected: Versions) -> Any:  # noqa: ANN401 - the result of the work
    """On a worker: the work on its task. A worker that came late has not been asked for its versions yet."""
    if problem := difference(expected, versions()):
        raise DlcalcError(f"worker on {socket.gethostname()}: {problem}")
    work, task = pickle.loads(sent)
    return work(task)


def versions() -> Versions:
    """Of what decides the bytes of a shard."""
    python = ".".join(map(str, sys.version_info[:2]))
    return {"dlcalc": __version__, "python": python, "numpy": np.__version__, "pyarrow": pa.__version__}


def difference(own: Versions, theirs: Versions) -> str:
    """What a worker must change to be as this process; empty when nothing."""
    parts = [
        f"{name} {theirs[name]} instead of {version}" if theirs.get(name) else f"{name} is not installed"
        for name, version in own.items()
        if theirs.get(name) != version
    ]
    return f"{', '.join(parts)}; install on workers what this machine has" if parts else ""


def _probe() -> Callable[[], Versions]:
    """A question that a worker without dlcalc understands: nothing in it is looked up there by name."""

    def ask() -> Versions:
        import importlib
        import sys

        found = {"python": ".".join(map(str, sys.version_info[:2]))}
        for name in ("dlcalc", "numpy", "pyarrow"):
            try:
                found[name] = importlib.import_module(name).__version__
            except ImportError:
                found[name] = ""
        return found

    return ask
