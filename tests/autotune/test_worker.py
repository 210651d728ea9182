from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from autotune import worker as workers
from autotune.worker import Worker
from kernels.errors import Failure, ShapeError
from tests.patience import PATIENCE, alive, until

JOBS = "tests.autotune.jobs:"


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


def test_jobs_share_one_child(worker: Worker) -> None:
    first = worker.call(JOBS + "process", (), PATIENCE)
    assert first != os.getpid()
    assert worker.call(JOBS + "add", (2, 3), PATIENCE) == 5
    assert list(worker.stream(JOBS + "count", (3,), PATIENCE)) == [0, 1, 2]
    assert worker.call(JOBS + "process", (), PATIENCE) == first


def test_a_hang_is_killed_with_its_children_and_the_worker_reborn(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seconds are counted here from when it has a child and hangs, whatever the machine took until then."""
    note, poll = tmp_path / "pids", Connection.poll
    worker.call(JOBS + "add", (1, 1), PATIENCE)

    def polled(channel: Connection, seconds: float) -> bool:
        if seconds == 1.5:
            until(lambda: note.exists() and len(note.read_text().split()) == 2, "the hang")
        return poll(channel, seconds)

    monkeypatch.setattr(Connection, "poll", polled)
    failure = worker.call(JOBS + "hang_with_child", (str(note),), 1.5)
    assert failure == Failure("timeout", "no answer within 1.5 s; killed")
    pids = [int(word) for word in note.read_text().split()]
    until(lambda: not any(map(alive, pids)), "the processes to end")
    assert worker.call(JOBS + "add", (2, 2), PATIENCE) == 4


def test_deaths_are_named(worker: Worker) -> None:
    crash = worker.call(JOBS + "segfault", (), PATIENCE)
    assert crash.stage == "launch"
    assert "SIGSEGV" in crash.reason
    left = worker.call(JOBS + "leave", (7,), PATIENCE)
    assert left == Failure("launch", "the worker process exited with status 7: some last words")
    items = list(worker.stream(JOBS + "count_then_abort", (2,), PATIENCE))
    assert items[:2] == [0, 1]
    assert "SIGABRT" in items[2].reason


def test_exceptions_are_values_and_the_child_lives_on(worker: Worker) -> None:
    first = worker.call(JOBS + "process", (), PATIENCE)
    assert worker.call(JOBS + "divide", (0,), PATIENCE) == Failure("launch", "ZeroDivisionError: division by zero")
    assert worker.call(JOBS + "out_of_memory", (), PATIENCE) == Failure("memory", "CUDA out of memory. Tried to allocate 3.00 GiB.")
    with pytest.raises(ShapeError, match="x is 3-D"):
        worker.call(JOBS + "bad_input", (), PATIENCE)
    assert worker.call(JOBS + "nothing_of_that_name", (), PATIENCE).stage == "launch"
    assert worker.call(JOBS + "process", (), PATIENCE) == first


def test_a_cuda_fault_costs_the_child(worker: Worker) -> None:
    first = worker.call(JOBS + "process", (), PATIENCE)
    assert worker.call(JOBS + "cuda_fault", (), PATIENCE) == Failure("launch", "CUDA error: an illegal memory access was encountered")
    assert worker.call(JOBS + "process", (), PATIENCE) != first


def test_a_death_in_the_middle_of_an_answer_is_a_failure(worker: Worker) -> None:
    assert worker.call(JOBS + "half_an_answer", (), PATIENCE) == Failure("launch", "the worker process exited with status 9")
    assert worker.call(JOBS + "add", (2, 2), PATIENCE) == 4


def test_a_child_that_hangs_up_and_stays_is_killed(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "DYING_SECONDS", 0.5)
    worker.call(JOBS + "add", (1, 1), PATIENCE)
    child = worker.call(JOBS + "process", (), PATIENCE)
    failure = worker.call(JOBS + "hang_up_and_stay", (3600.0,), PATIENCE)
    assert failure == Failure("launch", "the worker process hung up and did not end; killed")
    assert not alive(child)
    assert worker.call(JOBS + "add", (2, 2), PATIENCE) == 4


def test_environment_reaches_only_the_child() -> None:
    with Worker({"TERSPARSE_TEST_WORD": "hello"}) as worker:
        assert worker.call(JOBS + "variable", ("TERSPARSE_TEST_WORD",), PATIENCE) == "hello"
    assert "TERSPARSE_TEST_WORD" not in os.environ
