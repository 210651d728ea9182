"""Mask, ternary quantization and packing of a 2:4 master weight straight into layout fragment24 (`kernels.fragments`), in the same two
passes as `two_pass`: a reduction for the scales, then everything else.

Floor: two reads of the master and half a byte written per two weights (plus the bf16 weight where it is asked for).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from kernels.errors import ShapeError
from kernels.fragments import block_shape
from kernels.kernel import CompileUnit
from kernels.mask_quantize.fragment_kernels import pack_fragments_kernel
from kernels.mask_quantize.two_pass import TwoPassConfig, Workspace, allocate_workspace, check_weight, launch_scales
from kernels.problem import Problem, Sparsity

TWO_OF_FOUR = Sparsity(2, 4)
WARPS = 4


@dataclass(frozen=True)
class FragmentBuffers:
    """Outputs of `launch_fragments` with their workspace: blocks int32 `block_shape(N, K)`, row_scale float32 [N] or longer (w_scale / 64
    of every row; what is behind the last row is left as it is), w_scale and inv_scale float32 [S]."""

    blocks: torch.Tensor
    row_scale: torch.Tensor
    w_scale: torch.Tensor
    inv_scale: torch.Tensor
    workspace: Workspace


def allocate_fragments(
    out_features: int, in_features: int, splits: Sequence[int], device: torch.device | str, row_padding: int = 1
) -> FragmentBuffers:
    """Buffers for a weight [out_features, in_features]; row_scale is zero behind the last row, up to a multiple of row_padding.

    Synchronizes once (the splits are copied to the device).
    """
    padded = -(-out_features // row_padding) * row_padding
    return FragmentBuffers(
        blocks=torch.empty(block_shape(out_features, in_features), dtype=torch.int32, device=device),
        row_scale=torch.zeros(padded, dtype=torch.float32, device=device),
        w_scale=torch.empty(len(splits), dtype=torch.float32, device=device),
        inv_scale=torch.empty(len(splits), dtype=torch.float32, device=device),
        workspace=allocate_workspace(splits, device),
    )


def launch_fragments(
    weight: torch.Tensor, buffers: FragmentBuffers, config: TwoPassConfig, w_fake: torch.Tensor | None = None,
    sums: torch.Tensor | None = None,
) -> None:
    """Mask, quantize and pack `weight` into the buffers on the current stream: two launches, no allocation, no synchronization.

    weight: [N, K] bf16 or fp16, K a multiple of 4, rows that start at multiples of 4 bytes. w_fake: bf16 [N, K], contiguous, gets
    ternary · w_scale. sums: float64 [S] as `launch_prepare` takes them. A split with a NaN or an infinity gets NaN scales,
    `workspace.nonfinite` set, and zero weights.
    Raises ShapeError for what does not fit.
    """
    splits = buffers.workspace.splits
    check_weight(weight, TWO_OF_FOUR, splits)
    out_features, in_features = weight.shape
    if weight.dtype == torch.float32 or weight.stride(0) % 2 or weight.data_ptr() % 4:
        raise ShapeError(f"weight is {weight.dtype} with rows {weight.stride(0)} apart; bf16 or fp16 rows at multiples of 4 bytes "
                         "are needed")
    if tuple(buffers.blocks.shape) != block_shape(out_features, in_features) or buffers.row_scale.shape[0] < out_features:
        raise ShapeError(f"buffers for {list(buffers.blocks.shape)} blocks do not fit a weight {[out_features, in_features]}")
    if w_fake is not None and (w_fake.dtype != torch.bfloat16 or w_fake.shape != weight.shape or not w_fake.is_contiguous()):
        raise ShapeError(f"w_fake is {w_fake.dtype} {list(w_fake.shape)}; contiguous bf16 {[out_features, in_features]} is needed")
    if not out_features:
        buffers.w_scale.fill_(1e-5)
        buffers.inv_scale.fill_(1e5)
        return
    launch_scales(weight, buffers.w_scale, buffers.inv_scale, buffers.workspace, config, sums)
    row_blocks, column_blocks = buffers.blocks.shape[:2]
    pairs = triton.cdiv(column_blocks, 2)
    pack_fragments_kernel[(row_blocks * pairs,)](
        weight, buffers.blocks, buffers.row_scale, w_fake, buffers.workspace.bounds, buffers.workspace.limits, buffers.w_scale,
        out_features, in_features, weight.stride(0), pairs, column_blocks, BF16=weight.dtype == torch.bfloat16, SPLITS=len(splits),
        num_warps=WARPS,
    )


def unavailable(problem: Problem) -> str | None:
    """Why the master weight of a problem cannot be packed so, or None."""
    if problem.sparsity != TWO_OF_FOUR:
        return f"2:4 weights only, not {problem.sparsity}"
    return f"masters in bf16 or fp16, not {problem.dtype}" if problem.dtype not in ("bf16", "fp16") else None


def compile_units(problem: Problem, w_fake: bool) -> tuple[CompileUnit, ...]:
    """The packing pass as it is compiled for a contiguous master of the problem's dtype."""
    constants = {"BF16": problem.dtype == "bf16", "SPLITS": len(problem.splits), **({} if w_fake else {"fake_ptr": None})}
    arguments = {"w_ptr": "*bf16" if problem.dtype == "bf16" else "*fp16", "blocks_ptr": "*i32", "row_scale_ptr": "*fp32",
                 "fake_ptr": "*bf16", "bound_ptr": "*i64", "limit_ptr": "*i32", "w_scale_ptr": "*fp32",
                 **dict.fromkeys(("out_features", "in_features", "row_stride", "column_pairs", "column_blocks"), "i32")}  # fmt: skip
    signature = {name: "constexpr" if name in constants else arguments[name] for name in pack_fragments_kernel.arg_names}
    divisible = tuple(name for name, kind in signature.items() if kind.startswith("*"))
    divisible += ("in_features", "row_stride") if problem.in_features % 16 == 0 else ()
    return (CompileUnit(pack_fragments_kernel, signature, constants, divisible, {"num_warps": WARPS}),)

