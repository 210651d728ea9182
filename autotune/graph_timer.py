"""The timer of `CudaClock`: two CUDA graphs per kernel, one that sets the state and one that is timed."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch

from autotune.clock import MAX_COPIES, Block, Call, Unmeasurable
from autotune.failures import one_line

LEAD_US = 150.0
"""The untimed lead of a turn lasts at least this long, so that the host has queued the timed graph before the device reaches it."""
QUEUE_SECONDS = 0.05
CALL_TIME_US = 2000.0
FLUSHES = 4
LONG_US = 20_000.0
"""A probe that takes longer is not repeated."""
MOST_PROBED = 128
"""Most calls in a probe. Capturing costs the host as much as calling, for some libraries hundreds of microseconds: most of binding."""
_cuda: Any = torch.cuda  # its Stream and Event carry no annotations


class GraphTimer:
    """CUDA graph replay of n calls between events.

    A turn is a lead and a body. Hot: the lead is the same call, at least once, so that the first call of a turn is never timed. Cold: the
    lead reads twice the L2, so that nothing of an earlier turn is left in it, and the body rotates through the copies; where there
    are `copies` of them, too small to exceed the L2 together, a turn plays each at most once. Both graphs share one memory pool.
    """

    def __init__(self, calls: Sequence[Call], cold: bool, turn_us: float, copies: int = MAX_COPIES) -> None:
        self._calls, self._pool = calls, torch.cuda.graph_pool_handle()
        self._most = copies if cold and len(calls) >= copies else MAX_COPIES
        self._stream = _side_stream(torch.cuda.current_device())
        self._start, self._end = _cuda.Event(enable_timing=True), _cuda.Event(enable_timing=True)
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._flush: torch.Tensor | None = _flush_buffer() if cold else None
        self._last: object = None
        self._warm_up()
        try:
            self._build(turn_us)
        except BaseException:
            self.close()
            raise

    def _warm_up(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for call in (self._calls[0], *self._calls):
                call()
            if self._flush is not None:
                self._flush.sum()
        torch.cuda.synchronize()

    def _build(self, turn_us: float) -> None:
        self.call_us = self._estimate()
        self.calls_per_turn = max(1, min(self._most, round(turn_us / self.call_us)))
        if self._flush is not None:
            self._lead = self._capture([self._flush.sum] * FLUSHES)
        else:
            self._lead = self._capture(self._rotation(max(1, min(MAX_COPIES, round(LEAD_US / self.call_us)))))
        self._body = self._capture(self._rotation(self.calls_per_turn))
        self.sample()

    def _estimate(self) -> float:
        """Microseconds per call, roughly: from probes of as many calls as should be long beside the gap between event and graph."""
        count = 2
        while True:
            probe = self._capture(self._rotation(count))
            took = max(0.1, self._time(probe))
            if took < LONG_US:
                took = max(0.1, self._time(probe))
            if took > 2 * LEAD_US or count >= MOST_PROBED:
                return max(0.1, took / count)
            count = min(MOST_PROBED, max(count + 1, math.ceil(count * 3 * LEAD_US / took)))

    def _rotation(self, count: int) -> Iterable[Call]:
        return itertools.islice(itertools.cycle(self._calls), count)

    def _capture(self, calls: Iterable[Call]) -> torch.cuda.CUDAGraph:
        """A graph of these calls, instantiated. Not `torch.cuda.graph`, which empties the allocator's cache at each capture."""
        graph = torch.cuda.CUDAGraph()
        failure: RuntimeError | None = None
        self._graphs.append(graph)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                for call in calls:
                    self._last = call()
            except RuntimeError as error:
                failure = error
            finally:
                try:
                    graph.capture_end()
                except RuntimeError as error:
                    failure = failure or error
        if failure is not None:
            self._abandon(failure)
        return graph

    def _abandon(self, failure: RuntimeError) -> NoReturn:
        """After a failed capture: free the allocator, which torch leaves in the middle of the capture, and raise what happened."""
        with contextlib.suppress(RuntimeError):  # where the capture came to its end, it is free already
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
        if isinstance(failure, torch.OutOfMemoryError):
            raise failure
        torch.cuda.synchronize()  # raises, and so wins, where the device itself has faulted
        raise Unmeasurable(f"cannot be captured in a CUDA graph: {one_line(failure)}") from failure

    def _time(self, graph: torch.cuda.CUDAGraph) -> float:
        self._start.record()
        graph.replay()
        self._end.record()
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) * 1e3

    def sample(self) -> float:
        """One turn: lead, then n calls between events; microseconds per call."""
        self._lead.replay()
        return self._time(self._body) / self.calls_per_turn

    def call_time(self) -> float:
        """Events around a few plain calls on an idle device, microseconds per call."""
        count = max(1, min(10, round(CALL_TIME_US / self.call_us)))
        torch.cuda.synchronize()
        self._start.record()
        for call in self._rotation(count):
            call()
        self._end.record()
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) * 1e3 / count

    def block(self, seconds: float) -> Block:
        """Replays back to back, about 0.1 s of them queued, until `seconds` have passed. Unmeasurable where cold copies fit the L2."""
        if self._flush is not None and len(self._calls) >= self._most:
            raise Unmeasurable("a sustained cold block needs copies that exceed the L2; these are too small")
        replays = max(1, round(QUEUE_SECONDS * 1e6 / (self.call_us * self.calls_per_turn)))
        marks = [_cuda.Event(), _cuda.Event()]
        done, stop = 0, time.perf_counter() + seconds
        self._start.record()
        while done < 2 or time.perf_counter() < stop:
            if done >= 2:
                marks[done % 2].synchronize()
            for _ in range(replays):
                self._body.replay()
            marks[done % 2].record()
            done += 1
        self._end.record()
        self._end.synchronize()
        return Block(float(self._start.elapsed_time(self._end)) * 1e-3, done * replays * self.calls_per_turn)

    def outputs(self) -> object:
        """What the last captured call returned; every replay of the body writes it again."""
        return self._last

    def close(self) -> None:
        """Free both graphs, their pool and the calls."""
        torch.cuda.synchronize()
        for graph in self._graphs:
            graph.reset()
        self._graphs, self._calls, self._last, self._flush = [], (), None, None


@functools.cache
def _side_stream(device: int) -> Any:
    """The one stream of a device that captures: libraries keep a workspace for every stream they were called on."""
    return _cuda.Stream(device)


def _flush_buffer() -> torch.Tensor:
    size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.zeros(2 * size // 4, dtype=torch.float32, device="cuda")
