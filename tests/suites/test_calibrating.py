"""What a calibration measures, and in which processes."""

from __future__ import annotations

import time

import pytest

from kernels.catalogue import kernels_for
from kernels.gpu import by_name
from kernels.problem import Problem, Sparsity
from suites import catalogue
from suites.calibrating_cases import choose, fair, spread
from suites.calibrating_process import AheadWorker
from suites.case import Case
from tests.suites.fakes import PLAN

CASE = Case("prefill", "custom", "16x32", Problem("gemm", 16, 32, 4, Sparsity(2, 4)), "hot")


def test_a_child_started_ahead_measures_and_ends() -> None:
    worker = AheadWorker("tests.suites.crashing:executor", "nothing", seconds=60.0)
    worker.start()
    try:
        record = worker.case(CASE, PLAN, {})
    finally:
        worker.close()
    assert all(result.status == "ok" for result in record.results)


def test_a_child_that_is_not_needed_after_all_ends_while_it_starts() -> None:
    worker, started = AheadWorker("tests.suites.crashing:executor", "nothing"), time.monotonic()
    worker.start()
    time.sleep(0.3)
    child = worker._process._child
    worker.close()
    assert child is not None
    assert child.poll() is not None
    assert time.monotonic() - started < 30


def test_cases_are_of_all_suites_and_have_a_kernel_to_measure() -> None:
    cases = catalogue.plan(catalogue.Selection(quick=True))
    names = ("sparse-wgmma", "decode", "dense-triton", "exact-cublas", "two-pass", "activation", "dense-bf16")
    chosen = choose(cases, lambda op: [kernel for kernel in kernels_for(op) if kernel.name in names], by_name("h200"), 24)
    assert len(chosen) == len({case.key for case in chosen}) == 24
    assert [case.key for case in cases if case in chosen] == [case.key for case in chosen], "in the order of the suites"
    counts = [sum(case.suite == suite.name for case in chosen) for suite in catalogue.SUITES]
    assert counts == [4] * 6
    assert not {case.problem.op for case in chosen} & {"input-grad", "weight-grad"}, "none of these kernels computes them"
    everything = choose(cases, lambda op: [kernel for kernel in kernels_for(op) if kernel.name == "two-pass"], by_name("h200"), 0)
    assert {case.problem.op for case in everything} == {"prepare"}


@pytest.mark.parametrize(("sizes", "count", "taken"), [((12, 4, 12), 20, [8, 4, 8]), ((1, 1), 5, [1, 1]), ((3, 3), 3, [2, 1])])
def test_fair_shares(sizes: tuple[int, ...], count: int, taken: list[int]) -> None:
    assert fair(sizes, count) == taken


def test_even_distances() -> None:
    assert spread(range(10), 3) == [0, 4, 8]
    assert spread(range(12), 6) == [0, 3, 4, 7, 8, 11], "odd ones and even ones"
    assert spread(range(2), 3) == [0, 1]
