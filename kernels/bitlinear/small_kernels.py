"""The two small Triton functions of a layer: weight scales by row, and the flag of what is not finite."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.launch import launch
from kernels.mask_quantize.repack_kernels import row_scale

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
def _row_scale_kernel(w_scale, bounds, out, rows, SPLITS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # typed by Triton's compiler
    """out[n] = w_scale / 64 of the split that holds row n."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + row, row_scale(w_scale, bounds, row, SPLITS), mask=row < rows)


def launch_row_scale(w_scale: torch.Tensor, bounds: torch.Tensor, out: torch.Tensor, rows: int) -> None:
    """Write w_scale / 64 of every row's split into out (float32, at least [rows]); bounds: int64, first row of every split. One launch, no
    synchronization."""
    launch(_row_scale_kernel, (-(-rows // BLOCK),), (w_scale, bounds, out), (rows,), SPLITS=w_scale.shape[0], BLOCK=BLOCK, num_warps=4)
