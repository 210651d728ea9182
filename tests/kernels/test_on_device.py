"""The loops of the device tests, tried on the CPU with kernels that do harm."""

from __future__ import annotations

import pytest

from kernels.problem import Problem
from kernels.space import NoConfig
from tests.kernels.harmful import Harm, before, behind, fake, rarely_wrong, silent
from tests.kernels.on_device import AWKWARD, SIX_EIGHT, TWO_FOUR, assert_all_right, assert_right, assert_same_bits, problems

CASE = Problem("gemm", 16, 64, 4, TWO_FOUR, dtype="int32")


def test_shapes_become_problems() -> None:
    found = list(problems(AWKWARD, (TWO_FOUR, SIX_EIGHT), "int32"))
    assert len(found) == 2 * len(AWKWARD)
    assert str(found[1]) == "gemm 130x64 T=1 6:8 splits=87,43 int32"
    assert str(next(problems(AWKWARD, op="layer"))) == "layer 130x64 T=1 2:4 splits=87,43 bias"


def test_a_kernel_without_harm_passes() -> None:
    assert_right(fake("fine"), CASE, NoConfig(), launches=3, device="cpu")
    assert_same_bits(fake("fine"), CASE, lambda inputs: [fake("fine").prepare(CASE, inputs, NoConfig())] * 2, times=3, device="cpu")


@pytest.mark.parametrize(("harm", "words"), [(behind, "bytes behind torch.int32"), (before, "bytes before torch.float32"),
                                             (rarely_wrong, "harmful .* wrong"), (silent, "harmful .* wrong")])  # fmt: skip
def test_harm_is_told(harm: Harm, words: str) -> None:
    kernel = fake("harmful", harm)
    with pytest.raises(AssertionError, match=words):
        assert_right(kernel, CASE, NoConfig(), launches=8, device="cpu")
    with pytest.raises(AssertionError, match=r"in turn|bytes be"):
        assert_same_bits(kernel, CASE, lambda inputs: [kernel.prepare(CASE, inputs, NoConfig())], times=8, device="cpu")


def test_no_problem_is_no_pass() -> None:
    with pytest.raises(AssertionError, match="none of the problems"):
        assert_all_right(fake("fine"), [], NoConfig())
