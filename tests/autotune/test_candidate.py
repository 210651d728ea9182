"""What the device's process shares between candidates and cases."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from autotune import candidate
from autotune.job import COPIES
from kernels.gpu import by_name
from kernels.inputs import make_inputs
from kernels.problem import Op, Problem, Sparsity

CASE = Problem("gemm", 128, 256, 8, Sparsity(2, 4))


@pytest.mark.parametrize("op", ["gemm", "layer", "prepare", "activation", "forward", "input-grad", "weight-grad"])
@pytest.mark.parametrize("seed", [0, candidate.FRESH])
def test_a_shared_weight_gives_the_same_inputs(op: Op, seed: int) -> None:
    for tokens in (0,) if op == "prepare" else (3, 8):
        rows = 0 if op == "activation" else 48
        problem = Problem(op, rows, 64, tokens, Sparsity(2, 4), (rows - 16, 16) if rows else (), bias=op == "layer")
        shared, own = candidate._inputs(problem, "cpu", seed), make_inputs(problem, "cpu", seed)
        assert type(shared) is type(own)
        for field in fields(own):
            first, second = getattr(shared, field.name), getattr(own, field.name)
            assert first is second is None or torch.equal(first, second), field.name


def test_a_layers_weight_is_made_once_for_its_tokens() -> None:
    candidate._weights.cache_clear()
    for tokens in (2, 4, 8):
        candidate._inputs(Problem("gemm", 16, 32, tokens, Sparsity(2, 4)), "cpu", 0)
    candidate._inputs(Problem("layer", 16, 32, 8, Sparsity(2, 4), bias=True), "cpu", 0)
    assert candidate._weights.cache_info().misses == 1
    candidate._inputs(Problem("gemm", 16, 32, 8, Sparsity(6, 8)), "cpu", 0)
    assert candidate._weights.cache_info().misses == 2


def test_only_cuda_devices_are_opened_ahead() -> None:
    assert candidate.ready("cpu", None) is None
    assert COPIES > 1
    assert candidate.foresee("kernels.catalogue", CASE, by_name("h200"), (), "cpu") is None


@pytest.mark.compile
def test_the_first_cases_inputs_and_hashes_are_made_ahead() -> None:
    from kernels.ternary_gemm.sparse_wgmma_kernel import sparse_gemm

    candidate._inputs.cache_clear()
    sparse_gemm.hash = None
    candidate.prepare_case("kernels.catalogue", CASE, by_name("h200"), ("sparse-wgmma",), "cpu")
    assert sparse_gemm.hash is not None
    candidate._inputs(CASE, "cpu", 0)
    assert (candidate._inputs.cache_info().misses, candidate._inputs.cache_info().hits) == (1, 1)
