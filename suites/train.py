"""Train: forward, input gradient, weight gradient and the whole step of one linear layer, mask + quantize + pack once per step."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.problem import Op, Problem
from suites.case import Case, Choice, Suite, layer_problems

PARTS: tuple[Op, ...] = ("forward", "input-grad", "weight-grad", "step")


def _cases(choice: Choice) -> Iterator[Case]:
    for layer, sparsity, tokens in layer_problems(choice):
        for part in PARTS:
            problem = Problem(part, layer.out_features, layer.in_features, tokens, sparsity, layer.splits)
            yield Case("train", layer.model, layer.name, problem, "hot")


SUITE = Suite(
    name="train", title="one linear layer in training", cases=_cases,
    tokens=(4096, 16384), sparsities=("2:4", "6:8"), models=("0.5b", "3b", "7b"),
    quick_layers=(("qwen2.5-0.5b", "W13"), ("qwen2.5-3b", "W2")), quick_tokens=(4096,),
)
