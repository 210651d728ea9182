"""Every variant of the catalogue on small awkward problems, in one process: short enough to run under a memory checker.

    compute-sanitizer --tool memcheck python -m pytest -m gpu tests/kernels/test_every_variant.py
"""

from __future__ import annotations

import pytest

from kernels.catalogue import KERNELS
from kernels.gpu import by_name, detect
from kernels.inputs import make_inputs
from kernels.judge import judge, poison
from kernels.kernel import Kernel
from kernels.problem import DENSE, Problem, Sparsity

SHAPES = {"gemm": ((7, 130, 320), (63, 1152, 896)), "layer": ((7, 130, 320), (63, 1152, 896)), "prepare": ((0, 130, 320), (0, 1152, 896)),
          "activation": ((7, 0, 320), (63, 0, 4864))}
TRAIN = ((63, 136, 320), (130, 1152, 896))
SPARSITIES = (DENSE, Sparsity(2, 4), Sparsity(6, 8))
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
    judged = 0
    for problem in problems(kernel):
        if kernel.unavailable(problem, gpu) is not None:
            continue
        inputs = make_inputs(problem, "cuda")
        prepared = kernel.prepare(problem, inputs, kernel.default_config(problem, gpu))
        poison(prepared)
        mismatch = judge(problem, inputs, prepared.run(), kernel)
        assert mismatch is None, f"{kernel} on {problem}: {mismatch}"
        judged += 1
    assert judged, f"{kernel} ran on none of the problems"
