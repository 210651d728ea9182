"""dW[N, K] = dYᵀ[N, T] · (x_q · x_scale), dense, from dY and the int8 activations that the forward pass saved.

Every position gets its gradient, the masked ones too. The activations are widened inside the kernel: X̂ = x_q · x_scale in float32,
rounded once to dY's type, so a tile enters the tensor cores as if X̂ had been written out, and never is. Sums are float32. Where the
output has too few tiles to fill a GPU, the tokens are split, each part writes float32 sums, and a second kernel adds the parts in
order: equal bits on every run.
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
from kernels.kernel import CompileUnit, Kernel, Note, Outputs, Prepared
from kernels.problem import Problem
from kernels.space import ConfigSpace
from kernels.sparse_backward.dequantize import launch_dequantize
from kernels.sparse_backward.input_grad import check_gradient, train_inputs, unavailable, warpgroup_mma

FEWEST_TOKENS = 512
"""Tokens of a part, at least: below, adding the parts costs as much as they save."""


@dataclass(frozen=True)
class WeightGradConfig:
    """block_out × block_in tile of dW, block_tokens tokens per step, the tokens in `parts`; group: row tiles that share activations."""

    block_out: int
    block_in: int
    block_tokens: int
    parts: int
    warps: int
    stages: int
    group: int = 8


@triton.jit
def weight_grad_kernel(
    dy, x_q, x_scale, dw, tokens, out_features, in_features, part_tokens, dy_stride, x_stride, dw_stride,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_N, BLOCK_K] tile of one part of the tokens; dw is [parts, out_features, dw_stride] with in_features columns.

    WIDEN multiplies in float32: the interpreter's dot takes bf16 for integers.
    """
    tiles_n = tl.cdiv(out_features, BLOCK_N)
    tiles_k = tl.cdiv(in_features, BLOCK_K)
    pid = tl.program_id(0)
    part = tl.program_id(1)
    first = pid // (GROUP * tiles_k) * GROUP
    size = tl.minimum(tiles_n - first, GROUP)
    offs_n = (first + pid % (GROUP * tiles_k) % size) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = pid % (GROUP * tiles_k) // size * BLOCK_K + tl.arange(0, BLOCK_K)
    mask_n = offs_n[None, :] < out_features
    mask_k = offs_k[None, :] < in_features

    start = part * part_tokens
    end = tl.minimum(start + part_tokens, tokens)
    acc = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    for t in tl.range(start, end, BLOCK_T):
        offs_t = t + tl.arange(0, BLOCK_T)
        inside = offs_t < end
        rows = offs_t[:, None].to(tl.int64)
        grad = tl.load(dy + rows * dy_stride + offs_n[None, :], mask=inside[:, None] & mask_n, other=0.0)
        q = tl.load(x_q + rows * x_stride + offs_k[None, :], mask=inside[:, None] & mask_k, other=0)
        scale = tl.load(x_scale + offs_t, mask=inside, other=0.0)
        x = (q.to(tl.float32) * scale[:, None]).to(grad.dtype)
        if WIDEN:
            grad, x = grad.to(tl.float32), x.to(tl.float32)
        acc = tl.dot(tl.trans(grad), x, acc)

    rows = part.to(tl.int64) * out_features + offs_n[:, None]
    tl.store(dw + rows * dw_stride + offs_k[None, :], acc.to(dw.dtype.element_ty), mask=(offs_n[:, None] < out_features) & mask_k)


@triton.jit
def add_parts_kernel(parts, out, out_features, in_features, out_stride, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """out[n, k] = the float32 parts [PARTS, out_features, in_features] added in order, rounded once; one row per program_id(0)."""
    row = tl.program_id(0).to(tl.int64)
    offs_k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs_k < in_features
    acc = tl.load(parts + row * in_features + offs_k, mask=mask, other=0.0)
    for part in tl.static_range(1, PARTS):
        acc += tl.load(parts + (row + part * out_features) * in_features + offs_k, mask=mask, other=0.0)
    tl.store(out + row * out_stride + offs_k, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def bias_grad_kernel(dy, out, tokens, out_features, part_tokens, dy_stride, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr):
    """out[part, n] = the sum of dy[t, n] over the tokens of a part in float32, BLOCK_N columns per program."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    start = tl.program_id(1) * part_tokens
    end = tl.minimum(start + part_tokens, tokens)
    acc = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for t in tl.range(start, end, BLOCK_T):
        rows = t + tl.arange(0, BLOCK_T)
        mask = (rows[:, None] < end) & (offs_n[None, :] < out_features)
        acc += tl.load(dy + rows[:, None].to(tl.int64) * dy_stride + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(out + tl.program_id(1) * out_features + offs_n, tl.sum(acc, axis=0), mask=offs_n < out_features)


def workspace(out_features: int, in_features: int, config: WeightGradConfig, device: torch.device) -> torch.Tensor | None:
    """The float32 parts that `launch_weight_grad` needs, or None where the tokens are not split."""
    if config.parts == 1:
        return None
    return torch.empty((config.parts, out_features, in_features), dtype=torch.float32, device=device)


def launch_weight_grad(
    dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, dw: torch.Tensor, parts: torch.Tensor | None, config: WeightGradConfig
) -> None:
    """Write dw [N, K] from dy [T, N] (bf16 or fp16), x_q int8 [T, K] and x_scale float32 [T]; `parts` is `workspace(…)`.

    Launches on the current stream without synchronizing. Raises ShapeError for shapes, types or strides that do not fit.
    """
    tokens, in_features = x_q.shape
    out_features = dw.shape[0]
    check_gradient(dy, out_features)
    check_activation(dy, x_q, x_scale)
    if dw.shape[1] != in_features or dw.stride(-1) != 1:
        raise ShapeError(f"dw {tuple(dw.shape)}: expected contiguous rows of {in_features}")
    if (config.parts, out_features, in_features) != ((1, *dw.shape) if parts is None else tuple(parts.shape)):
        raise ShapeError(f"{config.parts} parts of dw {tuple(dw.shape)} need the workspace that `workspace` gives")
    if not dw.numel():
        return
    out = dw if parts is None else parts
    part_tokens = triton.cdiv(triton.cdiv(tokens, config.parts), config.block_tokens) * config.block_tokens
    tiles = triton.cdiv(out_features, config.block_out) * triton.cdiv(in_features, config.block_in)
    weight_grad_kernel[(tiles, config.parts)](
        dy, x_q, x_scale, out, tokens, out_features, in_features, part_tokens, dy.stride(0), x_q.stride(0), out.stride(-2),
        BLOCK_N=config.block_out, BLOCK_K=config.block_in, BLOCK_T=config.block_tokens, GROUP=config.group,
        WIDEN=triton.knobs.runtime.interpret, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    if parts is not None:
        add_parts_kernel[(out_features, triton.cdiv(in_features, 1024))](
            parts, dw, out_features, in_features, dw.stride(0), PARTS=config.parts, BLOCK=1024, num_warps=4
        )


def launch_bias_grad(dy: torch.Tensor, out: torch.Tensor) -> None:
    """Write the sum of dy [T, N] over the tokens into out [N]: float32 sums of up to 32 parts, added in order. T = 0 gives zeros."""
    check_gradient(dy, out.shape[0])
    tokens, out_features = dy.shape
    if not out_features:
        return
    count = max(1, min(32, tokens // FEWEST_TOKENS))
    part_tokens = -(-tokens // count)
    parts = torch.empty((count, out_features), dtype=torch.float32, device=dy.device)
    bias_grad_kernel[(triton.cdiv(out_features, 64), count)](
        dy, parts, tokens, out_features, part_tokens, dy.stride(0), BLOCK_T=64, BLOCK_N=64, num_warps=4
    )
    add_parts_kernel[(1, triton.cdiv(out_features, 1024))](parts, out, 1, out_features, out_features, PARTS=count, BLOCK=1024, num_warps=4)


def check_activation(dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor) -> None:
    """Raises ShapeError unless x_q is int8 [T, K] with contiguous rows and x_scale float32 [T] for dy [T, N]."""
    if x_q.dtype != torch.int8 or x_q.stride(-1) != 1 or x_q.shape[0] != dy.shape[0]:
        raise ShapeError(f"x_q {x_q.dtype} {tuple(x_q.shape)}, strides {x_q.stride()}: expected int8 rows for {dy.shape[0]} tokens")
    if x_scale.dtype != torch.float32 or x_scale.shape != (dy.shape[0],) or not x_scale.is_contiguous():
        raise ShapeError(f"x_scale {x_scale.dtype} {tuple(x_scale.shape)}: expected float32 [{dy.shape[0]}]")


def prepare_convert_dot(problem: Problem, inputs: Inputs, config: WeightGradConfig) -> Prepared:
    """Bind the fused kernel to the saved activations."""
    data = train_inputs(inputs)
    dw = torch.empty((problem.out_features, problem.in_features), dtype=DTYPES[problem.dtype], device=data.dy.device)
    parts = workspace(problem.out_features, problem.in_features, config, data.dy.device)
    check_gradient(data.dy, problem.out_features)
    check_activation(data.dy, data.x_q, data.x_scale)

    def run() -> Outputs:
        launch_weight_grad(data.dy, data.x_q, data.x_scale, dw, parts, config)
        return {"dw": dw}

    buffers = {"dw": dw} if parts is None else {"dw": dw, "parts": parts}
    footprint = data.dy.nbytes + data.x_q.nbytes + data.x_scale.nbytes + sum(buffer.nbytes for buffer in buffers.values())
    return Prepared(run, buffers, footprint, notes={"rounded": f"x_q · x_scale to {problem.dtype}, dw", "parts": config.parts})


def prepare_dequantize_cublas(problem: Problem, inputs: Inputs, config: object) -> Prepared:
    """Bind a pass that writes X̂ to a workspace + torch.matmul; both are inside of `run`."""
    data = train_inputs(inputs)
    dw = torch.empty((problem.out_features, problem.in_features), dtype=DTYPES[problem.dtype], device=data.dy.device)
    x = torch.empty((problem.tokens, problem.in_features), dtype=data.dy.dtype, device=data.dy.device)
    check_gradient(data.dy, problem.out_features)
    check_activation(data.dy, data.x_q, data.x_scale)

    def run() -> Outputs:
        launch_dequantize(data.x_q, data.x_scale, x)
        torch.matmul(data.dy.t(), x, out=dw)
        return {"dw": dw}

    footprint = data.dy.nbytes + data.x_q.nbytes + data.x_scale.nbytes + dw.nbytes + x.nbytes
    notes: dict[str, Note] = {"rounded": f"x_q · x_scale to {problem.dtype}, dw", "workspace_bytes": x.nbytes}
    return Prepared(run, {"dw": dw, "workspace": x}, footprint, notes=notes)


# (block_out, block_in, block_tokens, warps): compiled without spills (see docs/).
_WARPGROUP = ((128, 128, 64, 8), (128, 256, 64, 8), (256, 128, 64, 8), (128, 128, 64, 4))
_WARP = ((128, 128, 32, 8), (128, 256, 32, 8), (64, 128, 32, 4))


def tiles_for(gpu: Gpu) -> tuple[tuple[int, int, int, int], ...]:
    """The tiles worth trying, best guess first."""
    return _WARPGROUP if warpgroup_mma(gpu) else _WARP


def default_config(problem: Problem, gpu: Gpu) -> WeightGradConfig:
    """The first of `tiles_for`; the tokens are split until there are about as many tiles as multiprocessors."""
    tile = tiles_for(gpu)[0]
    parts = 1
    while parts < 8 and 2 * parts * _tiles(problem, *tile[:2]) <= 2 * gpu.sms and problem.tokens >= 2 * parts * FEWEST_TOKENS:
        parts *= 2
    return WeightGradConfig(*tile[:3], parts, tile[3], stages=3)


def _tiles(problem: Problem, block_out: int, block_in: int) -> int:
    return -(-problem.out_features // block_out) * -(-problem.in_features // block_in)


def reject(problem: Problem, gpu: Gpu, config: WeightGradConfig) -> str | None:
    """A tile that is not worth trying, shared memory for the pipelined tiles and the widened one, or parts that do not pay."""
    tile = (config.block_out, config.block_in, config.block_tokens, config.warps)
    if tile not in tiles_for(gpu):
        return f"tile {tile} is not one worth trying on {gpu.architecture}"
    widened = config.block_in * config.block_tokens
    shared = config.stages * (config.block_out * config.block_tokens * 2 + widened) + 2 * widened
    if shared > gpu.shared_bytes:
        return f"{shared} bytes of shared memory, {gpu.shared_bytes} there are"
    tiles = _tiles(problem, config.block_out, config.block_in)
    if config.parts > 1 and (problem.tokens < FEWEST_TOKENS * config.parts or tiles * config.parts > 2 * gpu.sms):
        return f"{tiles} tiles and {problem.tokens} tokens do not call for {config.parts} parts"
    if config.stages > 3 and tiles <= gpu.sms:
        return "a fourth stage is tried where the tiles fill the GPU"
    return None


def compile_units(problem: Problem, config: WeightGradConfig) -> Sequence[CompileUnit]:
    """The main kernel as the problem and the config make it."""
    kind = "*bf16" if problem.dtype == "bf16" else "*fp16"
    signature = {"dy": kind, "x_q": "*i8", "x_scale": "*fp32", "dw": kind if config.parts == 1 else "*fp32", "tokens": "i32",
                 "out_features": "i32", "in_features": "i32", "part_tokens": "i32", "dy_stride": "i32", "x_stride": "i32",
                 "dw_stride": "i32"}  # fmt: skip
    constexprs = {"BLOCK_N": config.block_out, "BLOCK_K": config.block_in, "BLOCK_T": config.block_tokens, "GROUP": config.group,
                  "WIDEN": False}  # fmt: skip
    divisible = ["dy", "x_q", "x_scale", "dw", "x_stride", "part_tokens"]
    divisible += ["in_features", "dw_stride"] if problem.in_features % 16 == 0 else []
    divisible += ["out_features", "dy_stride"] if problem.out_features % 16 == 0 else []
    options = {"num_warps": config.warps, "num_stages": config.stages}
    expects = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
    signature |= dict.fromkeys(constexprs, "constexpr")
    return (CompileUnit(weight_grad_kernel, signature, constexprs, tuple(divisible), options, expects),)


SPACE = ConfigSpace(
    WeightGradConfig,
    {"block_out": (64, 128, 256), "block_in": (128, 256), "block_tokens": (32, 64), "parts": (1, 2, 4, 8), "warps": (4, 8),
     "stages": (3, 4)},
    reject,
)

KERNELS: tuple[Kernel, ...] = (
    Kernel("convert-dot", "weight-grad", "variant", prepare_convert_dot, default_config, SPACE, unavailable, judged="gradient",
           compile_units=compile_units),
    Kernel("dequantize-cublas", "weight-grad", "variant", prepare_dequantize_cublas, unavailable=unavailable, judged="gradient"),
)  # fmt: skip
