from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune import worker as workers
from autotune.worker import Worker
from kernels.errors import Failure, ShapeError

JOBS = "tests.autotune.jobs:"


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_jobs_share_one_child(worker: Worker) -> None:
    first = worker.call(JOBS + "process", (), 30)
    assert first != os.getpid()
    assert worker.call(JOBS + "add", (2, 3), 30) == 5
    assert list(worker.stream(JOBS + "count", (3,), 30)) == [0, 1, 2]
    assert worker.call(JOBS + "process", (), 30) == first


def test_a_hang_is_killed_with_its_children_and_the_worker_reborn(worker: Worker, tmp_path: Path) -> None:
    note = tmp_path / "pids"
    worker.call(JOBS + "add", (1, 1), 30)
    started = time.monotonic()
    failure = worker.call(JOBS + "hang_with_child", (str(note),), 1.5)
    assert failure == Failure("timeout", "no answer within 1.5 s; killed")
    assert time.monotonic() - started < 10
    deadline = time.monotonic() + 5
    pids = [int(word) for word in note.read_text().split()]
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2
    assert not any(map(alive, pids))
    assert worker.call(JOBS + "add", (2, 2), 30) == 4


def test_deaths_are_named(worker: Worker) -> None:
    crash = worker.call(JOBS + "segfault", (), 30)
    assert crash.stage == "launch"
    assert "SIGSEGV" in crash.reason
    left = worker.call(JOBS + "leave", (7,), 30)
    assert left == Failure("launch", "the worker process exited with status 7: some last words")
    items = list(worker.stream(JOBS + "count_then_abort", (2,), 30))
    assert items[:2] == [0, 1]
    assert "SIGABRT" in items[2].reason


def test_exceptions_are_values_and_the_child_lives_on(worker: Worker) -> None:
    first = worker.call(JOBS + "process", (), 30)
    assert worker.call(JOBS + "divide", (0,), 30) == Failure("launch", "ZeroDivisionError: division by zero")
    assert worker.call(JOBS + "out_of_memory", (), 30) == Failure("memory", "CUDA out of memory. Tried to allocate 3.00 GiB.")
    with pytest.raises(ShapeError, match="x is 3-D"):
        worker.call(JOBS + "bad_input", (), 30)
    assert worker.call(JOBS + "nothing_of_that_name", (), 30).stage == "launch"
    assert worker.call(JOBS + "process", (), 30) == first


def test_a_cuda_fault_costs_the_child(worker: Worker) -> None:
    first = worker.call(JOBS + "process", (), 30)
    assert worker.call(JOBS + "cuda_fault", (), 30) == Failure("launch", "CUDA error: an illegal memory access was encountered")
    assert worker.call(JOBS + "process", (), 30) != first


def test_a_death_in_the_middle_of_an_answer_is_a_failure(worker: Worker) -> None:
    assert worker.call(JOBS + "half_an_answer", (), 30) == Failure("launch", "the worker process exited with status 9")
    assert worker.call(JOBS + "add", (2, 2), 30) == 4


def test_a_child_that_hangs_up_and_stays_is_killed(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "DYING_SECONDS", 0.5)
    worker.call(JOBS + "add", (1, 1), 30)
    child = worker.call(JOBS + "process", (), 30)
    started = time.monotonic()
    failure = worker.call(JOBS + "leave_but_stay", (100.0,), 30)
    assert failure == Failure("launch", "the worker process hung up and did not end; killed")
    assert time.monotonic() - started < 50
    assert not alive(child)
    assert worker.call(JOBS + "add", (2, 2), 30) == 4


def test_environment_reaches_only_the_child() -> None:
    with Worker({"TERSPARSE_TEST_WORD": "hello"}) as worker:
        assert worker.call(JOBS + "variable", ("TERSPARSE_TEST_WORD",), 30) == "hello"
    assert "TERSPARSE_TEST_WORD" not in os.environ
