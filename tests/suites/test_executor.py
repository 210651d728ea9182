"""A kernel that takes its process with it costs only itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels.errors import Failure
from kernels.problem import Problem, Sparsity
from suites.bench import Fault
from suites.case import Case
from suites.executor import Worker, in_flight, measure_case
from suites.record import CaseRecord, read
from suites.session import LOST_IN_A_ROW, Outcome, Session
from suites.store import Writer
from tests.patience import only_hangs_take_too_long
from tests.suites.fakes import OTHER, OURS, PLAN, THEIRS, gemm, lab, measure

CASE = Case("prefill", "custom", "16x32", Problem("gemm", 16, 32, 4, Sparsity(2, 4)), "hot")


@pytest.fixture
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    made = Worker("tests.suites.crashing:executor", request.param, seconds=6.0)
    with only_hangs_take_too_long():
        yield made
    made.close()


@pytest.mark.parametrize(
    ("worker", "stage", "says"),
    [("dies", "launch", "SIGSEGV"), ("hangs", "timeout", "no answer within 6 s")], indirect=["worker"],
)
def test_a_deadly_kernel_is_recorded_and_the_others_are_measured(worker: Worker, stage: str, says: str) -> None:
    record = measure_case(worker, CASE, PLAN)
    assert [(result.kernel, result.status) for result in record.results] == [("ours", "ok"), ("theirs", "ok"), ("deadly", "failed")]
    deadly = record.results[2]
    assert deadly.stage == stage
    assert says in str(deadly.reason)
    assert len(record.results[0].samples_us) == 12


@pytest.mark.parametrize("worker", ["nothing"], indirect=True)
def test_a_child_lives_on_between_cases_and_measures_roofs(worker: Worker) -> None:
    assert all(result.status == "ok" for result in measure_case(worker, CASE, PLAN).results)
    assert [(roof.name, roof.value) for roof in worker.roofs()] == [("copy", 1e12)]
    child = worker._process._child
    assert child is not None
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_a_kernel_with_a_bug_is_a_failure_not_a_crash(tmp_path: Path) -> None:
    buggy = gemm("buggy", 80.0, "baseline", does=KeyError("a bug"))  # type: ignore[arg-type]
    assert measure(tmp_path / "run", lab((OURS, THEIRS, buggy))) == 4
    (case,) = [record for record in read(tmp_path / "run") if isinstance(record, CaseRecord)]
    assert [result.status for result in case.results] == ["ok", "ok", "failed"]
    assert case.results[2].reason == "KeyError: 'a bug'"


@pytest.mark.parametrize(
    ("mark", "found"), [(b"", (None, "start")), (b"\tinputs  ", (None, "inputs")), (b"ours\tcheck", ("ours", "check"))],
)
def test_marks(mark: bytes, found: tuple[str | None, str]) -> None:
    assert in_flight(mark) == found


class AlwaysLost:
    """An executor whose process dies before it says anything."""

    def case(self, *_: object) -> CaseRecord:
        raise Fault(None, Failure("launch", "the process died"))

    def roofs(self) -> list[object]:
        return []

    def close(self) -> None:
        pass


def test_a_machine_that_is_broken_ends_the_run(tmp_path: Path) -> None:
    outcome = Outcome()
    with Writer(tmp_path / "records.jsonl") as writer:
        session = Session(AlwaysLost(), writer, "run", PLAN, lab().kernels_for)  # type: ignore[arg-type]
        session.measure([CASE] * 10, outcome, lambda case, record: None)
    text = (tmp_path / "records.jsonl").read_text().splitlines()
    assert len(text) == LOST_IN_A_ROW
    assert outcome.exit_code == 4
    assert "given up" in outcome.troubles[-1][1]


def test_a_kernel_that_fails_in_its_turn_is_left_out(tmp_path: Path) -> None:
    class Tired:
        name = "fake"

        def __init__(self) -> None:
            self._clock = lab().clock

        def timer(self, calls: object, cold: bool) -> object:
            timer = self._clock.timer(calls, cold)  # type: ignore[arg-type]
            if timer.cost_us == 120.0:  # type: ignore[attr-defined]
                timer.sample = broken  # type: ignore[method-assign]
            return timer

    def broken() -> float:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    made = lab((OURS, THEIRS, OTHER))
    assert measure(tmp_path / "run", type(made)(Tired(), made.kernels, made.monitor, PLAN)) == 4  # type: ignore[arg-type]
    (case,) = [record for record in read(tmp_path / "run") if isinstance(record, CaseRecord)]
    assert [(result.kernel, result.status, len(result.samples_us)) for result in case.results] == [
        ("ours", "ok", 12), ("theirs", "ok", 12), ("other", "failed", 0),
    ]
    assert "illegal memory access" in str(case.results[2].reason)


def test_cold_cases_have_copies_that_exceed_the_cache(tmp_path: Path) -> None:
    seen: list[int] = []
    kernel = gemm("ours", 50.0)
    made = lab((kernel, THEIRS))
    original = made.clock.timer

    def timer(calls: list[object], cold: bool) -> object:
        seen.append(len(calls))
        assert cold
        return original(calls, cold)  # type: ignore[arg-type]

    made.clock.timer = timer  # type: ignore[method-assign, assignment]
    assert measure(tmp_path / "run", made, "--suite", "decode", "--shape", "512x1024", "--tokens", "1", "--sparsity", "2:4") == 0
    (case,) = [record for record in read(tmp_path / "run") if isinstance(record, CaseRecord)]
    assert seen == [2 * 60 + 1] * 2
    assert case.results[0].notes["copies"] == 121
