"""The GEMM of two int8 operands on Hopper's dense tensor cores, both from shared memory: out[n, k] = scale[n] · Σ left[n, t] · right[k, t].

It is dW of the 8-bit training steps: left is dY in int8, one scale an out_feature, right the saved activations, both transposed, so that
the tokens that are summed over lie side by side. Sums are exact; they are scaled in float32 and rounded once.

Floor: max(2·N·K·T / dense int8 rate, bytes of both operands and the output / memory bandwidth).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.errors import ShapeError
from kernels.inputs import DTYPES
from kernels.kernel import CompileUnit
from kernels.launch import Launch
from kernels.problem import Problem
from kernels.ternary_gemm.dense_triton import MAX_IN_FEATURES
from kernels.ternary_gemm.int8_wgmma_config import Deal, Int8Config, deal, refusal
from kernels.ternary_gemm.int8_wgmma_kernel import int8_gemm
from kernels.ternary_gemm.int8_wgmma_ptx import BOX, row_box
from kernels.ternary_gemm.sparse_wgmma import KINDS, LAYOUT, OUT_LAYOUT, out_descriptor
from kernels.ternary_gemm.sparse_wgmma_config import is_wide
from kernels.ternary_gemm.sparse_wgmma_ptx import CONSUMERS, SLICE, STAGE_COLUMNS


@dataclass(frozen=True)
class Int8Gemm:
    """The GEMM bound to its buffers. operands: left int8 [N, T], right [K, T] and the output as TMA sees them; scale: float32 [N];
    out: [N, K]."""

    operands: tuple[TensorDescriptor, TensorDescriptor, TensorDescriptor]
    scale: torch.Tensor
    out: torch.Tensor
    config: Int8Config
    deal: Deal
    start: Launch

    def launch(self) -> None:
        """One launch on the current stream of the tensors' device."""
        if self.out.numel():
            self.start((self.scale, self.out), self.operands)


def options(config: Int8Config) -> dict[str, int]:
    """How the kernel is compiled and launched: in clusters, and begun before the launch before it ends."""
    return {"num_warps": 4 * CONSUMERS, "num_ctas": config.cluster, "launch_pdl": True}


def constants(config: Int8Config, dtype: torch.dtype, columns: int) -> dict[str, object]:
    """What the kernel is specialized for."""
    return {"TILES": config.tiles, "BLOCK_N": config.block_n, "STAGES": config.stages, "SPLITS": config.splits, "PAIR": config.pair,
            "OUT": KINDS[dtype], "WIDE": is_wide(dtype, columns)}  # fmt: skip


def bind(left: torch.Tensor, scale: torch.Tensor, right: torch.Tensor, dtype: torch.dtype, config: Int8Config,
         processors: int) -> Int8Gemm:
    """The GEMM with its output allocated. left: int8 [N, T], right: int8 [K, T], rows at multiples of 16 bytes; scale: float32 [N].

    dtype: bf16, fp16 or fp32. processors: multiprocessors of the device. Raises ShapeError before anything runs.
    """
    rows, columns, summed = left.shape[0], right.shape[0], left.shape[1]
    _check(left, scale, right)
    if dtype not in KINDS or dtype == torch.int32:
        raise ShapeError(f"dtype is {dtype}; bf16, fp16 or fp32 is needed")
    refused = refusal(config, rows, columns, summed, processors)
    if refused and rows and columns:
        raise ShapeError(refused)
    out = torch.empty((rows, columns), dtype=dtype, device=left.device)
    described = _describe(left, row_box(config.block_n, config.pair))
    target = out_descriptor(out) if is_wide(dtype, columns) and out.numel() else described
    plan = deal(config, rows, columns, processors)
    integers = (-(-summed // STAGE_COLUMNS), plan.rounds, plan.row_tiles, plan.column_tiles, config.group, rows, columns)
    start = Launch(int8_gemm, (plan.programs,), integers, **constants(config, dtype, columns), **options(config))
    return Int8Gemm((described, _describe(right, BOX), target), scale.contiguous(), out, config, plan, start)


def _describe(operand: torch.Tensor, box: int) -> TensorDescriptor:
    # Without rows nothing is launched, but a descriptor has to have some.
    shape = [max(1, operand.shape[0]), operand.shape[1]]
    return TensorDescriptor(operand, shape, list(operand.stride()), [box, STAGE_COLUMNS], LAYOUT)


def _check(left: torch.Tensor, scale: torch.Tensor, right: torch.Tensor) -> None:
    summed = left.shape[1]
    if not 0 < summed <= MAX_IN_FEATURES:
        raise ShapeError(f"sums over {summed}; int32 holds 1 to {MAX_IN_FEATURES} products of int8")
    for name, operand in (("left", left), ("right", right)):
        aligned = operand.stride(1) == 1 and operand.stride(0) % 16 == 0 and operand.data_ptr() % 16 == 0
        if operand.dtype != torch.int8 or operand.shape[1] != summed or operand.device != left.device or not aligned:
            raise ShapeError(f"{name} is {operand.dtype} {list(operand.shape)} with strides {list(operand.stride())} on {operand.device}; "
                             f"int8 [rows, {summed}] on {left.device} in contiguous rows at multiples of 16 bytes is needed")  # fmt: skip
    if scale.dtype != torch.float32 or scale.shape != left.shape[:1] or scale.device != left.device:
        raise ShapeError(f"scale is {scale.dtype} {list(scale.shape)} on {scale.device}; float32 {[left.shape[0]]} is needed")


def compile_units(problem: Problem, config: Int8Config) -> Sequence[CompileUnit]:
    """The kernel as a problem (`int8_wgmma_config` says which sizes) and the config make it."""
    dtype = DTYPES[problem.dtype]
    constant = constants(config, dtype, problem.out_features)
    out = {"bf16": "bf16", "f16": "fp16", "f32": "fp32"}[KINDS[dtype]]
    left = f"tensordesc<i8{[row_box(config.block_n, config.pair), STAGE_COLUMNS]},{LAYOUT!r}>"
    target = f"tensordesc<{out}{[SLICE, 64]},{OUT_LAYOUT!r}>" if constant["WIDE"] else left
    signature = {"left_desc": left, "right_desc": f"tensordesc<i8{[BOX, STAGE_COLUMNS]},{LAYOUT!r}>", "out_desc": target,
                 "scale_ptr": "*fp32", "out_ptr": f"*{out}"}  # fmt: skip
    signature |= dict.fromkeys(("steps", "rounds", "row_tiles", "column_tiles", "group", "rows", "columns"), "i32")
    signature |= dict.fromkeys(constant, "constexpr")
    return [CompileUnit(int8_gemm, signature, constant, ("scale_ptr", "out_ptr"), options(config), {90: "IGMMA"})]
