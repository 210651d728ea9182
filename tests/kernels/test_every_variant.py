"""Every variant of the catalogue on small awkward problems, in guarded memory."""

from __future__ import annotations

import pytest

from kernels.catalogue import KERNELS
from kernels.gpu import by_name, detect
from kernels.kernel import Kernel
from kernels.problem import DENSE, Problem
from tests.kernels.on_device import SIX_EIGHT, TWO_FOUR, assert_right

SHAPES = {"gemm": ((7, 130, 320), (63, 1152, 896)), "layer": ((7, 130, 320), (63, 1152, 896)), "prepare": ((0, 130, 320), (0, 1152, 896)),
          "activation": ((7, 0, 320), (63, 0, 4864))}
TRAIN = ((63, 136, 320), (130, 1152, 896))
SPARSITIES = (DENSE, TWO_FOUR, SIX_EIGHT)
OURS = [kernel for kernel in KERNELS if kernel.kind == "variant" or kernel.name == "dense-int8-triton"]


def problems(kernel: Kernel) -> list[Problem]:
    found = []
    for tokens, rows, width in SHAPES.get(kernel.op, TRAIN):
        splits = (rows - 2 * (rows // 9), rows // 9, rows // 9) if rows else ()
        found += [Problem(kernel.op, rows, width, tokens, sparsity, splits) for sparsity in SPARSITIES]
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", OURS, ids=str)
def test_right_and_inside_its_memory(kernel: Kernel) -> None:
    gpu = detect() or by_name("h200")
    able = [problem for problem in problems(kernel) if kernel.unavailable(problem, gpu) is None]
    assert able, f"{kernel} runs on none of the problems"
    for problem in able:
        assert_right(kernel, problem, kernel.default_config(problem, gpu))
