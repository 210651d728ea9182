"""dX[T, K] = dY[T, N] · (Wt · w_scale) with the weight read from its packed 2-bit codes: no bf16 weight in device memory.

A program makes `block_tokens` rows by 4·`block_bytes` columns of dX: the four 2-bit fields of a byte are four columns, 64 apart. A code
in the top bits of a 16-bit word is exactly 0, +2 or -2, in bf16 and in fp16 alike; the 2 is taken out of the scale. The weight scale
belongs to rows of W, the reduced dimension: the sum runs split by split, rescaled in float32 at each boundary by the ratio of the two
scales, so dY and the ternary values enter the tensor cores unrounded; what is rounded is float32 sums and the output, once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.errors import ShapeError
from kernels.gpu import Gpu
from kernels.inputs import DTYPES, Inputs, TrainInputs
from kernels.kernel import CompileUnit, Kernel, Note, Outputs, Prepared
from kernels.launch import launch
from kernels.packed import FIELD, PackedTernary, pack
from kernels.problem import Problem
from kernels.space import ConfigSpace


@dataclass(frozen=True)
class InputGradConfig:
    """block_tokens × 4·block_bytes output tile, block_rows rows of W per step; group: token tiles that share a column of weights."""

    block_tokens: int
    block_bytes: int
    block_rows: int
    warps: int
    stages: int
    group: int = 8


@triton.jit
def input_grad_kernel(
    dy, packed, w_scale, split_ends, dx, tokens, in_features, dy_stride, packed_stride, dx_stride,
    SPLITS: tl.constexpr, ALIGN: tl.constexpr, EVEN: tl.constexpr, BLOCK_T: tl.constexpr, BYTES: tl.constexpr, BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_T, 4·BYTES] tile of dx; split_ends: the row after each split, multiples of ALIGN.

    WIDEN multiplies in float32: the interpreter's dot takes bf16 for integers.
    """
    tiles_t = tl.cdiv(tokens, BLOCK_T)
    tiles_c = packed_stride // BYTES
    pid = tl.program_id(0)
    first = pid // (GROUP * tiles_c) * GROUP
    size = tl.minimum(tiles_t - first, GROUP)
    tile_t = first + pid % (GROUP * tiles_c) % size
    tile_c = pid % (GROUP * tiles_c) // size

    offs_t = tile_t * BLOCK_T + tl.arange(0, BLOCK_T)
    rows = tl.minimum(offs_t, tokens - 1).to(tl.int64)
    offs_n = tl.arange(0, BLOCK_N)
    dy_rows = dy + rows[:, None] * dy_stride
    bytes_ = packed + tile_c * BYTES + tl.arange(0, BYTES)[None, :]

    acc = tl.zeros((BLOCK_T, 4 * BYTES), dtype=tl.float32)
    scale = tl.load(w_scale)
    start = 0
    # Unrolled: where an outer loop carries `start`, Triton 3.6.0's pipeliner lets every inner loop begin at its first value.
    for split in tl.static_range(SPLITS):
        end = tl.load(split_ends + split) // ALIGN * ALIGN
        next_scale = tl.load(w_scale + split)
        acc *= scale / next_scale
        scale = next_scale
        for n in tl.range(start, end, BLOCK_N):
            row = n + offs_n
            if EVEN:
                grad = tl.load(dy_rows + row[None, :])
                codes = tl.load(bytes_ + row[:, None].to(tl.int64) * packed_stride)
            else:
                grad = tl.load(dy_rows + row[None, :], mask=row[None, :] < end, other=0.0)
                codes = tl.load(bytes_ + row[:, None].to(tl.int64) * packed_stride, mask=row[:, None] < end, other=0)
            wide = codes.to(tl.uint16)
            even = tl.join((wide << 14) & 0xC000, (wide << 10) & 0xC000)
            odd = tl.join((wide << 12) & 0xC000, (wide << 8) & 0xC000)
            weight = tl.join(even, odd).permute(0, 2, 3, 1).reshape(BLOCK_N, 4 * BYTES).to(grad.dtype, bitcast=True)
            if WIDEN:
                grad, weight = grad.to(tl.float32), weight.to(tl.float32)
            acc = tl.dot(grad, weight, acc)
        start = end

    column = tl.arange(0, 4 * BYTES)
    per_block: tl.constexpr = 64 // BYTES
    offs_k = tile_c // per_block * 256 + column // BYTES * 64 + tile_c % per_block * BYTES + column % BYTES
    out = dx + offs_t[:, None].to(tl.int64) * dx_stride + offs_k[None, :]
    tl.store(out, (acc * (scale * 0.5)).to(dx.dtype.element_ty), mask=(offs_t[:, None] < tokens) & (offs_k[None, :] < in_features))


@triton.jit
def unpack_kernel(packed, w_scale, split_ends, out, out_features, in_features, packed_stride, out_stride,
                  SPLITS: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """out[n, k] = Wt · w_scale in out's type (rounded once), ROWS rows of one block of 256 columns per program."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(1)
    byte = tl.arange(0, 64)
    inside = rows[:, None] < out_features
    wide_rows = rows[:, None].to(tl.int64)
    codes = tl.load(packed + wide_rows * packed_stride + block * 64 + byte[None, :], mask=inside, other=0).to(tl.uint8)
    scale = tl.load(w_scale + tl.zeros((ROWS,), tl.int32))
    for split in range(1, SPLITS):
        scale = tl.where(rows >= tl.load(split_ends + split - 1), tl.load(w_scale + split), scale)
    scale = scale * 0.015625
    for plane in tl.static_range(4):
        value = ((codes << (6 - 2 * plane)) & 0xC0).to(tl.int8, bitcast=True).to(tl.float32) * scale[:, None]
        offs_k = block * 256 + plane * 64 + byte
        mask = inside & (offs_k[None, :] < in_features)
        tl.store(out + wide_rows * out_stride + offs_k[None, :], value.to(out.dtype.element_ty), mask=mask)


def launch_input_grad(dy: torch.Tensor, packed: PackedTernary, dx: torch.Tensor, config: InputGradConfig) -> None:
    """Write dx [T, K] from dy [T, N] (bf16 or fp16, rows contiguous) and a packed weight.

    Launches on the current stream without synchronizing. Raises ShapeError for shapes, types or strides that do not fit.
    """
    check_gradient(dy, packed.data.shape[0])
    if dx.shape != (dy.shape[0], packed.in_features) or dx.stride(-1) != 1:
        raise ShapeError(f"dx {tuple(dx.shape)}: expected contiguous rows of {(dy.shape[0], packed.in_features)}")
    if not dx.numel():
        return
    tiles = packed.data.shape[1] // config.block_bytes
    input_grad_kernel[(triton.cdiv(dy.shape[0], config.block_tokens) * tiles,)](
        dy, packed.data, packed.w_scale, packed.split_ends, dx, dy.shape[0], packed.in_features,
        dy.stride(0), packed.data.stride(0), dx.stride(0),
        **_constexprs(packed.splits, config), WIDEN=triton.knobs.runtime.interpret, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip


def launch_unpack(packed: PackedTernary, out: torch.Tensor) -> None:
    """Write Wt · w_scale into out [N, K] (bf16 or fp16): each value is w_scale of its split, rounded to out's type, signed, or 0."""
    rows = 16
    if out.shape != (packed.data.shape[0], packed.in_features) or out.stride(-1) != 1:
        raise ShapeError(f"out {tuple(out.shape)}: expected contiguous rows of {(packed.data.shape[0], packed.in_features)}")
    if not out.numel():
        return
    stride = packed.data.stride(0)
    launch(
        unpack_kernel, (-(-out.shape[0] // rows), packed.data.shape[1] // FIELD), (packed.data, packed.w_scale, packed.split_ends, out),
        (out.shape[0], packed.in_features, stride, out.stride(0)), SPLITS=len(packed.splits), ROWS=rows, num_warps=4,
    )


def check_gradient(dy: torch.Tensor, out_features: int) -> None:
    """Raises ShapeError unless dy is [T, out_features] in bf16 or fp16 with contiguous rows, on a device that runs the kernels."""
    if dy.ndim != 2 or dy.shape[1] != out_features:
        raise ShapeError(f"dy {tuple(dy.shape)}: expected [tokens, {out_features}]")
    if dy.dtype not in (torch.bfloat16, torch.float16):
        raise ShapeError(f"dy is {dy.dtype}; allowed: bf16, fp16")
    if dy.stride(-1) != 1:
        raise ShapeError(f"dy has strides {dy.stride()}: its rows must be contiguous")
    if not dy.is_cuda and not triton.knobs.runtime.interpret:
        raise ShapeError(f"dy is on {dy.device}; a CUDA device is needed outside of the interpreter")


def _constexprs(splits: Sequence[int], config: InputGradConfig) -> dict[str, int]:
    """What the kernel is specialized for; ALIGN, the largest power of two up to 64 that divides every split, keeps loads wide."""
    even = all(rows % config.block_rows == 0 for rows in splits)
    return {"SPLITS": len(splits), "ALIGN": math.gcd(64, *splits), "EVEN": even, "BLOCK_T": config.block_tokens,
            "BYTES": config.block_bytes, "BLOCK_N": config.block_rows, "GROUP": config.group}  # fmt: skip


def train_inputs(inputs: Inputs) -> TrainInputs:
    """The inputs as those of a training op; ShapeError for any other kind."""
    if not isinstance(inputs, TrainInputs):
        raise ShapeError(f"a training op needs TrainInputs, got {type(inputs).__name__}")
    return inputs


def _packed(problem: Problem, data: TrainInputs) -> tuple[PackedTernary, torch.Tensor]:
    packed = pack(data.w_ternary, data.w_scale, problem.splits, problem.sparsity)
    packed.split_ends  # noqa: B018 (made here, outside of any graph capture)
    return packed, torch.empty((problem.tokens, problem.in_features), dtype=DTYPES[problem.dtype], device=data.dy.device)


def prepare_unpack_dot(problem: Problem, inputs: Inputs, config: InputGradConfig) -> Prepared:
    """Bind the fused kernel; packing the weight is outside of `run`."""
    data = train_inputs(inputs)
    packed, dx = _packed(problem, data)
    check_gradient(data.dy, problem.out_features)

    def run() -> Outputs:
        launch_input_grad(data.dy, packed, dx, config)
        return {"dx": dx}

    touched = data.dy.nbytes + packed.weight_bytes + dx.nbytes
    return Prepared(run, {"dx": dx}, touched, packed.weight_bytes, {"rounded": "dx alone"})


def prepare_unpack_cublas(problem: Problem, inputs: Inputs, config: object) -> Prepared:
    """Bind unpack to a workspace + torch.matmul; both are inside of `run`."""
    data = train_inputs(inputs)
    packed, dx = _packed(problem, data)
    check_gradient(data.dy, problem.out_features)
    weight = torch.empty((problem.out_features, problem.in_features), dtype=dx.dtype, device=dx.device)

    def run() -> Outputs:
        launch_unpack(packed, weight)
        torch.matmul(data.dy, weight, out=dx)
        return {"dx": dx}

    touched = data.dy.nbytes + packed.weight_bytes + weight.nbytes + dx.nbytes
    notes: dict[str, Note] = {"rounded": f"w_scale to {problem.dtype}, dx", "workspace_bytes": weight.nbytes}
    return Prepared(run, {"dx": dx, "workspace": weight}, touched, packed.weight_bytes, notes)


# (block_tokens, block_bytes, block_rows, warps): compiled without spills (see docs/); mma.sync keeps both operands in registers too.
_WARPGROUP = ((128, 32, 64, 4), (128, 32, 64, 8), (256, 32, 64, 8), (128, 64, 64, 8), (128, 32, 32, 8), (64, 32, 64, 4), (64, 64, 64, 4))
_WARP = ((128, 32, 32, 8), (128, 64, 32, 8), (64, 64, 32, 8), (64, 32, 32, 4), (128, 32, 64, 8))
_FEW_TOKENS = ((32, 32, 32, 4), (32, 64, 32, 4))


def warpgroup_mma(gpu: Gpu) -> bool:
    """Whether the tensor cores read operands from shared memory (wgmma, tcgen05), else from registers (mma.sync)."""
    return 90 <= gpu.capability < 120


def tiles_for(tokens: int, gpu: Gpu) -> tuple[tuple[int, int, int, int], ...]:
    """The tiles worth trying, best guess first."""
    if tokens <= 32:
        return _FEW_TOKENS
    tiles = _WARPGROUP if warpgroup_mma(gpu) else _WARP
    return tuple(tile for tile in tiles if tile[0] <= max(64, tokens))


def default_config(problem: Problem, gpu: Gpu) -> InputGradConfig:
    """The first of `tiles_for`, three stages."""
    return InputGradConfig(*tiles_for(problem.tokens, gpu)[0], stages=3)


def reject(problem: Problem, gpu: Gpu, config: InputGradConfig) -> str | None:
    """A tile that is not worth trying, or shared memory for the pipelined tiles and the unpacked one."""
    tile = (config.block_tokens, config.block_bytes, config.block_rows, config.warps)
    if tile not in tiles_for(problem.tokens, gpu):
        return f"tile {tile} is not one worth trying for {problem.tokens} tokens on {gpu.architecture}"
    codes = config.block_bytes * config.block_rows
    shared = config.stages * (config.block_tokens * config.block_rows * 2 + codes) + 8 * codes
    return None if shared <= gpu.shared_bytes else f"{shared} bytes of shared memory, {gpu.shared_bytes} there are"


def unavailable(problem: Problem, gpu: Gpu) -> str | None:
    """Tensor cores with bf16 from sm_80 on; gradients in bf16 or fp16."""
    if problem.dtype not in ("bf16", "fp16"):
        return f"gradients are bf16 or fp16, not {problem.dtype}"
    return None if gpu.capability >= 80 else f"needs sm_80 or newer, this is {gpu.architecture}"


def compile_units(problem: Problem, config: InputGradConfig) -> Sequence[CompileUnit]:
    """The fused kernel as the problem and the config make it."""
    kind = "*bf16" if problem.dtype == "bf16" else "*fp16"
    signature = {"dy": kind, "packed": "*u8", "w_scale": "*fp32", "split_ends": "*i32", "dx": kind, "tokens": "i32", "in_features": "i32",
                 "dy_stride": "i32", "packed_stride": "i32", "dx_stride": "i32"}  # fmt: skip
    constexprs = {**_constexprs(problem.splits, config), "WIDEN": False}
    divisible = ["dy", "packed", "w_scale", "split_ends", "dx", "packed_stride"]
    divisible += ["in_features", "dx_stride"] if problem.in_features % 16 == 0 else []
    divisible += ["dy_stride"] if problem.out_features % 16 == 0 else []
    options = {"num_warps": config.warps, "num_stages": config.stages}
    expects = {80: "HMMA"} if config.block_tokens < 64 else {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
    signature |= dict.fromkeys(constexprs, "constexpr")
    return (CompileUnit(input_grad_kernel, signature, constexprs, tuple(divisible), options, expects),)


SPACE = ConfigSpace(
    InputGradConfig,
    {"block_tokens": (32, 64, 128, 256), "block_bytes": (32, 64), "block_rows": (32, 64), "warps": (4, 8), "stages": (3, 4)},
    reject,
)

KERNELS: tuple[Kernel, ...] = (
    Kernel("unpack-dot", "input-grad", "variant", prepare_unpack_dot, default_config, SPACE, unavailable, judged="gradient",
           compile_units=compile_units),
    Kernel("unpack-cublas", "input-grad", "variant", prepare_unpack_cublas, unavailable=unavailable, judged="gradient"),
)  # fmt: skip
