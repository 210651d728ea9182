"""Prefill: the GEMM with its scaling epilogue, int8 activations in, bf16 out, many tokens, hot."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.problem import Problem
from suites.case import Case, Choice, Suite, layer_problems


def _cases(choice: Choice) -> Iterator[Case]:
    for layer, sparsity, tokens in layer_problems(choice):
        problem = Problem("gemm", layer.out_features, layer.in_features, tokens, sparsity, layer.splits)
        yield Case("prefill", layer.model, layer.name, problem, "hot")


SUITE = Suite(
    name="prefill", title="GEMM with scaling epilogue, many tokens", cases=_cases,
    tokens=(128, 512, 2048, 8192, 16384), sparsities=("2:4", "6:8"), models=("0.5b", "3b", "7b", "bitnet-2b"),
    quick_layers=(("qwen2.5-3b", "W13"), ("qwen2.5-7b", "W2"), ("bitnet-2b", "Wqkv")), quick_tokens=(512, 8192),
)
