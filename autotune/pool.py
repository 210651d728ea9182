"""Compilation in the background: child processes on all cores, which give way to the timing of what was compiled before."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import queue
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeAlias

from autotune.compile import UNIT_SECONDS, Compiled, pickled, refuse_interpreter
from autotune.worker import Worker, waking
from kernels.errors import Failure, TerSparseError
from kernels.gpu import Gpu
from kernels.kernel import CompileUnit

LEAST_SECONDS = 20.0
"""A compilation is never killed before this: machines stutter."""
PATIENCE = 10.0
"""How many times the usual compilation one may take."""
SEEN = 8
"""So many compilations tell what is usual."""

WAKE_SECONDS = 120.0
NICE = 19
"""What times goes before what compiles."""
COMPILER = ("autotune.compile", "triton.compiler.compiler", "triton.experimental.gluon._runtime")
"""What a compiling process imports as it starts, torch not among it."""

Compilation: TypeAlias = "Future[Compiled | Failure]"


class CompilePool:
    """Compiles units for a GPU in child processes; equal units once. Use as a context manager, or `close` it.

    gpu: may be set until something is submitted. processes: how many; by default one per core. cache: folder of Triton's cache, by default
    Triton's own. busy: seconds that they compiled, together.
    seconds: the most one compilation may take; less once it is known what is usual (see `limit`). Where the system grants no process, the
    compilation's result is that OSError.
    """

    def __init__(self, gpu: Gpu, processes: int | None = None, cache: str | None = None, seconds: float = UNIT_SECONDS) -> None:
        self.gpu, self.processes = gpu, processes or cores()
        self.done, self.busy = 0, 0.0
        self._cache, self._seconds = cache, seconds
        self._known: dict[bytes, Compilation] = {}
        self._orders: dict[bytes, int] = {}
        self._begun: set[bytes] = set()
        self._times: list[float] = []
        self._waiting: queue.PriorityQueue[tuple[int, int, bytes]] = queue.PriorityQueue()
        self._count, self._lock, self._stop = itertools.count(), threading.Lock(), threading.Event()
        self._workers: list[Worker] = []
        self._threads: list[threading.Thread] = []

    @property
    def submitted(self) -> int:
        """How many different units there were so far."""
        return len(self._known)

    def limit(self) -> float:
        """Seconds that a compilation may take now: a multiple of the 90th percentile of those that are done."""
        times = self._times[:]
        if len(times) < SEEN:
            return self._seconds
        return min(self._seconds, max(LEAST_SECONDS, PATIENCE * statistics.quantiles(times, n=10)[-1]))

    def submit(self, unit: CompileUnit, order: int = 0) -> Compilation:
        """Compile it some time, lower orders first; asked for again, its lowest order counts."""
        return self.submit_pickled(pickled(unit), order)

    def submit_pickled(self, key: bytes, order: int = 0) -> Compilation:
        """The same of a unit that was made elsewhere."""
        with self._lock:
            future = self._known.get(key)
            if future is not None and order >= self._orders[key]:
                return future
            self._orders[key] = order
            self._waiting.put((order, next(self._count), key))
            if future is not None:
                return future
            future = self._known[key] = Future()
            if len(self._threads) < min(self.processes, len(self._known)):
                self._more()
            return future

    def warm(self) -> None:
        """Start all processes now, before there is anything to compile."""
        with self._lock:
            while len(self._threads) < self.processes:
                self._more()

    def _more(self) -> None:
        worker = Worker(first=(waking(*COMPILER),), nice=NICE)
        with contextlib.suppress(OSError):  # no process to be had: told by the first compilation
            worker.begin()
        self._workers.append(worker)
        thread = threading.Thread(target=self._work, args=(worker,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self, worker: Worker) -> None:
        with worker:
            with contextlib.suppress(OSError):  # no process to be had: told by the first compilation
                worker.call(*waking(), WAKE_SECONDS)  # up, so that the time it takes to start is nobody's compilation
            while not self._stop.is_set():
                try:
                    _, _, key = self._waiting.get(timeout=0.2)
                except queue.Empty:
                    continue
                with self._lock:
                    if key in self._begun:  # it waited twice, under two orders
                        continue
                    self._begun.add(key)
                started = time.monotonic()
                try:
                    result = self._compiled(worker, key)
                except OSError as error:  # raised again where the compilation is waited for
                    self._known[key].set_exception(error)
                    continue
                if self._stop.is_set():
                    return
                with self._lock:
                    self.done += 1
                    self.busy += time.monotonic() - started
                    if isinstance(result, Compiled):
                        self._times.append(result.seconds)
                self._known[key].set_result(result)

    def _compiled(self, worker: Worker, key: bytes) -> Compiled | Failure:
        try:
            result: Compiled | Failure = worker.call("autotune.compile:compile_pickled", (key, self.gpu, self._cache), self.limit())
        except TerSparseError as error:
            return Failure("compile", str(error))
        if isinstance(result, Failure) and result.stage != "compile":
            return Failure("compile", f"the compiler: {result}")
        return result

    def close(self) -> None:
        """End the child processes; what was not compiled is cancelled."""
        self._stop.set()
        for thread, worker in zip(self._threads, self._workers, strict=True):
            while thread.is_alive():
                worker.kill()
                thread.join(0.1)
        for future in self._known.values():
            future.cancel()

    def __enter__(self) -> CompilePool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def compile_all(units: Sequence[CompileUnit], gpu: Gpu, processes: int | None = None) -> list[Compiled | Failure]:
    """Compile units in parallel child processes; results in the order of the units. Raises OSError where the system grants no process."""
    refuse_interpreter()
    with CompilePool(gpu, processes) as pool:
        return [future.result() for future in [pool.submit(unit) for unit in units]]


def cores() -> int:
    """How many cores this process may use: those it may run on, fewer where its control group has a share of them only."""
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else max(1, min(count, math.ceil(int(quota) / int(period))))
