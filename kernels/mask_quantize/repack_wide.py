"""Packed bytes (layout dense2) to the transposed weight in bf16, for libraries that compress a 2:4 matrix themselves.

Floor: a quarter of a byte read and two written per weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.errors import ShapeError
from kernels.kernel import CompileUnit
from kernels.packed import PackedTernary

ROWS, BYTES = 64, 64
WARPS = 8


@triton.jit
def unpack_transposed_kernel(
    packed_ptr, w_scale_ptr, ends_ptr, out_ptr, rows, columns, stride, SPLITS: tl.constexpr, ROWS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """out[column, row] = ternary · w_scale in bf16, rounded once: ROWS rows × a block of 256 columns. ends: row after each split."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    byte = tl.arange(0, BYTES)
    block = tl.program_id(1)
    stored = tl.load(packed_ptr + row.to(tl.int64)[:, None] * stride + (block * BYTES + byte)[None, :], mask=(row < rows)[:, None], other=0)
    scale = tl.zeros([ROWS], tl.float32) + tl.load(w_scale_ptr)
    for split in tl.static_range(1, SPLITS):
        scale = tl.where(row >= tl.load(ends_ptr + split - 1), tl.load(w_scale_ptr + split), scale)
    # Half to even, once per row: the conversion is then exact (and the interpreter's, which truncates, right).
    bits = scale.to(tl.int32, bitcast=True)
    scale = ((bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF).to(tl.float32, bitcast=True)
    for field in tl.static_range(4):
        code = (stored.to(tl.int32) >> (2 * field)) & 3
        value = tl.where(code == 0, 0.0, tl.where(code == 1, scale[:, None], -scale[:, None])).to(tl.bfloat16)
        column = block * (4 * BYTES) + field * BYTES + byte
        target = out_ptr + column.to(tl.int64)[:, None] * rows + row[None, :]
        tl.store(target, tl.trans(value), mask=(column < columns)[:, None] & (row < rows)[None, :])


def launch_unpack_transposed(packed: PackedTernary, out: torch.Tensor) -> None:
    """Write the transpose of a packed weight [N, K], ternary · w_scale, into out: contiguous bf16 [K, N]. One launch, no synchronization.

    Raises ShapeError for another out.
    """
    rows, columns = packed.out_features, packed.in_features
    if out.dtype != torch.bfloat16 or tuple(out.shape) != (columns, rows) or not out.is_contiguous():
        raise ShapeError(f"out is {out.dtype} {list(out.shape)}; contiguous bf16 {[columns, rows]} is needed")
    if out.numel():
        unpack_transposed_kernel[(triton.cdiv(rows, ROWS), packed.data.shape[1] // BYTES)](
            packed.data, packed.w_scale, packed.split_ends, out, rows, columns, packed.data.shape[1], SPLITS=len(packed.splits), ROWS=ROWS,
            BYTES=BYTES, num_warps=WARPS,
        )  # fmt: skip


def compile_unit(splits: int) -> CompileUnit:
    """The kernel as it is launched for sizes that are multiples of 16."""
    constants = {"SPLITS": splits, "ROWS": ROWS, "BYTES": BYTES}
    pointers = {"packed_ptr": "*u8", "w_scale_ptr": "*fp32", "ends_ptr": "*i32", "out_ptr": "*bf16"}
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in unpack_transposed_kernel.arg_names}
    return CompileUnit(unpack_transposed_kernel, signature, constants, (*pointers, "rows", "columns", "stride"), {"num_warps": WARPS})
