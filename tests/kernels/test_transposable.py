"""Masks that are 2:4 both ways: the reference's choice in every block, ties included, in the interpreter and on a GPU."""

from __future__ import annotations

import pytest
import torch

from autotune.compile import Compiled
from autotune.compile import compile_unit as compiled_unit
from kernels.errors import ShapeError
from kernels.gpu import by_name
from kernels.inputs import KINDS, Kind, make_weights
from kernels.mask_quantize.transposable import compile_unit, launch_transposable
from kernels.problem import DType, Problem, Sparsity
from reference.sparsity import transposable_mask


def _weight(rows: int, columns: int, kind: Kind, dtype: DType = "bf16", device: str = "cpu") -> torch.Tensor:
    return make_weights(Problem("prepare", rows, columns, 0, Sparsity(2, 4), dtype=dtype), device, kind=kind).master


def _check(weight: torch.Tensor) -> None:
    out = torch.full_like(weight, float("nan"))
    launch_transposable(weight, out)
    expected = torch.where(transposable_mask(weight), weight, 0)
    assert torch.equal(out, expected)
    launch_transposable(weight, weight)
    assert torch.equal(weight, expected)


@pytest.mark.interpreter
@pytest.mark.parametrize(("rows", "columns", "kind", "dtype"), [
    (8, 40, "random", "bf16"), (4, 516, "ties", "fp16"), (4, 4, "equal", "fp32"), (4, 8, "zero_rows", "bf16"),
])
def test_interpreted_is_the_reference(rows: int, columns: int, kind: Kind, dtype: DType) -> None:
    _check(_weight(rows, columns, kind, dtype))


@pytest.mark.parametrize(("weight", "message"), [
    (torch.zeros(6, 8), "multiples of 4"), (torch.zeros(8, 6), "multiples of 4"),
    (torch.zeros(8, 8, dtype=torch.int8), "bf16, fp16 or fp32"),
])
def test_refused_weights(weight: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        launch_transposable(weight, weight)


@pytest.mark.compile
def test_compiles_without_spills() -> None:
    compiled = compiled_unit(compile_unit(torch.bfloat16), by_name("h200"))
    assert isinstance(compiled, Compiled), compiled
    assert compiled.spills == 0


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_on_a_gpu(kind: Kind, dtype: DType) -> None:
    for rows, columns in ((4, 4), (1152, 896), (300, 2500)):
        _check(_weight(rows, columns, kind, dtype, "cuda"))
