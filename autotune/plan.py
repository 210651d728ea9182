"""What the table of a GPU is made for: every layer, number of tokens and sparsity that the suites measure, and which kernels there.

The suites stand above the tuner and are not imported; a test holds these rows to their default cases.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kernels.gpu import Gpu
from kernels.kernel import Kernel
from kernels.problem import Op, Problem, Sparsity

FEW_TOKENS, MOST_DECODED = 16, 64
PER_PROBLEM = 2
"""So many kernels are tuned for a problem where none is named: those that are likeliest to be the fastest."""

MODELS: Mapping[str, tuple[int, int, int, int]] = {
    "qwen2.5-0.5b": (896, 4864, 896, 128), "qwen2.5-3b": (2048, 11008, 2048, 256), "qwen2.5-7b": (3584, 18944, 3584, 512),
    "bitnet-2b": (2560, 6912, 2560, 640), "llama3-70b": (8192, 28672, 8192, 1024),
}
"""Width of the model, of its MLP, rows of its queries, rows of its keys and of its values."""


@dataclass(frozen=True)
class Row:
    """A part of a suite: its op on every layer of these models; `square`: out_features = in_features = tokens."""

    suite: str
    op: Op
    models: tuple[str, ...]
    tokens: tuple[int, ...]
    sparsities: tuple[str, ...]
    square: bool = False

    def groups(self) -> Iterator[list[Problem]]:
        """Its problems, those of one sparsity and number of tokens together."""
        for sparsity, tokens in itertools.product(map(Sparsity.parse, self.sparsities), self.tokens):
            if self.square:
                yield [Problem(self.op, tokens, tokens, tokens, sparsity)]
            elif self.op == "activation":
                widths = dict.fromkeys(k for splits, k in self._layers())
                yield [Problem(self.op, 0, k, tokens, sparsity) for k in widths]
            else:
                yield [Problem(self.op, sum(splits), k, tokens, sparsity, splits, bias=self.op == "layer") for splits, k in self._layers()]

    def _layers(self) -> Iterator[tuple[tuple[int, ...], int]]:
        for model in self.models:
            yield from layers(*MODELS[model]) if model in MODELS else [((8192,), 8192)]


def layers(hidden: int, intermediate: int, q: int, kv: int) -> list[tuple[tuple[int, ...], int]]:
    """(rows of each weight scale, in_features) of Wqkv, Wo, W13 and W2."""
    return [((q, kv, kv), hidden), ((hidden,), q), ((intermediate, intermediate), hidden), ((hidden,), intermediate)]


_SMALL, _TRAINED = ("qwen2.5-3b", "qwen2.5-7b", "bitnet-2b"), ("qwen2.5-0.5b", "qwen2.5-3b", "qwen2.5-7b")
_PREPARED, _BOTH, _ALL = ("qwen2.5-3b", "bitnet-2b", "square"), ("2:4", "6:8"), ("dense", "2:4", "6:8")
ROWS: tuple[Row, ...] = (
    Row("prefill", "gemm", ("qwen2.5-0.5b", *_SMALL), (128, 512, 2048, 8192, 16384), _BOTH),
    Row("decode", "gemm", ("qwen2.5-3b", "bitnet-2b", "llama3-70b"), (1, 4, 16, 64), _ALL),
    Row("layer", "layer", _SMALL, (1, 64, 2048, 8192), _ALL),
    Row("prepare", "prepare", _PREPARED, (0,), _BOTH),
    Row("prepare", "activation", _PREPARED, (1, 64, 2048, 16384), ("dense", "6:8")),
    Row("train", "forward", _TRAINED, (4096, 16384), _BOTH),
    Row("train", "input-grad", _TRAINED, (4096, 16384), _BOTH),
    Row("train", "weight-grad", _TRAINED, (4096, 16384), _BOTH),
    Row("square", "gemm", (), (1024, 2048, 4096, 8192, 16384), _BOTH, square=True),
)
"""Of the suite `train` without its steps: they have nothing to choose but what their parts choose."""


def problems() -> list[Problem]:
    """Every problem of the rows once, spread: the first layer of every row, sparsity and number of tokens, then the second ones …, so that
    whenever the time is over, all suites are covered about equally. Last come those to which the config of half the tokens is carried."""
    groups = [group for row in ROWS for group in row.groups()]
    spread = dict.fromkeys(one for level in itertools.zip_longest(*groups) for one in level if one is not None)
    return sorted(spread, key=lambda one: one.tokens > 1 and one.with_(tokens=one.tokens // 2) in spread)


def suites(problem: Problem) -> list[str]:
    """The suites that measure this problem."""
    return list(dict.fromkeys(row.suite for row in ROWS if any(problem in group for group in row.groups())))


def preferred(problem: Problem, kernels: Iterable[Kernel]) -> list[Kernel]:
    """These kernels, the likeliest to be the fastest first; baselines last.

    As measured on an H200 (2026-11-22): up to 16 tokens decode, then the sparse tensor cores where the weight suits them (6:8 by the
    dense ones for some), then the dense ones. What is named nowhere comes in its own order.
    """
    sparse = problem.sparsity.m > 1
    first = ["sparse-wgmma", "dense-wgmma"] if sparse else ["dense-wgmma"]
    first += ["dense-triton", "sparse-mma"]
    if problem.tokens <= MOST_DECODED:
        first.insert(0 if problem.tokens <= FEW_TOKENS else 1, "decode")
    places = {name: place for place, name in enumerate(first)}
    return sorted(kernels, key=lambda kernel: (kernel.kind == "baseline", places.get(kernel.name, len(first))))


def chosen(wanted: Sequence[Problem], gpu: Gpu, kernels_for: Callable[[Op], Iterable[Kernel]]) -> list[tuple[Kernel, Problem]]:
    """What is tuned where no kernel is named: for every problem the likeliest kernel with a choice, then for every one the second."""
    found = [
        [(kernel, problem) for kernel in preferred(problem, kernels_for(problem.op))
         if kernel.kind == "variant" and kernel.space.axes and kernel.unavailable(problem, gpu) is None][:PER_PROBLEM]
        for problem in wanted
    ]
    return [pair for level in itertools.zip_longest(*found) for pair in level if pair is not None]
