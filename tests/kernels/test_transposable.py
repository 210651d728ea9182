"""2:4 weights in both orders: the reference's choice in every block, ties included, quantized and packed; interpreted and on a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from autotune.compile import Compiled
from autotune.compile import compile_unit as compiled_unit
from kernels.errors import ShapeError
from kernels.fragments import pack_dense_fragments, pack_fragments, unpack_fragments
from kernels.gpu import by_name
from kernels.inputs import KINDS, Kind, make_weights
from kernels.mask_quantize.transposable import BothOrders, allocate_both_orders, compile_unit, launch_both_orders, unavailable
from kernels.mask_quantize.two_pass import TwoPassConfig
from kernels.problem import DType, Problem, Sparsity
from reference.quantize import ternary_quantize
from reference.sparsity import nm_mask, transposable_mask

HALF = Sparsity(2, 4)
SMALL = TwoPassConfig(sum_block=1024)


def _weight(rows: int, columns: int, kind: Kind, dtype: DType = "bf16", device: str = "cpu") -> torch.Tensor:
    return make_weights(Problem("prepare", rows, columns, 0, HALF, dtype=dtype), device, kind=kind).master


def _packed(
    weight: torch.Tensor, splits: tuple[int, ...], transposable: bool, sums: torch.Tensor | None = None
) -> tuple[torch.Tensor, BothOrders]:
    """The weight as packed. Every word of both orders is the reference packer's, and the row scales are."""
    rows, columns = weight.shape
    buffers = allocate_both_orders(rows, columns, splits, transposable, weight.device, row_padding=64)
    for words in (buffers.forward, buffers.backward):
        words.fill_(-1)
    launch_both_orders(weight, buffers, SMALL, sums)
    found = unpack_fragments(buffers.forward, rows, columns)
    assert torch.equal(buffers.forward, pack_fragments(found))
    assert torch.equal(buffers.backward, (pack_fragments if transposable else pack_dense_fragments)(found.t().contiguous()))
    scales = buffers.w_scale.repeat_interleave(torch.tensor(splits, device=weight.device)) / 64
    assert torch.equal(buffers.row_scale[:rows].nan_to_num(-1), scales.nan_to_num(-1))
    assert not buffers.row_scale[rows:].any()
    return found, buffers


def _check(weight: torch.Tensor, splits: tuple[int, ...] = (), transposable: bool = True) -> None:
    """The codes for the scale that was used; and, with a scale below every weight, the mask itself."""
    parts = splits or (weight.shape[0],)
    mask = transposable_mask(weight) if transposable else nm_mask(weight, 2, 4)
    found, buffers = _packed(weight, parts, transposable)
    ternary, scale = ternary_quantize(weight, parts, buffers.inv_scale)
    assert torch.equal(found, ternary * mask)
    torch.testing.assert_close(buffers.w_scale, scale, rtol=2.0**-23, atol=0)
    found, _ = _packed(weight, parts, transposable, torch.zeros(len(parts), dtype=torch.float64, device=weight.device))
    assert torch.equal(found, torch.where(weight.float().abs() > 5e-6, weight.float().sign(), 0).to(torch.int8) * mask)


@pytest.mark.interpreter
@pytest.mark.parametrize(("rows", "columns", "kind", "dtype", "splits"), [
    (8, 40, "random", "bf16", (2, 6)), (4, 264, "ties", "fp16", ()), (4, 4, "equal", "fp32", ()), (4, 8, "zero_rows", "bf16", (1, 2, 1)),
    (8, 100, "outlier", "fp32", (4, 4)),
])
def test_interpreted_is_the_reference(rows: int, columns: int, kind: Kind, dtype: DType, splits: tuple[int, ...]) -> None:
    _check(_weight(rows, columns, kind, dtype), splits)


@pytest.mark.interpreter
@pytest.mark.parametrize(("rows", "columns", "kind", "dtype", "splits"), [
    (70, 40, "random", "bf16", (2, 68)), (3, 260, "ties", "fp16", ()), (5, 4, "equal", "fp32", ()),
])
def test_interpreted_with_the_ordinary_mask(rows: int, columns: int, kind: Kind, dtype: DType, splits: tuple[int, ...]) -> None:
    _check(_weight(rows, columns, kind, dtype), splits, transposable=False)


@pytest.mark.interpreter
def test_rows_that_do_not_start_at_words() -> None:
    _check(_weight(4, 16, "random")[:, 1:13])


@pytest.mark.interpreter
def test_a_split_with_an_infinity_has_no_scale_and_no_weights() -> None:
    weight = _weight(8, 64, "random")
    weight[5, 3] = float("inf")
    found, buffers = _packed(weight, (4, 4), True)
    assert torch.isnan(buffers.w_scale).tolist() == [False, True]
    assert found[:4].any()
    assert not found[4:].any()


@pytest.mark.interpreter
def test_no_rows() -> None:
    found, buffers = _packed(torch.zeros(0, 64, dtype=torch.bfloat16), (0,), True)
    assert found.shape == (0, 64)
    assert buffers.w_scale.tolist() == [pytest.approx(1e-5)]


@pytest.mark.interpreter
@pytest.mark.parametrize(("weight", "message"), [
    (torch.zeros(6, 8), "multiple of 4"), (torch.zeros(8, 6), "multiple of the group"), (torch.zeros(8, 8, dtype=torch.int8), "fp32"),
])
def test_refused_weights(weight: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        launch_both_orders(weight, allocate_both_orders(*weight.shape, (weight.shape[0],), True, "cpu"), SMALL)


@pytest.mark.interpreter
def test_buffers_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match="do not fit"):
        launch_both_orders(torch.zeros(4, 512), allocate_both_orders(4, 256, (4,), True, "cpu"), SMALL)
    buffers = allocate_both_orders(4, 256, (4,), True, "cpu")
    with pytest.raises(ShapeError, match="do not fit"):
        launch_both_orders(torch.zeros(4, 256), dataclasses.replace(buffers, row_scale=torch.zeros(3)), SMALL)


def test_what_can_have_such_a_mask() -> None:
    assert unavailable(Problem("step", 8, 8, 1, HALF)) is None
    assert "multiple of 4" in (unavailable(Problem("step", 6, 8, 1, HALF)) or "")
    assert "2:4" in (unavailable(Problem("step", 8, 8, 1, Sparsity(6, 8))) or "")


@pytest.mark.compile
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compiles_without_spills(dtype: torch.dtype) -> None:
    for transposable in (True, False):
        compiled = compiled_unit(compile_unit(dtype, 3, transposable), by_name("h200"))
        assert isinstance(compiled, Compiled), compiled
        assert compiled.spills == 0


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_on_a_gpu(kind: Kind, dtype: DType) -> None:
    for rows, columns, splits in ((4, 4, ()), (1152, 896, (896, 128, 128)), (300, 2500, (2, 298))):
        for transposable in (True, False):
            _check(_weight(rows, columns, kind, dtype, "cuda"), splits, transposable)
