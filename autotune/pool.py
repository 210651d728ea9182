"""Compilation in the background: child processes on all cores but one, while the device times what was compiled before."""

from __future__ import annotations

import itertools
import os
import queue
import statistics
import threading
from concurrent.futures import Future
from typing import TypeAlias

from autotune.compile import UNIT_SECONDS, Compiled, pickled
from autotune.worker import Worker
from kernels.errors import Failure, TerSparseError
from kernels.gpu import Gpu
from kernels.kernel import CompileUnit

LEAST_SECONDS = 20.0
"""A compilation is never killed before this: machines stutter."""
PATIENCE = 10.0
"""How many times the usual compilation one may take."""
SEEN = 8
"""So many compilations tell what is usual."""

Compilation: TypeAlias = "Future[Compiled | Failure]"


class CompilePool:
    """Compiles units for a GPU in child processes; equal units once. Use as a context manager, or `close` it.

    processes: how many; by default one per core but one, which the timing needs. cache: folder of Triton's cache, by default Triton's own.
    seconds: the most one compilation may take; less once it is known what is usual (see `limit`).
    """

    def __init__(self, gpu: Gpu, processes: int | None = None, cache: str | None = None, seconds: float = UNIT_SECONDS) -> None:
        self.processes = processes or max(1, len(os.sched_getaffinity(0)) - 1)
        self.done = 0
        self._gpu, self._cache, self._seconds = gpu, cache, seconds
        self._known: dict[bytes, Compilation] = {}
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
        """Compile it some time, lower orders first."""
        key = pickled(unit)
        with self._lock:
            if key in self._known:
                return self._known[key]
            future = self._known[key] = Future()
            self._waiting.put((order, next(self._count), key))
            if len(self._threads) < min(self.processes, len(self._known)):
                worker = Worker()
                self._workers.append(worker)
                thread = threading.Thread(target=self._work, args=(worker,), daemon=True)
                self._threads.append(thread)
                thread.start()
            return future

    def _work(self, worker: Worker) -> None:
        with worker:
            while not self._stop.is_set():
                try:
                    _, _, key = self._waiting.get(timeout=0.2)
                except queue.Empty:
                    continue
                result = self._compiled(worker, key)
                if self._stop.is_set():
                    return
                with self._lock:
                    self.done += 1
                    if isinstance(result, Compiled):
                        self._times.append(result.seconds)
                self._known[key].set_result(result)

    def _compiled(self, worker: Worker, key: bytes) -> Compiled | Failure:
        try:
            result: Compiled | Failure = worker.call("autotune.compile:compile_pickled", (key, self._gpu, self._cache), self.limit())
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
