"""The two small Triton functions of a layer: weight scales by row, and the flag of what is not finite."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.launch import launch
from kernels.packed import PackedTernary

BLOCK = 512


@triton.jit  # type: ignore[untyped-decorator] # Triton has no types
def _flag_kernel(values, flags, count, stride, PLACE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # typed by Triton's compiler
    """flags[PLACE] = 1 where one of `count` values, `stride` apart, is NaN or infinite; else as it is. Programs write the same 1."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values + place.to(tl.int64) * stride, mask=place < count, other=0.0).to(tl.float32)
    bad = ((value.to(tl.int32, bitcast=True) & 0x7FFFFFFF) >= 0x7F800000).to(tl.int32)
    if tl.max(bad, axis=0) > 0:
        tl.store(flags + PLACE, 1)


def launch_flag(values: torch.Tensor, flags: torch.Tensor, place: int) -> None:
    """Set flags[place] (int32) where values [n], or the first column of values [n, any], of any float type and stride, hold a NaN or an
    infinity; one launch, no synchronization."""
    if values.numel():
        count = values.shape[0]
        launch(_flag_kernel, (-(-count // BLOCK),), (values, flags), (count, values.stride(0)), PLACE=place, BLOCK=BLOCK, num_warps=4)


@triton.jit  # type: ignore[untyped-decorator] # Triton has no types
def _row_scale_kernel(w_scale, split_ends, row_scale, rows, SPLITS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # typed by Triton's compiler
    """row_scale[n] = w_scale / 64 of the split that holds row n."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    scale = tl.load(w_scale + tl.zeros((BLOCK,), tl.int32))
    for split in range(1, SPLITS):
        scale = tl.where(row >= tl.load(split_ends + split - 1), tl.load(w_scale + split), scale)
    tl.store(row_scale + row, scale * 0.015625, mask=row < rows)


def launch_row_scale(packed: PackedTernary, row_scale: torch.Tensor) -> None:
    """Write w_scale / 64 of every row of a packed weight into row_scale (float32, at least [N]); one launch, no synchronization."""
    rows = packed.out_features
    launch(_row_scale_kernel, (-(-rows // BLOCK),), (packed.w_scale, packed.split_ends, row_scale), (rows,), SPLITS=len(packed.splits),
           BLOCK=BLOCK, num_warps=4)  # fmt: skip
