"""More than 2^31 elements: activations, outputs, gradients and weights whose last offset no 32-bit integer holds, judged as any other."""

from __future__ import annotations

import pytest
import torch

from kernels.catalogue import find, kernels_for
from kernels.gpu import by_name, detect
from kernels.inputs import make_inputs
from kernels.judge import judge, poison
from kernels.problem import Op, Problem, Sparsity

LARGE = 1 << 31
TWO_FOUR = Sparsity(2, 4)
GEMMS = {
    "outputs": Problem("gemm", 16400, 128, 131_077, TWO_FOUR),
    "activations": Problem("gemm", 64, 8192, 262_401, TWO_FOUR),
    "weights": Problem("gemm", 262_272, 8192, 5, TWO_FOUR),
}
GRADIENTS: tuple[Op, ...] = ("input-grad", "weight-grad")
TRAINED = {"activations": (64, 8192, 262_401), "gradients": (8192, 64, 262_401)}
"""out_features, in_features, tokens."""


def sizes(problem: Problem) -> set[int]:
    """Elements of the activations, of the outputs (or their gradient), and of the weight."""
    rows, width, tokens = problem.out_features, problem.in_features, problem.tokens
    return {tokens * width, tokens * rows, rows * width}


def test_one_operand_of_each_case_is_that_large() -> None:
    trained = [Problem(op, *TRAINED[name][:2], TRAINED[name][2], TWO_FOUR) for op in GRADIENTS for name in TRAINED]
    for problem in (*GEMMS.values(), *trained):
        assert sum(size > LARGE for size in sizes(problem)) == 1, problem
    names = {kernel.name for kernel in kernels_for("gemm") if kernel.kind == "variant"}
    for kernel in names:
        gpu = by_name("h200")
        assert any(find(kernel, "gemm").unavailable(problem, gpu) is None for problem in GEMMS.values()), kernel


def assert_right_all_over(problem: Problem) -> None:
    """Every variant that takes the problem, on one set of inputs."""
    gpu, inputs = detect() or by_name("h200"), make_inputs(problem, "cuda")
    taken = [kernel for kernel in kernels_for(problem.op) if kernel.kind == "variant" and kernel.unavailable(problem, gpu) is None]
    for kernel in taken:
        prepared = kernel.prepare(problem, inputs, kernel.default_config(problem, gpu))
        poison(prepared)
        mismatch = judge(problem, inputs, prepared.run(), kernel)
        del prepared
        torch.cuda.empty_cache()
        assert mismatch is None, f"{kernel} on {problem}: {mismatch}"
    assert taken


@pytest.mark.gpu
@pytest.mark.parametrize("name", GEMMS)
def test_gemms(name: str) -> None:
    assert_right_all_over(GEMMS[name])


@pytest.mark.gpu
@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("op", GRADIENTS)
def test_gradients(op: Op, name: str) -> None:
    rows, width, tokens = TRAINED[name]
    assert_right_all_over(Problem(op, rows, width, tokens, TWO_FOUR))
