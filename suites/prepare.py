"""Prepare: mask + quantize + pack of a master weight, and the quantization of activations, plain and lifted; all cold."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.problem import DENSE, Problem
from suites.case import Case, Choice, Suite
from suites.models import Layer


def _cases(choice: Choice) -> Iterator[Case]:
    for layer in choice.layers:
        for sparsity in choice.sparsities:
            problem = Problem("prepare", layer.out_features, layer.in_features, 0, sparsity, layer.splits)
            yield Case("prepare", layer.model, layer.name, problem, "cold")
    widths = dict.fromkeys((layer.model, layer.in_features) for layer in choice.layers)
    quantizers = dict.fromkeys(sparsity if sparsity.lifted else DENSE for sparsity in choice.sparsities)
    for model, width in widths:
        for sparsity in quantizers:
            for tokens in choice.tokens:
                yield Case("prepare", model, "activation", Problem("activation", 0, width, tokens, sparsity), "cold")


SUITE = Suite(
    name="prepare", title="mask + quantize + pack, activation quantization", cases=_cases,
    tokens=(1, 64, 2048, 16384), sparsities=("2:4", "6:8"), models=("3b", "bitnet-2b"),
    extra_layers=(Layer("square", "8192x8192", 8192, 8192, (8192,)),),
    quick_layers=(("bitnet-2b", "W13"), ("square", "8192x8192")), quick_tokens=(64, 2048),
)
