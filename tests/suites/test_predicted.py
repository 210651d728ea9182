from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.machine_code import Loop
from kernels.gpu import by_name
from kernels.problem import DENSE, Problem, Sparsity
from suites.floors import compulsory_bytes
from suites.predicted import WARP_PRODUCTS_ON_HOPPER, predict

A100, H200 = by_name("a100"), by_name("h200")
LOOP = Loop(100, 65536, {"tensor": 8, "integer": 20}, shared_bytes=4096)
PROBLEM = Problem("gemm", 4096, 4096, 4096, DENSE)
MULTIPLY = 2 * 4096**3


def test_each_wall_by_hand() -> None:
    found = predict(PROBLEM, A100, LOOP)
    assert found is not None
    clock = 108 * 1410.0
    assert found.walls == pytest.approx({
        "tensor cores": MULTIPLY / 624e6, "issue": MULTIPLY / 65536 * 100 / 4 / clock, "integer units": MULTIPLY / 65536 * 20 / 2 / clock,
        "shared memory": MULTIPLY / 65536 * 4096 / 128 / clock, "device memory": compulsory_bytes(PROBLEM) / 2.039e6,
    })
    assert (found.limit, found.us) == ("shared memory", max(found.walls.values()))
    assert found.serial_us == pytest.approx(sum(found.walls.values()))


def test_sparse_products_are_twice_as_fast_and_lifting_is_paid_for() -> None:
    dense, half, lifted = (
        predict(PROBLEM.with_(sparsity=sparsity), A100, replace(LOOP, sparse=sparsity != DENSE)) for sparsity in
        (DENSE, Sparsity(2, 4), Sparsity(6, 8))
    )
    assert dense
    assert half
    assert lifted
    assert half.walls["tensor cores"] == pytest.approx(dense.walls["tensor cores"] / 2)
    assert half.walls["issue"] == pytest.approx(dense.walls["issue"])
    assert lifted.walls["tensor cores"] == pytest.approx(dense.walls["tensor cores"] * 1.5 / 2)


def test_products_of_single_warps_do_not_reach_hoppers_rate() -> None:
    single, grouped = predict(PROBLEM, H200, LOOP), predict(PROBLEM, H200, replace(LOOP, grouped=True))
    assert single
    assert grouped
    assert grouped.walls["tensor cores"] == pytest.approx(single.walls["tensor cores"] * WARP_PRODUCTS_ON_HOPPER)


def test_a_share_of_the_problem() -> None:
    whole, third = predict(PROBLEM, A100, LOOP), predict(PROBLEM, A100, LOOP, 1 / 3)
    assert whole
    assert third
    assert third.us == pytest.approx(whole.us / 3)


def test_nothing_is_predicted_from_nothing() -> None:
    assert predict(PROBLEM, A100, None) is None
    assert predict(PROBLEM, replace(A100, clock_mhz=0), LOOP) is None
