"""Floors, statistics and what makes a case doubtful."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.gpu import by_name
from kernels.problem import DENSE, Problem, Sparsity
from suites.floors import compulsory_bytes, expansion, floor_us, impossible, sparse_speed
from suites.quality import headline, noise, troubles
from suites.record import CaseRecord, Result
from suites.statistics import Ratio, best_variant, geomean, joules_per_call, speedup, strongest, time_us

H200 = by_name("h200")
HALF, SIX = Sparsity(2, 4), Sparsity(6, 8)


def result(name: str, us: float, kind: str = "baseline", noise: float = 0.0, **fields: object) -> Result:
    samples = tuple(np.random.default_rng(len(name)).normal(us, us * noise, 20)) if noise else (us,) * 20
    return Result(name, kind, "ok", samples_us=samples, **fields)  # type: ignore[arg-type]


def case(problem: Problem, *results: Result, cache: str = "hot") -> CaseRecord:
    return CaseRecord(
        "r", "prefill", "m", "W2", "interleaved", cache, problem.to_dict(), str(problem), problem.operations,  # type: ignore[arg-type]
        compulsory_bytes(problem), results,
    )


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (Problem("gemm", 8, 16, 4, HALF), 4 * 16 + 16 + 8 * 16 // 4 + 4 + 2 * 4 * 8),
        (Problem("gemm", 8, 16, 4, HALF, dtype="int32"), 4 * 16 + 16 + 8 * 16 // 4 + 4 + 4 * 4 * 8),
        (Problem("layer", 8, 16, 4, DENSE, bias=True), 2 * 4 * 16 + 8 * 16 // 4 + 4 + 2 * 4 * 8 + 32),
        (Problem("prepare", 8, 16, 0, HALF, (4, 4)), 2 * 8 * 16 + 8 * 16 // 4 + 8),
        (Problem("activation", 0, 16, 4, DENSE), 2 * 4 * 16 + 4 * 16 + 16),
        (Problem("activation", 0, 16, 4, SIX), 2 * 4 * 16 + 4 * 24 + 16),
        (Problem("weight-grad", 8, 16, 4, HALF), 2 * 4 * 8 + 4 * 16 + 16 + 2 * 8 * 16),
        (Problem("step", 8, 16, 4, HALF), 2 * (2 * 4 * 16 + 2 * 8 * 16 + 2 * 4 * 8)),
    ],
)
def test_compulsory_bytes(problem: Problem, expected: int) -> None:
    assert compulsory_bytes(problem) == expected


@pytest.mark.parametrize(
    ("sparsity", "wider", "faster"), [(DENSE, 1, 1), (HALF, 1, 2), (SIX, 1.5, 4 / 3), (Sparsity(4, 6), 4 / 3, 1.5), (Sparsity(3, 4), 1, 1)],
)
def test_what_sparse_tensor_cores_gain(sparsity: Sparsity, wider: float, faster: float) -> None:
    assert expansion(sparsity) == pytest.approx(wider)
    assert sparse_speed(sparsity) == pytest.approx(faster)


def test_nothing_is_faster_than_its_floor() -> None:
    problem = Problem("gemm", 8192, 8192, 8192, HALF)
    floor = floor_us(problem, H200)
    assert floor == pytest.approx(2 * 8192**3 / 3958e12 * 1e6)
    made = case(problem)
    assert impossible(made, result("x", floor), H200, {}) is None
    assert "arithmetic roof" in str(impossible(made, result("x", 0.9 * floor), H200, {}))
    assert impossible(made, result("x", 0.9 * floor), H200, {"dense-int8": 2500e12}) is None
    assert "arithmetic" in str(impossible(case(problem.with_(sparsity=DENSE)), result("x", floor), H200, {}))


def test_the_memory_roof_counts_only_where_memory_is_needed() -> None:
    problem = Problem("gemm", 4096, 4096, 1, HALF)
    quick = result("x", 0.5)
    assert "memory roof" in str(impossible(case(problem, cache="cold"), quick, H200, {}))
    assert impossible(case(problem), quick, H200, {}) is None
    assert impossible(case(problem, cache="cold"), quick, H200, {"read": 9e12}) is None
    stored = 4096 * 4096 * 3 // 16
    assert "memory roof" in str(impossible(case(problem, cache="cold"), result("x", 0.7), H200, {}))
    assert impossible(case(problem, cache="cold"), result("x", 0.7, weight_bytes=stored), H200, {}) is None
    assert "memory roof" in str(impossible(case(problem, cache="cold"), result("x", 0.5, weight_bytes=stored), H200, {}))


def test_speedups_are_paired() -> None:
    drift = 1 + 0.3 * np.arange(20)
    ours, theirs = result("a", 10, "variant"), result("b", 20)
    ours = replace(ours, samples_us=tuple(10 * drift))
    theirs = replace(theirs, samples_us=tuple(20 * drift))
    ratio = speedup(ours, theirs)
    assert ratio is not None
    assert (ratio.value, ratio.low, ratio.high) == (pytest.approx(2), pytest.approx(2), pytest.approx(2))
    assert ratio.pairs == 20
    assert speedup(ours, replace(theirs, samples_us=())) is None


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random, hits = np.random.default_rng(1), 0
    for _ in range(100):
        a, b = random.lognormal(0, 0.05, (2, 20))
        ratio = speedup(replace(result("a", 1), samples_us=tuple(a)), replace(result("b", 1), samples_us=tuple(2 * b)))
        assert ratio is not None
        hits += ratio.low <= 2 <= ratio.high
    assert 85 <= hits <= 100


def test_sustained_time_and_energy() -> None:
    blocks = ({"seconds": 2.0, "calls": 10, "joules": 100.0}, {"seconds": 4.0, "calls": 10, "joules": 200.0})
    sustained = replace(result("a", 1), samples_us=(), blocks=blocks)
    assert time_us(sustained) == pytest.approx(0.3e6)
    assert joules_per_call(sustained) == 15.0
    assert joules_per_call(replace(sustained, blocks=({"seconds": 2.0, "calls": 10},))) is None


def test_who_is_strongest_and_best() -> None:
    made = case(
        Problem("gemm", 64, 64, 64, HALF), result("slow", 30, "variant"), result("sloppy", 5, "variant", exact=False),
        result("raw", 4, exact=False), result("sparse", 20), result("fp8", 25, exact=False, dense=True), result("bf16", 40, dense=True),
        Result("gone", "baseline", "unavailable"),
    )
    assert (best_variant(made) or made).kernel == "slow"  # type: ignore[union-attr]
    assert (best_variant(made, "sloppy") or made).kernel == "sloppy"  # type: ignore[union-attr]
    assert (strongest(made) or made).kernel == "sparse"  # type: ignore[union-attr]
    assert (strongest(made, dense_only=True) or made).kernel == "fp8"  # type: ignore[union-attr]
    assert headline(made).value == pytest.approx(2 / 3)  # type: ignore[union-attr]


def test_our_own_dense_kernel_is_a_baseline_of_sparse_weights() -> None:
    results = (result("sparse-wgmma", 20, "variant"), result("dense-wgmma", 10, "variant"), result("dense-int8-triton", 12, dense=True),
               result("dense-fp8", 15, exact=False, dense=True), result("dense-bf16", 40, dense=True))  # fmt: skip
    sparse, dense = (case(Problem("gemm", 64, 64, 64, sparsity), *results) for sparsity in (HALF, DENSE))
    assert [best_variant(made).kernel for made in (sparse, dense)] == ["sparse-wgmma", "dense-wgmma"]  # type: ignore[union-attr]
    for options, expected in (({}, ["dense-wgmma", "dense-int8-triton"]), ({"dense_only": True}, ["dense-wgmma", "dense-int8-triton"]),
                              ({"libraries": True}, ["dense-bf16", "dense-bf16"])):  # fmt: skip
        assert [strongest(made, **options).kernel for made in (sparse, dense)] == expected  # type: ignore[union-attr]
    assert best_variant(sparse, "dense-wgmma").kernel == "dense-wgmma", "by name it is what it is"  # type: ignore[union-attr]


def test_troubles() -> None:
    problem = Problem("gemm", 64, 64, 64, HALF)
    assert troubles(case(problem, result("a", 10, "variant"), result("b", 20))) == []
    assert [code for code, _ in troubles(case(problem, result("a", 10, "variant", noise=0.4), result("bb", 20, noise=0.4)))] == [4]
    refused, absent = Result("a", "variant", "refused", "refused", "no"), Result("a", "variant", "unavailable", "unavailable", "no")
    assert troubles(case(problem, refused, result("b", 20))) == [(4, "no variant was measured")]
    assert troubles(case(problem, absent, result("b", 20))) == []
    assert troubles(case(problem, result("b", 20))) == []
    fast = result("a", 10, "variant", notes={"impossible": "too fast"})
    assert troubles(case(problem, fast)) == [(4, "a is impossible: too fast")]
    assert troubles(replace(case(problem), refusal="no")) == []
    failed = Result("c", "baseline", "failed", "launch", "boom")
    assert troubles(case(problem, result("a", 10, "variant"), failed)) == [(4, "c: launch: boom")]
    assert noise(Ratio(2.0, 1.9, 2.09, 20)) == pytest.approx(0.1)


def test_the_geometric_mean() -> None:
    assert geomean([1.0, 4.0]) == 2.0
    assert np.isnan(geomean([]))
