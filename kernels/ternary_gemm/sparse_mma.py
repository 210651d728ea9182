"""`sparse-mma`: the ternary GEMM on the sparse tensor cores of every GPU from sm_80 on, for 2:4 weights and for 6:8 (4:6, 8:10) lifted
onto them, through the warp's own instruction (`mma.sp.m16n8k64`).

Y[T, N] = X · Wᵀ · x_scale[t] · w_scale[split(n)] + bias, from int8 X (lifted where the weight is) and the packed bytes that `sparse-wgmma`
reads too (`kernels.fragments`). Floor: max(2·N·K'·T / sparse int8 rate, compulsory bytes / memory bandwidth). On Hopper this instruction
reaches about half of the rate of wgmma: there it is a fallback.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.errors import ShapeError
from kernels.gpu import Gpu
from kernels.inputs import DTYPES, GemmInputs, Inputs
from kernels.kernel import CompileUnit, Kernel, Outputs, Prepared
from kernels.problem import Problem
from kernels.space import ConfigSpace
from kernels.ternary_gemm.dense_triton import MAX_IN_FEATURES, aligned_rows, is_aligned
from kernels.ternary_gemm.sparse_mma_config import BAND, MmaConfig, default_config, reject
from kernels.ternary_gemm.sparse_mma_kernel import sparse_mma_gemm
from kernels.ternary_gemm.sparse_mma_tile import STAGE_COLUMNS
from kernels.ternary_gemm.sparse_wgmma import FragmentWeight, fragment_weight, padded_rows
from kernels.ternary_gemm.sparse_wgmma_config import columns_of
from reference.lifting import lift_activation

KINDS = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32", torch.int32: "s32"}


@dataclass(frozen=True)
class MmaGemm:
    """The GEMM bound to its buffers. x: int8 [T, columns] in rows of a multiple of 16 bytes; bias: as `padded_rows` gives it; programs:
    how many work at a time. sums, counts: where the parts of tiles meet; one launch at a time may use them."""

    weight: FragmentWeight
    x: torch.Tensor
    x_scale: torch.Tensor
    bias: torch.Tensor
    out: torch.Tensor
    sums: torch.Tensor
    counts: torch.Tensor
    config: MmaConfig
    programs: int

    def launch(self) -> None:
        """One launch on the current stream of the tensors' device."""
        tokens, out_features = self.out.shape
        if not self.out.numel():
            return
        weight, tile = self.weight, self.config.tile
        row_tiles, token_tiles = math.ceil(out_features / tile.block_n), math.ceil(tokens / tile.block_t)
        works = row_tiles * token_tiles * self.config.splits
        with torch.cuda.device_of(self.out):
            sparse_mma_gemm[(min(self.programs, works),)](
                self.x, weight.blocks, self.x_scale, weight.row_scale, self.bias, self.out, self.sums, self.counts,
                weight.blocks.shape[1], works, row_tiles, token_tiles, self.config.band or row_tiles, weight.blocks.shape[0], tokens,
                out_features, self.x.stride(0), _width(weight.columns), **constants(self.config, self.out.dtype, out_features),
                **self.config.options,
            )


def constants(config: MmaConfig, dtype: torch.dtype, out_features: int) -> dict[str, object]:
    """What the kernel is specialized for."""
    return {"TILE": config.tile, "STAGES": config.stages, "SPLITS": config.splits, "OUT": KINDS[dtype],
            "WIDE": dtype.itemsize == 2 and out_features % 8 == 0}


def _width(columns: int) -> int:
    return -(-columns // 16) * 16


def _need(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or tensor.device != device:
        raise ShapeError(f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; {dtype} {list(shape)} on {device} is needed")


def bind(x_q: torch.Tensor, x_scale: torch.Tensor, weight: FragmentWeight, bias: torch.Tensor | None, dtype: torch.dtype,
         config: MmaConfig) -> MmaGemm:
    """The GEMM with its output allocated. x_q: int8 [T, columns], lifted where the weight is; rows that cannot be read in pieces of 16
    bytes are copied, here and once. bias: float32 [N]. Raises ShapeError before anything runs."""
    rows, device = weight.out_features, weight.blocks.device
    if not weight.sparse:
        raise ShapeError("the weight is packed for dense tensor cores; pack it with fragment_weight")
    if weight.columns > MAX_IN_FEATURES:
        raise ShapeError(f"{weight.columns} columns; int32 accumulators of 64-fold weights hold at most {MAX_IN_FEATURES}")
    if config.splits > weight.blocks.shape[1]:
        raise ShapeError(f"{weight.columns} columns cannot be cut into {config.splits} parts of whole blocks of {STAGE_COLUMNS}")
    if dtype not in KINDS:
        raise ShapeError(f"out dtype is {dtype}; one of {', '.join(map(str, KINDS))} is needed")
    _need("x_q", x_q, torch.int8, (x_q.shape[0], weight.columns), device)
    _need("x_scale", x_scale, torch.float32, (x_q.shape[0],), device)
    if bias is not None:
        _need("bias", bias, torch.float32, (rows,), device)
    if not x_q.is_cuda:
        raise ShapeError(f"tensors are on {device}; a CUDA device is needed")
    padded = padded_rows(torch.zeros(rows, device=device) if bias is None else bias, rows)
    out = torch.empty((x_q.shape[0], rows), dtype=dtype, device=device)
    tile, programs = config.tile, torch.cuda.get_device_properties(device).multi_processor_count * config.per_sm
    tiles = math.ceil(rows / tile.block_n) * math.ceil(x_q.shape[0] / tile.block_t) if config.splits > 1 else 0
    sums = torch.empty(tiles * config.splits * tile.block_n * tile.block_t, dtype=torch.int32, device=device)
    counts = torch.zeros(tiles, dtype=torch.int32, device=device)
    return MmaGemm(weight, aligned_rows(x_q), x_scale.contiguous(), padded, out, sums, counts, config, programs)


def prepare(problem: Problem, inputs: Inputs, config: MmaConfig) -> Prepared:
    """Bind a gemm to the sparse tensor cores; packing, and lifting the activations, are outside of `run`."""
    if not isinstance(inputs, GemmInputs):
        raise ShapeError(f"{problem.op} takes GemmInputs, not {type(inputs).__name__}")
    weight = fragment_weight(inputs.w_ternary, inputs.w_scale, problem.splits, problem.sparsity)
    x_q = lift_activation(inputs.x_q, problem.sparsity.m) if problem.sparsity.lifted else inputs.x_q
    gemm = bind(x_q, inputs.x_scale, weight, inputs.bias, DTYPES[problem.dtype], config)

    def run() -> Outputs:
        gemm.launch()
        return {"y": gemm.out}

    footprint = x_q.numel() + 4 * x_q.shape[0] + weight.weight_bytes + gemm.out.nbytes
    return Prepared(run, {"y": gemm.out}, footprint, weight.weight_bytes, {"copies_x": not is_aligned(x_q), "columns": weight.columns})


def unavailable(problem: Problem, gpu: Gpu) -> str | None:
    """Why this kernel cannot do the problem on that GPU, or None."""
    if gpu.capability < 80:
        return f"needs sm_80 or later (mma.sp), {gpu.name} is {gpu.architecture}"
    if not (problem.sparsity.lifted or (problem.sparsity.n, problem.sparsity.m) == (2, 4)):
        return f"2:4 weights or (L-2):L lifted onto them, not {problem.sparsity}"
    if problem.refusal is None and columns_of(problem.sparsity, problem.in_features) > MAX_IN_FEATURES:
        return f"in_features {problem.in_features} is too large"
    return None


def compile_units(problem: Problem, config: MmaConfig) -> Sequence[CompileUnit]:
    """The kernel as the problem and the config make it."""
    dtype = DTYPES[problem.dtype]
    out = {"bf16": "*bf16", "f16": "*fp16", "f32": "*fp32", "s32": "*i32"}[KINDS[dtype]]
    pointers = {"x_ptr": "*i8", "w_ptr": "*i32", "x_scale_ptr": "*fp32", "row_scale_ptr": "*fp32", "bias_ptr": "*fp32", "y_ptr": out,
                "sums_ptr": "*i32", "counts_ptr": "*i32"}
    sizes = ("steps", "works", "row_tiles", "token_tiles", "band", "row_blocks", "tokens", "out_features", "x_stride", "x_width")
    constant = constants(config, dtype, problem.out_features)
    signature = pointers | dict.fromkeys(sizes, "i32") | dict.fromkeys(constant, "constexpr")
    return [CompileUnit(sparse_mma_gemm, signature, constant, tuple(pointers), config.options, {80: "IMMA.SP"})]


space = ConfigSpace(
    MmaConfig,
    {"warps_n": (1, 2, 4), "warps_t": (1, 2, 4), "tiles_n": (1, 2, 4, 5, 6, 8), "tiles_t": (1, 2, 4, 6, 7, 8), "stages": (3, 4, 6),
     "per_sm": (1, 2), "band": (0, BAND), "splits": (1, 2, 4, 8)},
    reject,
)

GEMM = Kernel("sparse-mma", "gemm", "variant", prepare, default_config, space, unavailable, compile_units=compile_units, interpreted=False)
KERNELS: tuple[Kernel, ...] = (GEMM,)
