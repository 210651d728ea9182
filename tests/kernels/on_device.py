"""What the device tests of all kernels do, in guarded memory: launch after launch judged, the same bits again and again. A kernel's own
file says its shapes and its configs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from kernels.inputs import Inputs, Kind, make_inputs
from kernels.judge import judge, poison
from kernels.kernel import Kernel, Outputs, Prepared
from kernels.problem import DType, Op, Problem, Sparsity
from kernels.space import Config
from tests.kernels.guarded import GuardedMemory
from tests.kernels.recordings import bits

TWO_FOUR, SIX_EIGHT = Sparsity(2, 4), Sparsity(6, 8)
AWKWARD = ((1, 130, 64), (7, 1152, 896), (63, 136, 320), (1000, 896, 4864), (129, 7, 128), (20000, 384, 256), (300, 8448, 1024))
"""Tokens, out_features, in_features: none, few and many tiles of every size, with and without tails."""


def problems(
    shapes: Iterable[tuple[int, int, int]], sparsities: Sequence[Sparsity] = (TWO_FOUR,), dtype: DType = "bf16", op: Op = "gemm"
) -> Iterator[Problem]:
    """Shapes (tokens, out_features, in_features) under every sparsity, with two scales, and a bias where the output is no raw sum."""
    for tokens, rows, width in shapes:
        for sparsity in sparsities:
            yield Problem(op, rows, width, tokens, sparsity, (rows - rows // 3, rows // 3), dtype, bias=dtype != "int32")


def assert_right(
    kernel: Kernel, case: Problem, config: Config, launches: int = 1, kind: Kind = "random", device: str = "cuda"
) -> Prepared:
    """Launched that often, poisoned before each launch and judged after it, with nothing written beside any buffer."""
    memory = GuardedMemory(device)
    with memory.of(f"{kernel} on {case}"):
        inputs = make_inputs(case, device, case.tokens, kind)
        prepared = kernel.prepare(case, inputs, config)
    for _ in range(launches):
        poison(prepared)
        mismatch = judge(case, inputs, prepared.run(), kernel)
        assert mismatch is None, f"{kernel} on {case}, {config}: {mismatch}"
    assert memory.hits() == [], str(memory.hits()[0])
    return prepared


def assert_all_right(kernel: Kernel, cases: Iterable[Problem], config: Config, launches: int = 1) -> None:
    """`assert_right` of all; at least one there must be."""
    judged = [assert_right(kernel, case, config, launches) for case in cases]
    assert judged, f"{config} is allowed for none of the problems"


def assert_same_bits(
    kernel: Kernel, case: Problem, bind: Callable[[Inputs], Sequence[Prepared]], times: int = 100, calls_per_graph: int = 0,
    device: str = "cuda",
) -> None:
    """All that `bind` gives, launched in turn, write the same bits every time: `times` launches of each, or of a graph of so many calls."""
    memory = GuardedMemory(device)
    with memory.of(f"{kernel} on {case}"):
        inputs = make_inputs(case, device)
        bound = bind(inputs)
    first = {name: tensor.clone() for name, tensor in bound[0].run().items()}
    mismatch = judge(case, inputs, first, kernel)
    assert mismatch is None, f"{kernel} on {case}: {mismatch}"
    launches = [recorded(prepared.run, calls_per_graph) if calls_per_graph else prepared.run for prepared in bound]
    for turn in range(times):
        for prepared, launch in zip(bound, launches, strict=True):
            poison(prepared)
            outputs = launch()
            for name, right in first.items():
                assert torch.equal(bits(outputs[name]), bits(right)), f"{name} of {kernel} on {case} in turn {turn}"
    assert memory.hits() == [], str(memory.hits()[0])


def recorded(run: Callable[[], Outputs], calls: int) -> Callable[[], Outputs]:
    """That many calls in one CUDA graph."""
    graph: Any = torch.cuda.CUDAGraph()
    run()
    with torch.cuda.graph(graph):
        outputs = [run() for _ in range(calls)][-1]

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return replay
