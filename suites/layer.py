"""Layer: the operator a user calls, bf16 in, bf16 out: quantize (and lift), GEMM, scale, bias."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.problem import Problem
from suites.case import Case, Choice, Suite, layer_problems


def _cases(choice: Choice) -> Iterator[Case]:
    for layer, sparsity, tokens in layer_problems(choice):
        problem = Problem("layer", layer.out_features, layer.in_features, tokens, sparsity, layer.splits, bias=True)
        yield Case("layer", layer.model, layer.name, problem, "hot")


SUITE = Suite(
    name="layer", title="whole operator, bf16 in, bf16 out", cases=_cases,
    tokens=(1, 64, 2048, 8192), sparsities=("dense", "2:4", "6:8"), models=("3b", "7b", "bitnet-2b"),
    quick_layers=(("qwen2.5-7b", "Wo"), ("bitnet-2b", "W13")), quick_tokens=(1, 2048),
)
