"""Packed bytes (layout dense2) to fragments, of the weight or of its transpose: for masters that are not packed straight into fragments
(float32, other sparsities than 2:4) and for gradients that reduce over out_features.

Floor: half a byte read and written per two weights.
"""

from __future__ import annotations

import torch
import triton

from kernels.errors import ShapeError
from kernels.fragments import block_shape
from kernels.kernel import CompileUnit
from kernels.launch import launch
from kernels.mask_quantize.repack_kernels import repack_kernel
from kernels.packed import FIELD, PackedTernary

WARPS = 4


def fragments_shape(packed: PackedTernary, transposed: bool) -> tuple[int, int, int, int]:
    """The shape of the int32 blocks of a weight [N, K], or of its transpose [K, N]."""
    shape = packed.out_features, packed.in_features
    return block_shape(*(shape[::-1] if transposed else shape))


def launch_repack(packed: PackedTernary, blocks: torch.Tensor, *, sparse: bool, transposed: bool = False) -> None:
    """Write the weight, or its transpose, in fragment order into blocks: one launch, no allocation, no synchronization.

    blocks: int32 `fragments_shape`, contiguous. sparse: layout fragment24, else fragment. A weight (or a transpose) with more than 2
    non-zeros in a group of four does not fit fragment24: values are not read here, and what comes out of such a group is undefined.
    Raises ShapeError for what does not fit.
    """
    shape = fragments_shape(packed, transposed)
    if blocks.dtype != torch.int32 or tuple(blocks.shape) != shape or not blocks.is_contiguous() or blocks.device != packed.data.device:
        raise ShapeError(f"blocks are {blocks.dtype} {list(blocks.shape)} on {blocks.device}; contiguous int32 {list(shape)} on "
                         f"{packed.data.device} are needed")
    if sparse and not transposed and (packed.sparsity.n, packed.sparsity.m) != (2, 4):
        raise ShapeError(f"fragment24 holds 2:4 weights, not {packed.sparsity}")
    if blocks.device.type == "cpu" and isinstance(repack_kernel, triton.JITFunction):
        raise ShapeError("the weight is on the CPU; this kernel runs on a GPU (or in Triton's interpreter)")
    if not packed.data.numel():
        return
    stride = packed.data.shape[1]
    down, along = (stride // FIELD, shape[1]) if transposed else (shape[0], stride // FIELD)
    launch(
        repack_kernel, (down * along,), (packed.data, blocks), (packed.out_features, stride, shape[0], shape[1], along), SPARSE=sparse,
        TRANSPOSED=transposed, num_warps=WARPS,
    )


def compile_unit(sparse: bool, transposed: bool) -> CompileUnit:
    """The kernel as it is launched."""
    constants = {"SPARSE": sparse, "TRANSPOSED": transposed}
    pointers = {"packed_ptr": "*u8", "blocks_ptr": "*i32"}
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in repack_kernel.arg_names}
    return CompileUnit(repack_kernel, signature, constants, (*pointers, "stride"), {"num_warps": WARPS})
