"""`sparse-wgmma`: the ternary GEMM on Hopper's sparse tensor cores, for 2:4 weights and for 6:8 (4:6, 8:10) lifted onto them; and
`dense-wgmma`: the same kernel on its dense ones, for any ternary weight, which multiplies the zeros too.

Y[T, N] = X · Wᵀ · x_scale[t] · w_scale[split(n)] + bias, from int8 X (lifted where the weight is) and weights at 2 bits a logical weight in
the order of the instruction (`kernels.fragments`). Floor: max(2·N·K'·T / sparse int8 rate, compulsory bytes / memory bandwidth).

Measured on an H200 (2026-11-22): 75 % of the tensor cores' cycles at 8192 × 8192 × 8192; docs/kernels-sparse.md has the ladder.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.errors import GpuMismatch, NonFiniteError, ShapeError, SparsityError
from kernels.fragments import ROWS, pack_dense_fragments, pack_fragments
from kernels.gpu import Gpu
from kernels.inputs import DTYPES, GemmInputs, Inputs
from kernels.kernel import CompileUnit, Kernel, Outputs, Prepared
from kernels.problem import DENSE, Problem, Sparsity
from kernels.ternary_gemm.dense_triton import MAX_IN_FEATURES, aligned_rows, is_aligned
from kernels.ternary_gemm.sparse_wgmma_config import (
    Schedule,
    SparseConfig,
    default_config,
    is_wide,
    reject,
    schedule,
    space,
    split_refusal,
    unavailable,
)
from kernels.ternary_gemm.sparse_wgmma_kernel import sparse_gemm
from kernels.ternary_gemm.sparse_wgmma_ptx import CONSUMERS, SLICE, STAGE_COLUMNS
from reference.lifting import lift_activation, lift_weight

LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=2)
"""Activations in shared memory: rows of 128 bytes, swizzled as wgmma reads them."""
OUT_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
"""A slice of the output in shared memory, as TMA stores it."""
KINDS = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32", torch.int32: "s32"}


@dataclass(frozen=True)
class FragmentWeight:
    """A weight in fragment order. blocks: int32 as `kernels.fragments` packs it. row_scale: float32, w_scale / 64 of every row, zeros
    behind the last up to a multiple of `ROW_PADDING`. in_features: of the layer; columns: what is multiplied (lifted or not). sparse: for
    the sparse tensor cores (layout fragment24) or the dense ones. wide: for bf16 activations (`kernels.sparse_backward.wide_gemm`)."""

    blocks: torch.Tensor
    row_scale: torch.Tensor
    out_features: int
    in_features: int
    columns: int
    sparse: bool
    wide: bool = False

    @property
    def kind(self) -> str:
        """What the kernel is specialized for: "sparse" (layout fragment24), "dense" (fragment), or "wide" (bf16 activations)."""
        return "wide" if self.wide else "sparse" if self.sparse else "dense"

    @property
    def weight_bytes(self) -> int:
        """Bytes as stored, scales included."""
        return self.blocks.numel() * 4 + self.row_scale.numel() * 4


ROW_PADDING = 1536
"""Every tile height divides it: row scales and biases can be read to the end of the last tile."""


def fragment_weight(w_ternary: torch.Tensor, w_scale: torch.Tensor, splits: Sequence[int], sparsity: Sparsity) -> FragmentWeight:
    """Pack a masked ternary int8 weight [N, K] with float32 scales, one per split, for the sparse tensor cores.

    Raises SparsityError for another sparsity than 2:4 or (L-2):L and for weights that break theirs, ShapeError for what does not fit,
    NonFiniteError for a scale that is NaN or infinite.
    """
    if not (sparsity.lifted or (sparsity.n, sparsity.m) == (2, 4)):
        raise SparsityError(f"{sparsity} does not run on 2:4 tensor cores; allowed: 2:4, 4:6, 6:8, 8:10")
    scale, lifted = _row_scale(w_ternary, w_scale, splits), w_ternary
    if sparsity.lifted:
        try:
            lifted = lift_weight(w_ternary, sparsity.n, sparsity.m)
        except ValueError as error:
            raise SparsityError(str(error)) from None
    rows, in_features = w_ternary.shape
    return FragmentWeight(pack_fragments(lifted), scale, rows, in_features, lifted.shape[1], sparse=True)


def dense_fragment_weight(w_ternary: torch.Tensor, w_scale: torch.Tensor, splits: Sequence[int]) -> FragmentWeight:
    """Pack any ternary int8 weight [N, K] with float32 scales, one per split, for the dense tensor cores. Raises as `fragment_weight`."""
    scale = _row_scale(w_ternary, w_scale, splits)
    rows, in_features = w_ternary.shape
    return FragmentWeight(pack_dense_fragments(w_ternary), scale, rows, in_features, in_features, sparse=False)


def _row_scale(w_ternary: torch.Tensor, w_scale: torch.Tensor, splits: Sequence[int]) -> torch.Tensor:
    if not bool(torch.isfinite(w_scale).all()):
        raise NonFiniteError("w_scale holds a NaN or an infinity")
    if sum(splits) != w_ternary.shape[0] or tuple(w_scale.shape) != (len(splits),):
        raise ShapeError(f"splits {tuple(splits)} and {len(w_scale)} scales do not fit {w_ternary.shape[0]} out_features")
    counts = torch.tensor(tuple(splits), device=w_scale.device)
    return padded_rows(w_scale.float().repeat_interleave(counts) / 64, w_ternary.shape[0])


def padded_rows(values: torch.Tensor, rows: int) -> torch.Tensor:
    """float32 values per output row with zeros behind them."""
    return torch.nn.functional.pad(values.float(), (0, -rows % ROW_PADDING)).contiguous()


@dataclass(frozen=True)
class SparseGemm:
    """The GEMM bound to its buffers. x: int8 [T, columns] in rows of a multiple of 16 bytes; bias: as `padded_rows` gives it."""

    weight: FragmentWeight
    x: TensorDescriptor
    y: TensorDescriptor
    x_scale: torch.Tensor
    bias: torch.Tensor
    out: torch.Tensor
    config: SparseConfig
    schedule: Schedule
    early: bool

    def launch(self) -> None:
        """One launch on the current stream of the tensors' device."""
        tokens, out_features = self.out.shape
        if not self.out.numel():
            return
        weight, plan = self.weight, self.schedule
        with torch.cuda.device_of(self.out):
            sparse_gemm[(plan.programs,)](
                self.x, self.y, weight.blocks, self.x_scale, weight.row_scale, self.bias, self.out, weight.blocks.shape[1], plan.rounds,
                plan.row_tiles, plan.token_tiles, weight.blocks.shape[0], tokens, out_features,
                **constants(self.config, self.out.dtype, out_features, weight.kind, self.early), **options(self.config),
            )


def options(config: SparseConfig) -> dict[str, int]:
    """How the kernel is compiled and launched: a cluster for the parts of a tile, and begun before the launch before it ends."""
    return {"num_warps": 4 * CONSUMERS, "num_ctas": config.splits * config.pair, "launch_pdl": True}


def constants(config: SparseConfig, dtype: torch.dtype, out_features: int, kind: str, early: bool = False) -> dict[str, object]:
    """What the kernel is specialized for."""
    return {"TILES": config.tiles, "BLOCK_T": config.block_t, "STAGES": config.stages, "SPLITS": config.splits, "PAIR": config.pair,
            "OUT": KINDS[dtype], "WIDE": is_wide(dtype, out_features), "KIND": kind, "EARLY": early}


def _need(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or tensor.device != device:
        raise ShapeError(f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; {dtype} {list(shape)} on {device} is needed")


def out_descriptor(out: torch.Tensor) -> TensorDescriptor:
    """How TMA stores an output [T, N] of 16 bits a value."""
    return TensorDescriptor(out, list(out.shape), list(out.stride()), [SLICE, ROWS], OUT_LAYOUT)


def bind(x_q: torch.Tensor, x_scale: torch.Tensor, weight: FragmentWeight, bias: torch.Tensor | None, dtype: torch.dtype,
         config: SparseConfig, processors: int, early: bool = False) -> SparseGemm:
    """The GEMM with its output allocated. x_q: int8 [T, columns], lifted where the weight is. early: the launch asks for its weights, their
    scales and the bias before those ahead of it have ended; none that may still be running then writes them.

    Raises ShapeError before anything runs."""
    rows, device = weight.out_features, weight.blocks.device
    if weight.columns > MAX_IN_FEATURES:
        raise ShapeError(f"{weight.columns} columns; int32 accumulators of 64-fold weights hold at most {MAX_IN_FEATURES}")
    _need("x_q", x_q, torch.int8, (x_q.shape[0], weight.columns), device)
    _need("x_scale", x_scale, torch.float32, (x_q.shape[0],), device)
    if bias is not None:
        _need("bias", bias, torch.float32, (rows,), device)
    x = aligned_rows(x_q)
    # Without tokens nothing is launched, but a descriptor has to have some.
    shape = [max(1, x.shape[0]), x.shape[1]]
    descriptor = TensorDescriptor(x, shape, list(x.stride()), [config.block_t // config.pair, STAGE_COLUMNS], LAYOUT)
    padded = padded_rows(torch.zeros(rows, device=x.device) if bias is None else bias, rows)
    out = torch.empty((x.shape[0], rows), dtype=dtype, device=x.device)
    refusal = split_refusal(config, x.shape[0], rows, weight.columns, processors)
    if refusal:
        raise ShapeError(refusal)
    plan = schedule(config, x.shape[0], rows, processors)
    y = out_descriptor(out) if is_wide(dtype, rows) and out.numel() else descriptor
    return SparseGemm(weight, descriptor, y, x_scale.contiguous(), padded, out, config, plan, early)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs of this kernel run at once on a CUDA device. Raises GpuMismatch, before anything runs, where it is not sm_90."""
    found = torch.cuda.get_device_properties(device)
    if (found.major, found.minor) != (9, 0):
        raise GpuMismatch(f"{found.name} is sm_{found.major}{found.minor}; wgmma needs sm_90 (H100, H200): sparse-mma runs from sm_80 on")
    return found.multi_processor_count


def prepare(problem: Problem, inputs: Inputs, config: SparseConfig) -> Prepared:
    """Bind a gemm to the sparse tensor cores; packing, and lifting the activations, are outside of `run`."""
    assert isinstance(inputs, GemmInputs)
    weight = fragment_weight(inputs.w_ternary, inputs.w_scale, problem.splits, problem.sparsity)
    x_q = lift_activation(inputs.x_q, problem.sparsity.m) if problem.sparsity.lifted else inputs.x_q
    return _prepared(problem, inputs, x_q, weight, config)


def prepare_dense(problem: Problem, inputs: Inputs, config: SparseConfig) -> Prepared:
    """Bind a gemm to the dense tensor cores; packing is outside of `run`."""
    assert isinstance(inputs, GemmInputs)
    return _prepared(problem, inputs, inputs.x_q, dense_fragment_weight(inputs.w_ternary, inputs.w_scale, problem.splits), config)


def _prepared(problem: Problem, inputs: GemmInputs, x_q: torch.Tensor, weight: FragmentWeight, config: SparseConfig) -> Prepared:
    gemm = bind(x_q, inputs.x_scale, weight, inputs.bias, DTYPES[problem.dtype], config, multiprocessors(x_q.device), early=True)

    def run() -> Outputs:
        gemm.launch()
        return {"y": gemm.out}

    footprint = x_q.numel() + weight.weight_bytes + gemm.out.nbytes
    return Prepared(run, {"y": gemm.out}, footprint, weight.weight_bytes, {"copies_x": not is_aligned(x_q), "columns": weight.columns})


def compile_units(problem: Problem, config: SparseConfig, kind: str = "sparse", early: bool = False) -> Sequence[CompileUnit]:
    """The kernel as the problem and the config make it."""
    dtype = DTYPES[problem.dtype]
    out = {"bf16": "*bf16", "f16": "*fp16", "f32": "*fp32", "s32": "*i32"}[KINDS[dtype]]
    x_desc = f"tensordesc<i8{[config.block_t // config.pair, STAGE_COLUMNS]},{LAYOUT!r}>"
    y_desc = f"tensordesc<{out[1:]}{[SLICE, 64]},{OUT_LAYOUT!r}>" if is_wide(dtype, problem.out_features) else x_desc
    signature = {"x_desc": x_desc, "y_desc": y_desc, "w_ptr": "*i32", "x_scale_ptr": "*fp32",
                 "row_scale_ptr": "*fp32", "bias_ptr": "*fp32", "y_ptr": out}
    integers = ("steps", "rounds", "row_tiles", "token_tiles", "row_blocks", "tokens", "out_features")
    signature |= dict.fromkeys(integers, "i32")
    constant = constants(config, dtype, problem.out_features, kind, early)
    pointers = ("w_ptr", "x_scale_ptr", "row_scale_ptr", "bias_ptr", "y_ptr")
    signature |= dict.fromkeys(constant, "constexpr")
    expected = {90: {"sparse": "IGMMA.SP", "dense": "IGMMA", "wide": "HGMMA.SP"}[kind]}
    return [CompileUnit(sparse_gemm, signature, constant, pointers, options(config), expected)]


def _unavailable_dense(problem: Problem, gpu: Gpu) -> str | None:
    if gpu.capability != 90:
        return f"needs sm_90 (wgmma), {gpu.name} is {gpu.architecture}"
    return f"in_features {problem.in_features} is too large" if problem.in_features > MAX_IN_FEATURES else None


def early_units(problem: Problem, config: SparseConfig) -> Sequence[CompileUnit]:
    """`compile_units` of a gemm, a layer or a forward pass: nothing right ahead of it writes its weights."""
    return compile_units(problem, config, early=True)


def _dense_units(problem: Problem, config: SparseConfig) -> Sequence[CompileUnit]:
    return compile_units(problem, config, "dense", early=True)


def _dense_default(problem: Problem, gpu: Gpu) -> SparseConfig:
    return default_config(problem.with_(sparsity=DENSE), gpu)


def _dense_reject(problem: Problem, gpu: Gpu, config: SparseConfig) -> str | None:
    return reject(problem.with_(sparsity=DENSE), gpu, config)


KERNELS: tuple[Kernel, ...] = (
    Kernel("sparse-wgmma", "gemm", "variant", prepare, default_config, space, unavailable, compile_units=early_units, interpreted=False),
    Kernel("dense-wgmma", "gemm", "variant", prepare_dense, _dense_default, replace(space, reject=_dense_reject), _unavailable_dense,
           compile_units=_dense_units, interpreted=False),
)
"""dense-wgmma multiplies the zeros of a sparse weight too: 2-bit weights on the dense int8 tensor cores, unlifted."""
