"""The real timer on an imitated device: what is captured, in which order, what lies between the events."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from autotune import graph_timer
from autotune.clock import MAX_COPIES, CudaClock, Unmeasurable
from autotune.measure import bind
from kernels.errors import Failure


class Device:
    """Virtual time in microseconds. A call costs `first` when it is not what ran last, `again` else; a replay costs `gap` besides."""

    def __init__(self, first: float = 30.0, again: float = 10.0, gap: float = 5.0) -> None:
        self.first, self.again, self.gap = first, again, gap
        self.now = 0.0
        self.capturing: list[object] | None = None
        self.last: object = None
        self.log: list[object] = []
        self.ended_pools = 0
        self.live_graphs = 0
        self.broken = False

    def execute(self, call: object) -> None:
        self.now += self.again if call == self.last else self.first
        self.last = call
        self.log.append(call)

    def call(self, name: object) -> Callable[[], str]:
        def launch() -> str:
            self.execute(name) if self.capturing is None else self.capturing.append(name)
            return f"output of {name}"

        return launch

    def synchronize(self, *_: object) -> None:
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()

    class Graph:
        def capture_begin(self, pool: object, capture_error_mode: str) -> None:
            device.capturing = self.calls = []
            device.live_graphs += 1

        def capture_end(self) -> None:
            device.capturing = None

        def replay(self) -> None:
            device.now += device.gap
            for call in self.calls:
                device.execute(call)

        def reset(self) -> None:
            device.live_graphs -= 1

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = device.now

        def synchronize(self) -> None:
            device.synchronize()

        def elapsed_time(self, end: Event) -> float:
            return (end.at - self.at) / 1e3

    class Flush:
        def sum(self) -> None:
            device.call("flush")()

    def end_pool(index: int, pool: object) -> None:
        device.ended_pools += 1

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {
        "CUDAGraph": Graph, "Event": Event, "graph_pool_handle": lambda: (0, 1), "current_device": lambda: 0,
        "current_stream": lambda: stream, "stream": lambda chosen: contextlib.nullcontext(), "synchronize": device.synchronize,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(graph_timer, "_side_stream", lambda index: stream)
    monkeypatch.setattr(graph_timer, "_flush_buffer", Flush)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end_pool, raising=False)
    monkeypatch.setattr(graph_timer, "time", SimpleNamespace(perf_counter=lambda: device.now * 1e-6))
    return device


def turn(device: Device, timer: graph_timer.GraphTimer) -> tuple[float, list[object]]:
    device.log.clear()
    return timer.sample(), list(device.log)


def test_a_hot_turn_times_settled_calls_only(device: Device) -> None:
    timer = CudaClock(1000.0).timer([device.call("a")], cold=False)
    device.last = "another kernel"
    us, log = turn(device, timer)
    body = timer.calls_per_turn
    assert us == pytest.approx(10 + 5 / body), "the first, dear call is in the lead"
    assert 85 <= body <= 100
    assert len(log) - body == pytest.approx(15, abs=2), "a lead of 150 microseconds"
    assert timer.outputs() == "output of a"


def test_long_calls_have_one_in_the_lead_and_one_in_the_body(device: Device) -> None:
    device.first = device.again = 50_000.0
    timer = CudaClock().timer([device.call("a")], cold=False)
    _, log = turn(device, timer)
    assert log == ["a", "a"]
    device.log.clear()
    timer.call_time()
    assert device.log == ["a"]


def test_short_calls_stay_below_the_most_of_a_turn(device: Device) -> None:
    device.first = device.again = 0.5
    timer = CudaClock().timer([device.call("a")], cold=False)
    assert timer.calls_per_turn == MAX_COPIES


def test_a_cold_turn_is_flushed_and_rotates(device: Device) -> None:
    timer = CudaClock(1000.0).timer([device.call(copy) for copy in range(3)], cold=True)
    us, log = turn(device, timer)
    assert log[:4] == ["flush"] * 4
    assert log[4:] == [place % 3 for place in range(timer.calls_per_turn)]
    assert us == pytest.approx(30, rel=0.02), "every call is a first one"


def test_many_small_copies_are_played_once_and_not_sustained(device: Device) -> None:
    device.first = 1.0
    timer = CudaClock().timer([device.call(copy) for copy in range(MAX_COPIES)], cold=True)
    _, log = turn(device, timer)
    assert len(set(log[4:])) == len(log[4:]) == timer.calls_per_turn
    with pytest.raises(Unmeasurable):
        timer.block(1.0)


def test_copies_that_are_declared_enough_are_played_once(device: Device) -> None:
    clock, calls = CudaClock(1000.0, copies=24), [device.call(copy) for copy in range(24)]
    timer = clock.timer(calls, cold=True)
    us, log = turn(device, timer)
    assert log == ["flush"] * 4 + list(range(24))
    assert us == pytest.approx(30, rel=0.02)
    fewer = clock.timer(calls[:3], cold=True)
    assert len(turn(device, fewer)[1]) > 24, "these are large: together they exceed the L2"
    assert clock.timer(calls[:1], cold=False).calls_per_turn > 24


def test_call_time_is_of_plain_calls(device: Device) -> None:
    timer = CudaClock().timer([device.call("a")], cold=False)
    device.log.clear()
    assert timer.call_time() == pytest.approx(10.0)
    assert device.log == ["a"] * 10


def test_a_block_counts_its_calls_and_lasts(device: Device) -> None:
    timer = CudaClock(1000.0).timer([device.call("a")], cold=False)
    device.log.clear()
    block = timer.block(1.7)
    assert block.calls == len(device.log)
    assert block.seconds == pytest.approx(1.7, abs=0.1)


def test_a_call_that_cannot_be_captured_is_a_failure_and_all_is_freed(device: Device) -> None:
    plain = device.call("a")

    def synchronizing() -> str:
        if device.capturing is not None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with …")
        return plain()

    failure = bind(CudaClock(), [synchronizing], False)
    assert failure == Failure(
        "measure", "cannot be captured in a CUDA graph: CUDA error: operation not permitted when stream is capturing"
    )
    assert (device.ended_pools, device.live_graphs) == (1, 0)


def test_memory_and_device_faults_are_no_unmeasurables(device: Device) -> None:
    def fails(error: RuntimeError, broken: bool) -> Callable[[], None]:
        def call() -> None:
            if device.capturing is not None:
                device.broken = broken
                raise error

        return call

    with pytest.raises(torch.OutOfMemoryError):
        CudaClock().timer([fails(torch.OutOfMemoryError("CUDA out of memory"), False)], cold=False)
    with pytest.raises(RuntimeError, match="illegal memory access") as caught:
        CudaClock().timer([fails(RuntimeError("unspecified launch failure"), True)], cold=False)
    assert not isinstance(caught.value, Unmeasurable)


@pytest.mark.parametrize("us", [1.0, 4.0, 10.0, 30.0, 200.0])
def test_little_is_captured_to_size_a_turn(device: Device, us: float) -> None:
    device.first = device.again = us
    captured = []
    call = device.call("a")

    def counted() -> object:
        captured.extend(["a"] if device.capturing is not None else [])
        return call()

    timer = CudaClock(2000.0).timer([counted], cold=False)
    lead = round(150.0 / timer.call_us)
    assert timer.call_us == pytest.approx(us, abs=max(0.1, 0.05 * us))
    assert len(captured) - timer.calls_per_turn - max(1, lead) <= (50 if us >= 10 else 300)


def test_close_frees_every_graph(device: Device) -> None:
    timer = CudaClock().timer([device.call("a")], cold=False)
    assert device.live_graphs >= 3
    timer.close()
    assert device.live_graphs == 0
    assert timer.outputs() is None
