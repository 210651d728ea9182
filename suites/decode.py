"""Decode: the GEMM with its scaling epilogue for few tokens, weights cold as in a model that streams through its layers."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.problem import Problem
from suites.case import Case, Choice, Suite, layer_problems


def _cases(choice: Choice) -> Iterator[Case]:
    for layer, sparsity, tokens in layer_problems(choice):
        problem = Problem("gemm", layer.out_features, layer.in_features, tokens, sparsity, layer.splits)
        yield Case("decode", layer.model, layer.name, problem, "cold")


SUITE = Suite(
    name="decode", title="GEMM with scaling epilogue, few tokens", cases=_cases,
    tokens=(1, 4, 16, 64), sparsities=("dense", "2:4", "6:8"), models=("3b", "bitnet-2b", "llama3-70b"),
    quick_layers=(("qwen2.5-3b", "W13"), ("llama3-70b", "W2")), quick_tokens=(1, 16),
)
