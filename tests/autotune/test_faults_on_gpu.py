"""What really hangs, faults or exhausts memory on a device costs one job, and the next one finds the device free."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from autotune.compile import Compiled, compile_unit
from autotune.worker import Worker
from kernels.gpu import by_name
from kernels.kernel import CompileUnit

JOBS = "tests.autotune.faults:"


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.mark.gpu
def test_a_real_hang_is_killed_and_the_device_is_free(worker: Worker) -> None:
    assert worker.call(JOBS + "hang", (0.2,), 60) >= 0.2e9, "the clock of the hang runs"
    started = time.monotonic()
    assert worker.call(JOBS + "hang", (), 3.0).stage == "timeout"
    assert worker.call(JOBS + "add", (), 60) == 3
    assert time.monotonic() - started < 40, "not only because the hang was over"


@pytest.mark.gpu
def test_a_real_fault_is_named_and_the_device_is_free(worker: Worker) -> None:
    failure = worker.call(JOBS + "fault", (), 60)
    assert failure.stage == "launch"
    assert "illegal" in failure.reason
    assert worker.call(JOBS + "add", (), 60) == 3


@pytest.mark.gpu
def test_exhausted_memory_is_named_and_the_device_is_free(worker: Worker) -> None:
    assert worker.call(JOBS + "exhaust", (), 60).stage == "memory"
    assert worker.call(JOBS + "add", (), 60) == 3


@pytest.mark.compile
def test_the_hang_and_the_fault_compile() -> None:
    from tests.autotune import faults

    spin = compile_unit(CompileUnit(faults.spin, {"out": "*i64", "limit": "i64"}, {}, ("out",)), by_name("h200"))
    assert isinstance(spin, Compiled), spin
    assert spin.instructions["BRA"] >= 2, "there is a loop"
    assert isinstance(compile_unit(CompileUnit(faults.stray, {"out": "*i64", "away": "i64"}, {}, ("out",)), by_name("h200")), Compiled)
