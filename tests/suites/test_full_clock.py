"""A device that reaches its power cap within a case: which rounds count, and who chooses them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from kernels.gpu import by_name
from kernels.problem import Problem, Sparsity
from suites.calibration_pairs import Pair, Seen, pairs_of
from suites.judging import Judge, judge_case
from suites.record import CaseRecord, Result, RunRecord
from suites.spread import noises_of
from suites.statistics import at_full_clock, process_logs


def times(fast_rounds: int, slip: bool = False) -> tuple[list[float], list[float]]:
    """Ours and theirs: 10 and 20 µs at full clock, and at the power cap ours, which draws more, 12 % slower, theirs 4 %."""
    random = np.random.default_rng(fast_rounds)
    states = [(1.0, 1.0)] * fast_rounds + [(1.12, 1.04)] * (20 - fast_rounds)
    ours, theirs = (np.array([state[side] for state in states]) * us for side, us in ((0, 10.0), (1, 20.0)))
    ours *= np.exp(random.normal(0, 0.001, 20))
    ours[0] *= 0.6 if slip else 1.0
    return ours.tolist(), (theirs * np.exp(random.normal(0, 0.001, 20))).tolist()


def results(fast_rounds: int, slip: bool = False) -> tuple[Result, Result]:
    ours, theirs = times(fast_rounds, slip)
    return Result("ours", "variant", "ok", samples_us=tuple(ours)), Result("theirs", "baseline", "ok", samples_us=tuple(theirs))


@pytest.mark.parametrize("slip", [False, True])
@pytest.mark.parametrize("fast_rounds", [4, 8, 12, 16])
def test_the_ratio_at_full_clock_does_not_depend_on_when_the_cap_is_reached(fast_rounds: int, slip: bool) -> None:
    ours, theirs = results(fast_rounds, slip)
    (near,) = process_logs(ours, theirs, fast=True)
    (everything,) = process_logs(ours, theirs)
    assert len(everything) == 20
    assert len(near) == pytest.approx(fast_rounds, abs=0)
    assert float(np.median(near)) == pytest.approx(math.log(2), abs=0.002)
    usual = math.log(2) if fast_rounds > 10 else math.log(2 * 1.04 / 1.12)
    assert float(np.median(everything)) == pytest.approx(usual, abs=0.003), "a median of all is of one state or of the other"


def test_there_are_always_some() -> None:
    apart = np.log([[10.0, 11.0, 12.0, 13.0, 14.0], [20.0, 26.0, 23.0, 29.0, 21.0]])
    assert at_full_clock(apart).sum() >= 3
    assert at_full_clock(np.log([[10.0], [20.0]])).tolist() == [True]
    assert process_logs(*(Result(name, "variant", "ok") for name in ("a", "b")), fast=True) == []


def test_several_processes_choose_for_themselves() -> None:
    ours, theirs = (
        Result(own.kernel, own.kind, "ok", samples_us=own.samples_us + tuple(1.3 * us for us in other.samples_us))
        for own, other in zip(results(8), results(12), strict=True)
    )
    assert [len(part) for part in process_logs(ours, theirs, (20, 20), fast=True)] == [8, 12]


def test_a_quick_run_is_compared_at_full_clock_with_one_that_is_not() -> None:
    """The accepted run reached its power cap after four rounds of twenty, the quick one ended before."""
    problem = Problem("gemm", 1024, 1024, 512, Sparsity(2, 4))
    full = CaseRecord("full", "prefill", "m", "W2", "interleaved", "hot", problem.to_dict(), str(problem), 10**6, 10**6, results(4))
    heads = [RunRecord(name, "h200", "2026-01-01", "abc", False, "m/1", "fake", arguments=line) for name, line in (
        ("full", ()), ("quick", ("--gpu", "h200", "--quick")), ("again", ()),
    )]
    short = tuple(replace(own, samples_us=own.samples_us[:5]) for own in results(16))
    for name, expected in (("quick", "PASS"), ("again", "IMPROVED")):
        now = replace(full, run=name, results=short)
        (found,) = judge_case(now, full, Judge(by_name("h200"), {}, None, {head.id: head for head in heads}))
        assert found.verdict == expected, found.detail


def test_a_calibration_takes_what_differs_least_between_processes() -> None:
    records = [
        CaseRecord("r", "prefill", "m", "W2", "interleaved", "hot", {}, "gemm", 1, 1, results(rounds)) for rounds in (6, 9, 12, 14, 7, 13)
    ]
    (pair,) = pairs_of({"key": records})
    (noise,) = noises_of([pair])
    assert (pair.steadier(), noise.fast) == (True, True)
    assert noise.spread < 0.002 < float(np.std(pair.all.medians))
    assert noise.rounds == 20
    steady = Seen.of([np.array([0.5, 0.5001, 0.4999])] * 4)
    wild = Seen.of([np.array([0.5, 0.6, 0.4]) + 0.1 * place for place in range(4)])
    assert not Pair("key", "ours", "theirs", 10.0, (3,) * 4, steady, wild).steadier()
    assert Pair("key", "ours", "theirs", 10.0, (3,) * 4, wild, steady).steadier()
