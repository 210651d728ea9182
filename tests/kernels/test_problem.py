"""Sparsities and problems as values: what is read, what is refused, and the label that everything is keyed by."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from kernels.errors import UsageError
from kernels.problem import DENSE, GROUP_SIZES, Op, Problem, Sparsity

HALF, SIX = Sparsity(2, 4), Sparsity(6, 8)


def test_sparsities_are_read_as_they_are_written() -> None:
    every = [DENSE, *(Sparsity(n, m) for m in GROUP_SIZES for n in range(1, m))]
    assert [Sparsity.parse(str(one)) for one in every] == every
    assert Sparsity.parse("1:1") == Sparsity.parse("dense") == DENSE
    assert {str(one) for one in every if one.lifted} == {"4:6", "6:8", "8:10", "14:16"}


@pytest.mark.parametrize("text", ["4:4", "0:4", "5:4", "2:5", "-2:4", "2:4 ", "2/4", "half", ""])
def test_unknown_sparsities_are_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(UsageError, match=r"unknown sparsity .*; allowed: dense, or n:m"):
        Sparsity.parse(text)


@pytest.mark.parametrize(("fields", "label"), [
    ({}, "gemm 24x48 T=7 2:4"),
    ({"splits": (16, 8), "dtype": "int32"}, "gemm 24x48 T=7 2:4 splits=16,8 int32"),
    ({"sparsity": DENSE, "bias": True, "tokens": 0}, "gemm 24x48 T=0 dense bias"),
    ({"op": "prepare", "tokens": 0, "sparsity": SIX, "dtype": "fp16"}, "prepare 24x48 6:8 fp16"),
    ({"op": "activation", "out_features": 0, "sparsity": SIX}, "activation K=48 T=7 6:8"),
])
def test_labels_and_json(fields: dict[str, Any], label: str) -> None:
    problem = Problem(**{"op": "gemm", "out_features": 24, "in_features": 48, "tokens": 7, "sparsity": HALF, **fields})
    assert str(problem) == label
    assert Problem.from_dict(json.loads(json.dumps(problem.to_dict()))) == problem


@pytest.mark.parametrize(("changes", "message"), [
    ({"op": "gem"}, r"unknown op 'gem'; allowed: gemm, layer, .*step"),
    ({"dtype": "fp8"}, r"unknown dtype 'fp8'; allowed: bf16, fp16, fp32, int32"),
    ({"tokens": -1}, "-1 tokens: in_features is at least 1"),
    ({"in_features": 0}, "24x0, 7 tokens: in_features is at least 1"),
    ({"splits": (16, 9)}, r"splits \(16, 9\) do not sum to out_features 24"),
    ({"splits": (30, -6)}, "one is negative"),
])
def test_what_is_no_problem_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Problem("gemm", 24, 48, 7, HALF).with_(**changes)


def test_what_has_no_answer_says_why() -> None:
    assert Problem("gemm", 8, 12, 1, SIX).refusal == "in_features 12 is not a multiple of the group of 8 in 6:8"
    assert Problem("gemm", 8, 12, 1, HALF).refusal is None


def test_operations_are_those_of_its_products() -> None:
    products = {op: Problem(op, 24, 48, 7, HALF).operations / (2 * 24 * 48 * 7) for op in get_args(Op)}
    assert products == {"gemm": 1, "layer": 1, "prepare": 0, "activation": 0, "forward": 1, "input-grad": 1, "weight-grad": 1, "step": 3}
