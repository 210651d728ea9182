"""A 2:4 master weight as a training step's GEMMs read it: the weight and its transpose in fragment order, from one pass that also finds the
mask. Transposable masks keep 2 of 4 along rows and columns alike, found per 4 × 4 block in registers, so that the transpose is 2:4 too.

Of the 90 patterns the one with the largest sum of |w| is kept, the first of equals, by the float32 sums of `reference.sparsity`: rows are
added in order, so patterns that begin alike share their sums. Source of the masks: Hubara et al., arXiv 2102.08124.
Floor: two reads of the master (the first for the scales) and a half or three quarters of a byte written per weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from kernels.errors import ShapeError
from kernels.fragments import block_shape
from kernels.kernel import CompileUnit
from kernels.launch import launch
from kernels.mask_quantize.activation import dependence
from kernels.mask_quantize.transposable_kernels import pack_both_orders_kernel
from kernels.mask_quantize.two_pass import TwoPassConfig, Workspace, allocate_workspace, check_weight, launch_scales
from kernels.problem import Problem, Sparsity

TWO_OF_FOUR = Sparsity(2, 4)
COLUMNS = 256
WARPS = 4
"""Of 64 × 256 weights: two 4 × 4 blocks a thread and field; fragments have 128 threads."""
_TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class BothOrders:
    """Outputs of `launch_both_orders` with their workspace. forward: int32 `block_shape(N, K)`, layout fragment24; backward: int32
    `block_shape(K, N)`, the transpose, in fragment24 where the mask is transposable, else in layout fragment.

    row_scale: float32 [N] or longer, w_scale / 64 of every row; what is behind the last row is left as it is. w_scale, inv_scale:
    float32 [S]. scratch: int32, half a byte a weight.
    """

    forward: torch.Tensor
    backward: torch.Tensor
    row_scale: torch.Tensor
    w_scale: torch.Tensor
    inv_scale: torch.Tensor
    workspace: Workspace
    scratch: torch.Tensor
    transposable: bool


def allocate_both_orders(
    out_features: int, in_features: int, splits: Sequence[int], transposable: bool, device: torch.device | str, row_padding: int = 1
) -> BothOrders:
    """Buffers for a weight [out_features, in_features]; row_scale is zero behind the last row, up to a multiple of row_padding.

    Synchronizes once (the splits are copied to the device).
    """
    padded = -(-out_features // row_padding) * row_padding
    forward, backward = (torch.empty(block_shape(*shape), dtype=torch.int32, device=device)
                         for shape in ((out_features, in_features), (in_features, out_features)))  # fmt: skip
    w_scale, inv_scale = (torch.empty(len(splits), dtype=torch.float32, device=device) for _ in range(2))
    scratch = torch.empty((_programs(backward, in_features), 2048), dtype=torch.int32, device=device)
    return BothOrders(forward, backward, torch.zeros(padded, dtype=torch.float32, device=device), w_scale, inv_scale,
                      allocate_workspace(splits, device), scratch, transposable)  # fmt: skip


def _programs(backward: torch.Tensor, in_features: int) -> int:
    """Tiles of 64 × 256 weights, rows to the end of the transpose's last block."""
    return 2 * backward.shape[1] * -(-in_features // COLUMNS)


def launch_both_orders(weight: torch.Tensor, buffers: BothOrders, config: TwoPassConfig, sums: torch.Tensor | None = None) -> None:
    """Mask, quantize and pack `weight` [N, K] into the buffers on the current stream: two launches, no allocation, no synchronization.

    weight: bf16, fp16 or fp32, contiguous rows. The scales are those of the whole weight, as without a mask. sums: float64 [S], as
    `launch_prepare` takes them. A split with a NaN or an infinity gets NaN scales, `workspace.nonfinite` set, and zero weights.
    Raises ShapeError unless 4 divides K, and N for transposable masks, and both fit.
    """
    splits = buffers.workspace.splits
    check_weight(weight, TWO_OF_FOUR, splits)
    rows, columns = weight.shape
    if buffers.transposable and rows % 4:
        raise ShapeError(f"out_features {rows} is not a multiple of 4, the height of a transposable block")
    shapes = tuple(buffers.forward.shape), tuple(buffers.backward.shape)
    if shapes != (block_shape(rows, columns), block_shape(columns, rows)) or buffers.row_scale.shape[0] < rows:
        raise ShapeError(f"buffers for blocks {[list(shape) for shape in shapes]} do not fit a weight {[rows, columns]}")
    if not rows:
        buffers.w_scale.fill_(1e-5)
        buffers.inv_scale.fill_(1e5)
        return
    launch_scales(weight, buffers.w_scale, buffers.inv_scale, buffers.workspace, config, sums)
    workspace = buffers.workspace
    launch(
        pack_both_orders_kernel, (_programs(buffers.backward, columns),),
        (weight, buffers.scratch, buffers.forward, buffers.backward, buffers.row_scale, workspace.bounds, workspace.limits,
         buffers.w_scale),
        (rows, columns, weight.stride(0), triton.cdiv(columns, COLUMNS)), TRANSPOSABLE=buffers.transposable, SPLITS=len(splits),
        num_warps=WARPS, **dependence(weight.device),
    )  # fmt: skip


def unavailable(problem: Problem) -> str | None:
    """Why a weight cannot have a transposable mask, or None."""
    if problem.sparsity != TWO_OF_FOUR:
        return f"transposable masks are 2:4, not {problem.sparsity}"
    return f"out_features {problem.out_features} is not a multiple of 4" if problem.out_features % 4 else None


def compile_unit(dtype: torch.dtype, splits: int = 1, transposable: bool = True) -> CompileUnit:
    """The second pass as it is launched on rows of a multiple of 16 weights."""
    constants = {"TRANSPOSABLE": transposable, "SPLITS": splits, "DEPENDENT": False}
    pointers = {"w_ptr": _TYPES[dtype], "bound_ptr": "*i64", "limit_ptr": "*i32",
                **dict.fromkeys(("scratch_ptr", "forward_ptr", "backward_ptr"), "*i32"),
                **dict.fromkeys(("row_scale_ptr", "w_scale_ptr"), "*fp32")}  # fmt: skip
    names = pack_both_orders_kernel.arg_names
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    return CompileUnit(pack_both_orders_kernel, signature, constants, (*pointers, "in_features", "row_stride"), {"num_warps": WARPS},
                       since={90: {"DEPENDENT": True, "launch_pdl": True}})  # fmt: skip
