"""`int8-wgmma`: dX[T, K] = dY[T, N] · (Wt · w_scale) on Hopper's 8-bit tensor cores, with dY rounded to int8 per token. Not exact.

w_scale is folded into dY before it is quantized, so that one scale per token is left; W is kept transposed in fragment order
(`kernels.mask_quantize.repack`). With stochastic rounding the expectation of dX is exact: a value between two codes takes the upper one
with a probability of its distance from the lower one, from a counter-based generator (same seed, same bits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.errors import ShapeError
from kernels.gpu import Gpu
from kernels.inputs import DTYPES, Inputs
from kernels.kernel import CompileUnit, Kernel, Outputs, Prepared
from kernels.mask_quantize.activation import allocate_activation
from kernels.mask_quantize.activation_kernels import _magnitude, _quantized
from kernels.mask_quantize.repack import fragments_shape, launch_repack
from kernels.packed import pack
from kernels.problem import DENSE, Problem
from kernels.space import ConfigSpace
from kernels.sparse_backward import input_grad
from kernels.sparse_backward.input_grad import check_gradient, train_inputs
from kernels.ternary_gemm import sparse_wgmma, sparse_wgmma_config
from kernels.ternary_gemm.sparse_wgmma import FragmentWeight, padded_rows
from kernels.ternary_gemm.sparse_wgmma_config import SparseConfig

BLOCK = 2048
"""Columns of dY that a program takes at once."""


@dataclass(frozen=True)
class Int8GradConfig:
    """gemm: the transposed GEMM's config, also as plain JSON data. stochastic: rounding of dY; seed: of its generator."""

    gemm: SparseConfig
    stochastic: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.gemm, dict):
            object.__setattr__(self, "gemm", SparseConfig(**self.gemm))


@triton.jit
def quantize_gradient_kernel(
    dy, row_scale, q, scale, seed, out_features, dy_stride, q_stride, STOCHASTIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token: v = dy · row_scale[n] in float32, its absmax a, codes rint(v · 127 / a) (or stochastically rounded), scale a / 127.

    A token with a NaN or an infinity gets the scale NaN. Compiled without FMA fusion: the products are rounded first.
    """
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    tops = tl.zeros([BLOCK], tl.int32)
    for start in range(0, out_features, BLOCK):
        inside = start + lane < out_features
        value = tl.load(dy + token * dy_stride + start + lane, mask=inside, other=0.0).to(tl.float32)
        tops = tl.maximum(tops, _magnitude(value * tl.load(row_scale + start + lane, mask=inside, other=0.0)))
    top = tl.max(tops, axis=0)
    finite = top < 0x7F800000
    absmax = tl.maximum(tl.where(finite, top, 0).to(tl.float32, bitcast=True), 1e-30)
    inverse = tl.div_rn(tl.full((), 127.0, tl.float32), absmax)
    tl.store(scale + token, tl.where(finite, tl.div_rn(absmax, tl.full((), 127.0, tl.float32)), float("nan")))
    for start in range(0, out_features, BLOCK):
        inside = start + lane < out_features
        value = tl.load(dy + token * dy_stride + start + lane, mask=inside, other=0.0).to(tl.float32)
        value = value * tl.load(row_scale + start + lane, mask=inside, other=0.0)
        if STOCHASTIC:
            drawn = tl.rand(seed, (token * out_features + start + lane).to(tl.int32))
            code = tl.minimum(tl.floor(value * inverse + drawn), 127.0).to(tl.int32)
        else:
            code = _quantized(value, inverse)
        tl.store(q + token * q_stride + start + lane, code.to(tl.int8), mask=inside)


def launch_quantize_gradient(
    dy: torch.Tensor, row_scale: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, seed: int | None = None
) -> None:
    """Write int8 codes of dy · row_scale [T, N] and their scale per token. One launch, no synchronization.

    dy: [T, N] bf16 or fp16, contiguous rows. row_scale: float32, at least [N]. q: int8 [T, N], contiguous rows; scale: float32 [T].
    seed: of stochastic rounding, None for the nearest code. Raises ShapeError for what does not fit.
    """
    check_gradient(dy, q.shape[1])
    fits = q.dtype == torch.int8 and q.shape == dy.shape and q.stride(1) == 1 and tuple(scale.shape) == (dy.shape[0],)
    if not fits or scale.dtype != torch.float32:
        raise ShapeError(f"q {q.dtype} {list(q.shape)} and scale {scale.dtype} {list(scale.shape)} do not fit dy {list(dy.shape)}")
    if row_scale.dtype != torch.float32 or row_scale.numel() < dy.shape[1]:
        raise ShapeError(f"row_scale is {row_scale.dtype} {list(row_scale.shape)}; float32 [{dy.shape[1]}] is needed")
    if dy.numel():
        quantize_gradient_kernel[(dy.shape[0],)](
            dy, row_scale, q, scale, seed or 0, dy.shape[1], dy.stride(0), q.stride(0), STOCHASTIC=seed is not None, BLOCK=BLOCK,
            num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip


def prepare(problem: Problem, inputs: Inputs, config: Int8GradConfig) -> Prepared:
    """Bind the quantization of dy and the GEMM; packing and transposing the weight are outside of `run`."""
    data = train_inputs(inputs)
    check_gradient(data.dy, problem.out_features)
    rows, columns, device = problem.out_features, problem.in_features, data.dy.device
    packed = pack(data.w_ternary, data.w_scale, problem.splits, problem.sparsity)
    blocks = torch.empty(fragments_shape(packed, transposed=True), dtype=torch.int32, device=device)
    launch_repack(packed, blocks, sparse=False, transposed=True)
    # 64-fold weights meet w_scale / 64 in dy: nothing is left for the rows of the transpose.
    counts = torch.tensor(problem.splits, device=device)
    row_scale = data.w_scale.repeat_interleave(counts) / 64
    weight = FragmentWeight(blocks, padded_rows(torch.ones(columns, device=device), columns), columns, rows, rows, sparse=False)
    q, scale = allocate_activation(problem.tokens, rows, None, device)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    gemm = sparse_wgmma.bind(q, scale, weight, None, DTYPES[problem.dtype], config.gemm, processors)

    def run() -> Outputs:
        launch_quantize_gradient(data.dy, row_scale, q, scale, config.seed if config.stochastic else None)
        gemm.launch()
        return {"dx": gemm.out}

    touched = data.dy.nbytes + q.numel() + weight.weight_bytes + gemm.out.nbytes
    return Prepared(run, {"dx": gemm.out}, touched, weight.weight_bytes, {"rounded": "dy to int8 per token, dx", "exact": False})


def transposed(problem: Problem) -> Problem:
    """The GEMM that dX is: in_features rows of weights, out_features reduced, every weight multiplied."""
    return Problem("gemm", problem.in_features, problem.out_features, problem.tokens, DENSE, dtype=problem.dtype)


def default_config(problem: Problem, gpu: Gpu) -> Int8GradConfig:
    """The transposed GEMM's default, rounding to the nearest."""
    return Int8GradConfig(sparse_wgmma_config.default_config(transposed(problem), gpu))


def unavailable(problem: Problem, gpu: Gpu) -> str | None:
    """Why dX cannot be made so, or None."""
    if gpu.capability != 90:
        return f"needs sm_90 (wgmma), {gpu.name} is {gpu.architecture}"
    return input_grad.unavailable(problem, gpu)


def compile_units(problem: Problem, config: Int8GradConfig) -> Sequence[CompileUnit]:
    """The quantization and the GEMM as the problem and the config make them."""
    constants = {"STOCHASTIC": config.stochastic, "BLOCK": BLOCK}
    arguments = {"dy": "*bf16" if problem.dtype == "bf16" else "*fp16", "row_scale": "*fp32", "q": "*i8", "scale": "*fp32"}
    signature = {name: "constexpr" if name in constants else arguments.get(name, "i32") for name in quantize_gradient_kernel.arg_names}
    divisible = (*arguments, "q_stride", *(("out_features", "dy_stride") if problem.out_features % 16 == 0 else ()))
    unit = CompileUnit(quantize_gradient_kernel, signature, constants, divisible, {"num_warps": 8, "enable_fp_fusion": False})
    return [unit, *sparse_wgmma.compile_units(transposed(problem), config.gemm, "dense")]


INPUT_GRAD = Kernel("int8-wgmma", "input-grad", "variant", prepare, default_config, ConfigSpace(Int8GradConfig), unavailable, exact=False,
                    judged="gradient", compile_units=compile_units, interpreted=False)  # fmt: skip
KERNELS: tuple[Kernel, ...] = (INPUT_GRAD,)
