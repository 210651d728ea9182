"""Two runs side by side, by hand."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from kernels.problem import Problem
from reports.load import Case, Results
from reports.two_runs import EDGE, Change, two_runs
from suites.record import CaseRecord
from tests.reports import golden


def case(tokens: int, **us: float) -> CaseRecord:
    """A case whose kernels take so many µs in every round."""
    problem = Problem("gemm", 64, 256, tokens, golden.S24)
    made = [golden.result(name.replace("_", "-"), time, random.Random(0), samples_us=(time,) * 5) for name, time in us.items()]
    return golden.case("prefill", "m", "Wo", problem, (), random.Random(0), results=tuple(made))


def run(source: str, *cases: CaseRecord) -> Results:
    return Results("h200", source, cases=tuple(Case(one, Problem.from_dict(dict(one.problem))) for one in cases))


def change(first: CaseRecord, second: CaseRecord) -> Change:
    (row,) = two_runs(run("A", first), run("B", second)).rows
    return row


def test_the_change_of_a_speed_up_is_over_one_baseline() -> None:
    same = change(case(1, sparse_mma=10.0, dense_int8=20.0), case(1, sparse_mma=5.0, dense_int8=20.0))
    assert (same.time, same.ratio, same.moved) == (pytest.approx(2.0), pytest.approx(2.0), "")
    faster_rival = change(
        case(1, sparse_mma=10.0, dense_int8=20.0, dense_bf16=30.0), case(1, sparse_mma=10.0, dense_int8=20.0, dense_bf16=15.0)
    )
    assert faster_rival.ratio == pytest.approx(0.5), "over the second run's strongest, which both timed"
    assert faster_rival.moved == "strongest was dense-int8, is dense-bf16"
    new_rival = change(case(1, sparse_mma=10.0, dense_int8=20.0), case(1, sparse_mma=10.0, dense_int8=20.0, slidesparse=12.0))
    assert new_rival.ratio == pytest.approx(1.0), "a baseline that is new makes no kernel of ours slower"
    apart = change(case(1, sparse_mma=10.0, dense_int8=20.0), case(1, dense_triton=10.0, slidesparse=12.0))
    assert apart.ratio is None
    assert apart.moved == "ours was sparse-mma, is dense-triton; strongest was dense-int8, is slidesparse"


def test_losses_and_gains_stand_at_the_edges_and_cases_of_one_run_are_counted() -> None:
    factors = [0.5, 0.9, 0.999, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.001, 1.5, 2.0]
    before = [case(tokens, sparse_mma=10.0, dense_int8=20.0) for tokens in range(1, len(factors) + 1)]
    after = [case(tokens, sparse_mma=10.0 / factor, dense_int8=20.0) for tokens, factor in enumerate(factors, 1)]
    found = two_runs(run("A", *before, case(99, sparse_mma=1.0, dense_int8=2.0)), run("B", *after[::-1]))
    assert [row.time for row in found.rows] == pytest.approx(sorted(factors))
    assert found.alone == 1
    assert len(factors) > 2 * EDGE
    assert [row.time for row in found.edges] == pytest.approx([0.5, 0.9, 1.5, 2.0])
    assert (found.times.least, found.times.greatest, found.times.count) == (pytest.approx(0.5), pytest.approx(2.0), len(factors))
    failed = replace(before[0], results=tuple(replace(one, status="failed", samples_us=()) for one in before[0].results))
    assert two_runs(run("A", failed), run("B", after[0])).alone == 1
