"""Ceilings in the rounds of a case, on a device that is not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.clock import FakeCall
from autotune.roofs import Ceiling
from kernels.errors import Failure, RecordError
from kernels.problem import Problem, Sparsity
from suites import ceilings
from suites.bench import Bench
from suites.case import Case
from suites.floors import SPARSE_MMA
from suites.record import CaseRecord, Result, from_dict, read, to_line
from suites.runner import WeightStore, run_case
from suites.session import joined
from tests.suites.fakes import H200, PLAN, THEIRS, gemm, lab

OPERATIONS = 1e9
SQUARE = Case("square", "square", "64x64", Problem("gemm", 64, 64, 64, Sparsity(2, 4)), "hot")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CaseRecord]:
    """A case on a fake device whose `mma.sp` does 1e9 operations in 25 µs."""
    monkeypatch.setattr(ceilings, "offered", lambda bench: Ceiling(SPARSE_MMA, FakeCall(lambda: None, 25.0), OPERATIONS))

    def measure(case: Case = SQUARE, name: str = "sparse-mma", excluded: dict[str, Failure] | None = None) -> CaseRecord:
        made = lab((gemm(name, 50.0), THEIRS))
        bench = Bench(H200, made.clock, made.monitor, made.kernels_for, "cpu")
        return run_case(case, bench, PLAN, WeightStore(), excluded=excluded)

    return measure


def of(record: CaseRecord, kernel: str) -> Result:
    result = record.result(kernel)
    assert result is not None
    assert result.status == "ok"
    return result


def test_the_ceiling_has_a_rate_for_every_round(measured: Callable[..., CaseRecord]) -> None:
    record = measured()
    ours, theirs = of(record, "sparse-mma"), of(record, "theirs")
    assert len(ours.ceiling) == len(ours.samples_us) == len(theirs.samples_us) >= 3
    assert all(rate == pytest.approx(OPERATIONS / 25e-6, rel=0.05) for rate in ours.ceiling)
    assert theirs.ceiling == ()
    assert [result.kernel for result in record.results] == ["sparse-mma", "theirs"], "the ceiling is no kernel of the case"


def test_only_where_it_bounds_something(measured: Callable[..., CaseRecord]) -> None:
    assert of(measured(replace(SQUARE, suite="prefill")), "sparse-mma").ceiling == ()
    assert of(measured(replace(SQUARE, state="sustained")), "sparse-mma").ceiling == ()
    assert of(measured(name="ours"), "ours").ceiling == ()
    assert of(measured(excluded={SPARSE_MMA: Failure("launch", "it hung")}), "sparse-mma").ceiling == ()


def test_a_bench_without_a_device_offers_none() -> None:
    made = lab()
    assert ceilings.offered(Bench(H200, made.clock, made.monitor, made.kernels_for, "cpu")) is None


def test_processes_are_joined_with_their_ceilings(measured: Callable[..., CaseRecord]) -> None:
    first, second = measured(), measured()
    both = of(joined(first, second), "sparse-mma")
    assert both.ceiling == of(first, "sparse-mma").ceiling + of(second, "sparse-mma").ceiling
    assert len(both.ceiling) == len(both.samples_us)
    without = replace(second, results=tuple(replace(result, ceiling=()) for result in second.results))
    assert of(joined(first, without), "sparse-mma").ceiling == ()


def test_the_record_keeps_it_and_refuses_a_wrong_one(measured: Callable[..., CaseRecord]) -> None:
    record = measured()
    again = from_dict(json.loads(to_line(record)))
    assert isinstance(again, CaseRecord)
    assert of(again, "sparse-mma").ceiling == of(record, "sparse-mma").ceiling
    line = json.loads(to_line(record))
    for wrong in ([1.0], [-1.0] * len(of(record, "sparse-mma").samples_us), ["fast"]):
        line["results"][0]["ceiling"] = wrong
        with pytest.raises(RecordError, match="ceiling"):
            from_dict(line)


def test_accepted_records_without_ceilings_still_load(repository: Path) -> None:
    cases = [record for record in read(repository / "suites" / "accepted" / "h200.jsonl") if isinstance(record, CaseRecord)]
    assert any(record.suite == "square" for record in cases)
