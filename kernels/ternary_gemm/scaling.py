"""The pass that turns a library's raw accumulators into the layer's output: one read, one write, bound by memory.

y[t, n] = acc[t, n] · x_scale[t] · row_scale[n] + bias[n], float32 arithmetic, rounded once to the output type. A library that gives int32
accumulators and this pass behind it computes exactly what a kernel with a scaling epilogue computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels.errors import ShapeError
from kernels.kernel import CompileUnit

ROW_MAJOR_TILE = (8, 512)
"""Tokens × out_features of a tile whose accumulators lie row by row: 16-byte loads and stores, whole lines."""
TRANSPOSED_TILE = (64, 64)
"""The same where they lie transposed: a square, so that both sides move whole 128-byte lines."""
WARPS = 4

_TYPES = {torch.int32: "*i32", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


@triton.jit
def scale_accumulators(
    acc, x_scale, row_scale, bias, y, tokens, out_features, stride_at, stride_an, stride_yt,
    HAS_BIAS: tl.constexpr, TILE_T: tl.constexpr, TILE_N: tl.constexpr,
):  # fmt: skip
    """One tile of y. acc: [tokens, out_features] with strides stride_at, stride_an; y: rows stride_yt apart, columns adjacent."""
    columns = tl.cdiv(out_features, TILE_N)
    pid = tl.program_id(0)
    t = (pid // columns) * TILE_T + tl.arange(0, TILE_T)
    n = (pid % columns) * TILE_N + tl.arange(0, TILE_N)
    inside = (t < tokens)[:, None] & (n < out_features)[None, :]
    source = acc + t.to(tl.int64)[:, None] * stride_at + n.to(tl.int64)[None, :] * stride_an
    value = tl.load(source, mask=inside, other=0).to(tl.float32)
    value *= tl.load(x_scale + t, mask=t < tokens, other=0.0)[:, None]
    value *= tl.load(row_scale + n, mask=n < out_features, other=0.0)[None, :]
    if HAS_BIAS:
        value += tl.load(bias + n, mask=n < out_features, other=0.0)[None, :]
    target = y + t.to(tl.int64)[:, None] * stride_yt + n[None, :]
    tl.store(target, value.to(y.dtype.element_ty), mask=inside)


def launch_scaling(acc: torch.Tensor, x_scale: torch.Tensor, row_scale: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """Write y [tokens, out_features] from acc of the same shape.

    acc: int32, float32, bf16 or fp16, rows or columns adjacent. x_scale: float32 [tokens]. row_scale: float32 [out_features].
    bias: float32 [out_features] or None. y: rows of adjacent columns. Runs on the current stream.
    Raises ShapeError for operands that do not fit.
    """
    tokens, out_features = y.shape
    if acc.shape != y.shape or x_scale.shape != (tokens,) or row_scale.shape != (out_features,) or y.stride(1) != 1:
        scales = f"{tuple(x_scale.shape)} and {tuple(row_scale.shape)} scales"
        raise ShapeError(f"accumulators {tuple(acc.shape)} with {scales} do not fit y {tuple(y.shape)}, strides {y.stride()}")
    if 1 not in acc.stride():
        raise ShapeError(f"accumulators with strides {acc.stride()}: neither rows nor columns are adjacent")
    tile_t, tile_n = ROW_MAJOR_TILE if acc.stride(1) == 1 else TRANSPOSED_TILE
    grid = (triton.cdiv(tokens, tile_t) * triton.cdiv(out_features, tile_n),)
    if grid[0]:
        scale_accumulators[grid](
            acc, x_scale, row_scale, row_scale if bias is None else bias, y,
            tokens, out_features, acc.stride(0), acc.stride(1), y.stride(0),
            HAS_BIAS=bias is not None, TILE_T=tile_t, TILE_N=tile_n, num_warps=WARPS,
        )  # fmt: skip


def row_scales(w_scale: torch.Tensor, splits: Sequence[int]) -> torch.Tensor:
    """w_scale float32 [splits] repeated over the output rows of each split: float32 [out_features]."""
    counts = torch.tensor(splits, device=w_scale.device)
    return w_scale.float().repeat_interleave(counts, output_size=sum(splits))


def compile_units(acc: torch.dtype, y: torch.dtype, bias: bool, transposed: bool) -> tuple[CompileUnit, ...]:
    """What `launch_scaling` compiles for accumulators and outputs of these types, with sizes that are multiples of 16."""
    tile_t, tile_n = TRANSPOSED_TILE if transposed else ROW_MAJOR_TILE
    near, far = ("stride_at", "stride_an") if transposed else ("stride_an", "stride_at")
    signature = dict.fromkeys(("acc", "x_scale", "row_scale", "bias", "y"), "*fp32") | {"acc": _TYPES[acc], "y": _TYPES[y]}
    signature |= dict.fromkeys(("tokens", "out_features", "stride_at", "stride_an", "stride_yt"), "i32")
    signature |= dict.fromkeys((near, "HAS_BIAS", "TILE_T", "TILE_N"), "constexpr")
    divisible = ("acc", "x_scale", "row_scale", "bias", "y", "tokens", "out_features", "stride_yt", far)
    constexprs = {near: 1, "HAS_BIAS": bias, "TILE_T": tile_t, "TILE_N": tile_n}
    return (CompileUnit(scale_accumulators, signature, constexprs, divisible, {"num_warps": WARPS}),)
