"""`sparse-wgmma`: the ternary GEMM on Hopper's sparse tensor cores, for 2:4 weights and for 6:8 (4:6, 8:10) lifted onto them; and
`dense-wgmma`: the same kernel on its dense ones, for any ternary weight, which multiplies the zeros too.

Y[T, N] = X · Wᵀ · x_scale[t] · w_scale[split(n)] + bias, from int8 X (lifted where the weight is) and weights at 2 bits a logical weight in
the order of the instruction (`kernels.fragments`). Floor: max(2·N·K'·T / sparse int8 rate, compulsory bytes / memory bandwidth).

Compiled and read for sm_90a with Triton 3.6.0 and 3.7.1 (2026-11-22): no spills, no serialized products. It has not run on a device
yet, so it stands in no catalogue and nothing dispatches to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.errors import NonFiniteError, ShapeError, SparsityError
from kernels.fragments import ROWS, pack_dense_fragments, pack_fragments
from kernels.gpu import Gpu
from kernels.inputs import DTYPES, GemmInputs, Inputs
from kernels.kernel import CompileUnit, Outputs, Prepared
from kernels.problem import Problem, Sparsity
from kernels.space import ConfigSpace
from kernels.ternary_gemm.dense_triton import MAX_IN_FEATURES, aligned_rows, is_aligned
from kernels.ternary_gemm.sparse_wgmma_kernel import sparse_gemm
from kernels.ternary_gemm.sparse_wgmma_ptx import CONSUMERS, STAGE_COLUMNS, shared_offsets
from reference.lifting import lift_activation, lift_weight, lifted_width

LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=2)
"""Activations in shared memory: rows of 128 bytes, swizzled as wgmma reads them."""
BARRIER_BYTES = 512 + 256
"""What the compiler lays behind the stages: 64 barriers, and its own bookkeeping of the warps."""
CONSUMER_REGISTERS = 240
KINDS = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32", torch.int32: "s32"}


@dataclass(frozen=True)
class SparseConfig:
    """tiles: blocks of 64 weight rows per consumer warpgroup (an output tile is 128 · tiles rows). block_t: its tokens. stages: of
    activations, 128 columns each. skew: clocks that the second warpgroup starts later."""

    tiles: int
    block_t: int
    stages: int
    skew: int = 0


@dataclass(frozen=True)
class FragmentWeight:
    """A weight in fragment order. blocks: int32 as `kernels.fragments` packs it. row_scale: float32, w_scale / 64 of every row, zeros
    behind the last up to a multiple of `ROW_PADDING`. in_features: of the layer; columns: what is multiplied (lifted or not). sparse: for
    the sparse tensor cores (layout fragment24) or the dense ones."""

    blocks: torch.Tensor
    row_scale: torch.Tensor
    out_features: int
    in_features: int
    columns: int
    sparse: bool

    @property
    def weight_bytes(self) -> int:
        """Bytes as stored, scales included."""
        return self.blocks.numel() * 4 + self.row_scale.numel() * 4


ROW_PADDING = 1536
"""Every tile height divides it: row scales and biases can be read to the end of the last tile."""


def columns_of(sparsity: Sparsity, in_features: int) -> int:
    """Columns that the sparse kernel multiplies: in_features, or the lifted width."""
    return lifted_width(in_features, sparsity.m) if sparsity.lifted else in_features


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
    x_scale: torch.Tensor
    bias: torch.Tensor
    out: torch.Tensor
    config: SparseConfig
    programs: int

    def launch(self) -> None:
        """One launch on the current stream."""
        tokens, out_features = self.out.shape
        if not self.out.numel():
            return
        config, weight = self.config, self.weight
        row_tiles = -(-out_features // (CONSUMERS * ROWS * config.tiles))
        tiles = row_tiles * -(-tokens // config.block_t)
        constexprs = constants(config, self.out.dtype, out_features, weight.sparse)
        sparse_gemm[(min(self.programs, tiles),)](
            self.x, weight.blocks, self.x_scale, weight.row_scale, self.bias, self.out, weight.blocks.shape[1], tiles, row_tiles,
            weight.blocks.shape[0], tokens, out_features, **constexprs, num_warps=4 * CONSUMERS,
        )


def constants(config: SparseConfig, dtype: torch.dtype, out_features: int, sparse: bool) -> dict[str, object]:
    """What the kernel is specialized for."""
    return {"TILES": config.tiles, "BLOCK_T": config.block_t, "STAGES": config.stages, "SKEW": config.skew, "OUT": KINDS[dtype],
            "WIDE": dtype.itemsize == 2 and out_features % 8 == 0, "SPARSE": sparse}


def _need(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or tensor.device != device:
        raise ShapeError(f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; {dtype} {list(shape)} on {device} is needed")


def bind(x_q: torch.Tensor, x_scale: torch.Tensor, weight: FragmentWeight, bias: torch.Tensor | None, dtype: torch.dtype,
         config: SparseConfig, programs: int) -> SparseGemm:
    """The GEMM with its output allocated. x_q: int8 [T, columns], lifted where the weight is. Raises ShapeError before anything runs."""
    rows, device = weight.out_features, weight.blocks.device
    if weight.columns > MAX_IN_FEATURES:
        raise ShapeError(f"{weight.columns} columns; int32 accumulators of 64-fold weights hold at most {MAX_IN_FEATURES}")
    _need("x_q", x_q, torch.int8, (x_q.shape[0], weight.columns), device)
    _need("x_scale", x_scale, torch.float32, (x_q.shape[0],), device)
    if bias is not None:
        _need("bias", bias, torch.float32, (rows,), device)
    x = aligned_rows(x_q)
    descriptor = TensorDescriptor(x, list(x.shape), list(x.stride()), [config.block_t, STAGE_COLUMNS], LAYOUT)
    padded = padded_rows(torch.zeros(rows, device=x.device) if bias is None else bias, rows)
    out = torch.empty((x.shape[0], rows), dtype=dtype, device=x.device)
    return SparseGemm(weight, descriptor, x_scale.contiguous(), padded, out, config, programs)


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
    programs = torch.cuda.get_device_properties(x_q.device).multi_processor_count
    gemm = bind(x_q, inputs.x_scale, weight, inputs.bias, DTYPES[problem.dtype], config, programs)

    def run() -> Outputs:
        gemm.launch()
        return {"y": gemm.out}

    footprint = x_q.numel() + weight.weight_bytes + gemm.out.nbytes
    return Prepared(run, {"y": gemm.out}, footprint, weight.weight_bytes, {"copies_x": not is_aligned(x_q), "columns": weight.columns})


def reject(problem: Problem, gpu: Gpu, config: SparseConfig) -> str | None:
    """Accumulators and addresses in 240 registers a thread, stages in shared memory, tiles that are neither padding nor crumbs."""
    wide = problem.dtype in ("bf16", "fp16") and problem.out_features % 8 == 0
    registers = config.tiles * (config.block_t // 2 + 6) + (26 if wide else 40)
    if registers > CONSUMER_REGISTERS:
        return f"needs about {registers} registers a thread, {CONSUMER_REGISTERS} are there"
    needed = shared_offsets(config.block_t, config.stages)[1] + BARRIER_BYTES
    if needed > gpu.shared_bytes:
        return f"needs {needed} bytes of shared memory, {gpu.shared_bytes} are there"
    if config.block_t > 64 and problem.tokens <= config.block_t // 2:
        return f"tiles of {config.block_t} tokens are mostly padding for {problem.tokens}"
    tiles = math.ceil(problem.out_features / (128 * config.tiles)) * math.ceil(problem.tokens / config.block_t)
    if config.tiles * config.block_t < 256 and tiles > 8 * gpu.sms:
        return f"{tiles} small tiles: larger ones fill {gpu.sms} multiprocessors too"
    return None


space = ConfigSpace(
    SparseConfig, {"tiles": (1, 2, 3, 4), "block_t": (64, 128, 256), "stages": (5, 8, 11), "skew": (0, 1500, 3000)}, reject,
)


def default_config(problem: Problem, gpu: Gpu) -> SparseConfig:
    """The tile whose waves, weighted by their products, are the least work; ties go to the taller one. An estimate, not a measurement."""
    shapes = ((3, 128, 11), (2, 128, 11), (1, 128, 11), (4, 64, 16), (2, 64, 16), (1, 64, 16))
    choices = [SparseConfig(*shape) for shape in shapes]

    def work(config: SparseConfig) -> float:
        tiles = math.ceil(problem.out_features / (128 * config.tiles)) * math.ceil(max(1, problem.tokens) / config.block_t)
        return math.ceil(tiles / max(1, gpu.sms)) * (config.tiles * config.block_t + 64)

    return min((config for config in choices if reject(problem, gpu, config) is None), key=work)


def unavailable(problem: Problem, gpu: Gpu) -> str | None:
    """Why this kernel cannot do the problem on that GPU, or None."""
    if gpu.capability != 90:
        return f"needs sm_90 (wgmma), {gpu.name} is {gpu.architecture}"
    if not (problem.sparsity.lifted or (problem.sparsity.n, problem.sparsity.m) == (2, 4)):
        return f"2:4 weights or (L-2):L lifted onto them, not {problem.sparsity}"
    if columns_of(problem.sparsity, problem.in_features) > MAX_IN_FEATURES:
        return f"in_features {problem.in_features} is too large"
    return None


def compile_units(problem: Problem, config: SparseConfig, sparse: bool = True) -> Sequence[CompileUnit]:
    """The kernel as the problem and the config make it."""
    dtype = DTYPES[problem.dtype]
    out = {"bf16": "*bf16", "f16": "*fp16", "f32": "*fp32", "s32": "*i32"}[KINDS[dtype]]
    signature = {"x_desc": f"tensordesc<i8{[config.block_t, STAGE_COLUMNS]},{LAYOUT!r}>", "w_ptr": "*i32", "x_scale_ptr": "*fp32",
                 "row_scale_ptr": "*fp32", "bias_ptr": "*fp32", "y_ptr": out}
    signature |= dict.fromkeys(("steps", "tiles", "row_tiles", "row_blocks", "tokens", "out_features"), "i32")
    constant = constants(config, dtype, problem.out_features, sparse)
    pointers = ("w_ptr", "x_scale_ptr", "row_scale_ptr", "bias_ptr", "y_ptr")
    signature |= dict.fromkeys(constant, "constexpr")
    expected = {90: "IGMMA.SP" if sparse else "IGMMA"}
    return [CompileUnit(sparse_gemm, signature, constant, pointers, {"num_warps": 4 * CONSUMERS}, expected)]
