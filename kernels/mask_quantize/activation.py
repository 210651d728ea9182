"""Per-token absmax int8 activations, plain or lifted for (L−2):L weights on 2:4 hardware, in one pass over device memory.

Floor: the activation read once, the int8 rows (lifted: 1.5 of them for 6:8) written once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.errors import ShapeError
from kernels.gpu import Gpu
from kernels.inputs import DTYPES, ROW_ALIGNMENT, ActivationInputs, Inputs
from kernels.kernel import CompileUnit, Kernel, Outputs, Prepared
from kernels.problem import Problem
from kernels.space import Config, ConfigSpace
from reference.lifting import lifted_width

_POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class ActivationConfig:
    """rows of a program; block: columns held at once (a power of two from 128; rows that are longer are read twice); warps."""

    rows: int
    block: int
    warps: int


@triton.jit
def _magnitude(x):
    """Float bits without the sign: they order like |x|, with infinities and NaN above everything."""
    return x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _quantized(x, inverse):
    """rint(x · inverse), half to even, in the low byte. Needs multiplication and addition kept apart (no FMA fusion)."""
    return (x.to(tl.float32) * inverse + 12582912.0).to(tl.int32, bitcast=True)


@triton.jit
def _store(q_ptr, code, row_offset, row_valid, start, in_features, MIDDLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Codes [ROWS, BLOCK] to the columns from start; MIDDLE: also columns 8g + 2 … 8g + 5 as one word each behind the natural columns."""
    column = start + tl.arange(0, BLOCK)[None, :]
    tl.store(q_ptr + row_offset + column, code.to(tl.int8), mask=row_valid & (column < in_features))
    if MIDDLE:
        place = tl.arange(0, 8)[None, None, :]
        inside = (place >= 2) & (place < 6)
        byte = tl.reshape(code & 0xFF, [ROWS, BLOCK // 8, 8]) << tl.where(inside, (place - 2) * 8, 0)
        word = tl.sum(tl.where(inside, byte, 0), axis=2)
        group = start // 8 + tl.arange(0, BLOCK // 8)[None, :]
        target = q_ptr.to(tl.pointer_type(tl.int32)) + (row_offset // 4 + in_features // 4) + group
        tl.store(target, word, mask=row_valid & (group < in_features // 8))


@triton.jit
def _lifted_column(position, in_features, LIFT: tl.constexpr):
    """The column that a lifted position repeats: even windows, then odd ones where 4 divides LIFT, else each group's in order."""
    if LIFT % 4 == 0:
        behind = position - in_features
        odd: tl.constexpr = LIFT // 4 - 1
        repeated = behind // (4 * odd) * LIFT + behind % (4 * odd) // 4 * 4 + 2 + behind % 4
        return tl.where(behind < 0, position, repeated)
    windows: tl.constexpr = LIFT // 2 - 1
    return position // (4 * windows) * LIFT + position % (4 * windows) // 4 * 2 + position % 4


@triton.jit
def activation_kernel(
    x_ptr, q_ptr, scale_ptr, tokens, in_features, width, x_stride, q_stride,
    LIFT: tl.constexpr, ONE_BLOCK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    """ROWS tokens: their absmax, then their codes. ONE_BLOCK: the row stays in registers, else it is read again from the cache.

    LIFT: 0, or the group; 8 is written from registers, other groups read the row again through the column they repeat.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_valid = (row < tokens)[:, None]
    x_row = x_ptr + row.to(tl.int64)[:, None] * x_stride
    q_row = row.to(tl.int64)[:, None] * q_stride
    lane = tl.arange(0, BLOCK)[None, :]
    if ONE_BLOCK:
        valid = row_valid & (lane < in_features)
        x = tl.load(x_row + lane, mask=valid, other=0.0)
        top = tl.max(_magnitude(x), axis=1)
    else:
        tops = tl.zeros([ROWS, BLOCK], tl.int32)
        for start in range(0, in_features, BLOCK):
            piece = tl.load(x_row + (start + lane), mask=row_valid & (start + lane < in_features), other=0.0)
            tops = tl.maximum(tops, _magnitude(piece))
        top = tl.max(tops, axis=1)
    finite = top < 0x7F800000
    absmax = tl.maximum(tl.where(finite, top, 0).to(tl.float32, bitcast=True), 1e-5)
    inverse = tl.div_rn(tl.full([ROWS], 127.0, tl.float32), absmax)[:, None]
    x_scale = tl.div_rn(absmax, tl.full([ROWS], 127.0, tl.float32))
    tl.store(scale_ptr + row, tl.where(finite, x_scale, float("nan")), mask=row < tokens)
    if LIFT != 0 and LIFT != 8:
        for start in range(0, width, BLOCK):
            position = start + lane
            inside = row_valid & (position < width)
            piece = tl.load(x_row + _lifted_column(position, in_features, LIFT), mask=inside, other=0.0)
            tl.store(q_ptr + q_row + position, _quantized(piece, inverse).to(tl.int8), mask=inside)
    elif ONE_BLOCK:
        _store(q_ptr, _quantized(x, inverse), q_row, row_valid, 0, in_features, LIFT == 8, ROWS, BLOCK)
    else:
        for start in range(0, in_features, BLOCK):
            column = start + lane
            inside = row_valid & (column < in_features)
            piece = tl.load(x_row + column, mask=inside, other=0.0)
            _store(q_ptr, _quantized(piece, inverse), q_row, row_valid, start, in_features, LIFT == 8, ROWS, BLOCK)


def activation_config(in_features: int, tokens: int | None = None) -> ActivationConfig:
    """A heuristic config: rows up to 16,384 columns in registers, about 32 values per thread, one row a program for few tokens."""
    block = max(128, min(16384, triton.next_power_of_2(in_features)))
    if in_features > block:
        block = 8192
    rows = 1 if tokens is not None and tokens < 1024 else max(1, 4096 // block)
    return ActivationConfig(rows, block, max(1, min(16, rows * block // 1024)))


def quantized_width(in_features: int, m: int | None) -> int:
    """Columns of the quantized rows: in_features, or the lifted width for groups of m. Raises ShapeError where m does not divide."""
    if m is None:
        return in_features
    if m < 6 or m % 2 or in_features % m:
        raise ShapeError(f"in_features {in_features} cannot be lifted by groups of {m}: an even m from 6 that divides it is needed")
    return lifted_width(in_features, m)


def allocate_activation(tokens: int, in_features: int, m: int | None, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """x_q int8 [tokens, width], its rows padded to 128 columns with zeros (the kernel leaves them), and x_scale float32 [tokens]."""
    width = quantized_width(in_features, m)
    padded = -(-width // ROW_ALIGNMENT) * ROW_ALIGNMENT
    allocate = torch.empty if padded == width else torch.zeros
    return allocate((tokens, padded), dtype=torch.int8, device=device)[:, :width], torch.empty(tokens, dtype=torch.float32, device=device)


def launch_activation(x: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, m: int | None, config: ActivationConfig) -> None:
    """Quantize x into the given buffers on the current stream: one launch (none for no tokens), no allocation, no synchronization.

    x: [T, K] bf16, fp16 or fp32, unit column stride, any row stride. x_q: int8 [T, quantized_width(K, m)], row stride a multiple of 128.
    x_scale: float32 [T]. m: group of the lifting, or None. A token with a NaN or an infinity gets the scale NaN and undefined codes.
    Raises ShapeError for what does not fit.
    """
    width = _check(x, m)
    tokens, in_features = x.shape
    padded = not tokens or (x_q.stride(1) == 1 and x_q.stride(0) % ROW_ALIGNMENT == 0)
    if x_q.dtype != torch.int8 or tuple(x_q.shape) != (tokens, width) or not padded:
        raise ShapeError(f"x_q is {x_q.dtype} {list(x_q.shape)} stride {x_q.stride()}; int8 {[tokens, width]} with rows padded to "
                         f"{ROW_ALIGNMENT} columns is needed")
    if x_scale.dtype != torch.float32 or tuple(x_scale.shape) != (tokens,) or not x_scale.is_contiguous():
        raise ShapeError(f"x_scale is {x_scale.dtype} {list(x_scale.shape)}; contiguous float32 {[tokens]} is needed")
    if not tokens:
        return
    activation_kernel[(triton.cdiv(tokens, config.rows),)](
        x, x_q, x_scale, tokens, in_features, width, x.stride(0), x_q.stride(0), LIFT=m or 0, ONE_BLOCK=in_features <= config.block,
        ROWS=config.rows, BLOCK=config.block, num_warps=config.warps, enable_fp_fusion=False,
    )


def quantize_activation(
    x: torch.Tensor, m: int | None = None, config: ActivationConfig | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_q int8 [T, quantized_width(K, m)], rows padded to 128 columns, and x_scale float32 [T] of x [T, K] with any strides.

    m: group of the lifting, or None. Allocates; see `launch_activation` for types and errors.
    """
    rows = x if x.dim() != 2 or x.shape[1] == 1 or x.stride(1) == 1 else x.contiguous()
    _check(rows, m)
    x_q, x_scale = allocate_activation(rows.shape[0], rows.shape[1], m, rows.device)
    launch_activation(rows, x_q, x_scale, m, config or activation_config(rows.shape[1], rows.shape[0]))
    return x_q, x_scale


def _check(x: torch.Tensor, m: int | None) -> int:
    """The width of the quantized rows; ShapeError for an x that cannot be launched."""
    if x.dim() != 2 or x.dtype not in _POINTERS or x.shape[1] < 1:
        raise ShapeError(f"x is {x.dtype} {list(x.shape)}; bf16, fp16 or fp32 [tokens, in_features] is needed")
    if x.shape[1] > 1 and x.stride(1) != 1:
        raise ShapeError(f"x has column stride {x.stride(1)}; its rows must be contiguous")
    width = quantized_width(x.shape[1], m)
    if x.device.type == "cpu" and isinstance(activation_kernel, triton.JITFunction):
        raise ShapeError("x is on the CPU; this kernel runs on a GPU (or in Triton's interpreter)")
    return width


def _group(problem: Problem) -> int | None:
    return problem.sparsity.m if problem.sparsity.lifted else None


def _prepare(problem: Problem, inputs: Inputs, config: Config) -> Prepared:
    if not isinstance(inputs, ActivationInputs):
        raise ShapeError(f"activation quantizes activations, not {type(inputs).__name__}")
    x, m = inputs.x, _group(problem)
    _check(x, m)
    x_q, x_scale = allocate_activation(x.shape[0], x.shape[1], m, x.device)
    outputs = {"x_q": x_q, "x_scale": x_scale}

    def run() -> Outputs:
        launch_activation(x, x_q, x_scale, m, config)
        return outputs

    return Prepared(run, outputs, x.numel() * x.element_size() + x_q.numel() + 4 * x_scale.numel())


def _default(problem: Problem, gpu: Gpu) -> ActivationConfig:
    return activation_config(problem.in_features, problem.tokens)


def _reject(problem: Problem, gpu: Gpu, config: Config) -> str | None:
    values = config.rows * config.block // (config.warps * 32)
    if not 8 <= values <= 64:
        return f"{values} values per thread: 8 to 64 fill the loads without spilling"
    if config.block >= 2 * max(128, problem.in_features):
        return f"block {config.block} is more than twice in_features {problem.in_features}"
    return None


def compile_units(problem: Problem, config: Config) -> tuple[CompileUnit, ...]:
    """The kernel as it is compiled for contiguous activations of the problem's dtype."""
    constants: dict[str, Any] = {"LIFT": _group(problem) or 0, "ONE_BLOCK": problem.in_features <= config.block, "ROWS": config.rows,
                                 "BLOCK": config.block}
    arguments = {"x_ptr": _POINTERS[DTYPES[problem.dtype]], "q_ptr": "*i8", "scale_ptr": "*fp32", "tokens": "i32", "in_features": "i32",
                 "width": "i32", "x_stride": "i32", "q_stride": "i32"}
    signature = {name: arguments.get(name, "constexpr") for name in activation_kernel.arg_names}
    aligned = ("in_features", "x_stride") if problem.in_features % 16 == 0 else ()
    options = {"num_warps": config.warps, "enable_fp_fusion": False}
    return (CompileUnit(activation_kernel, signature, constants, ("x_ptr", "q_ptr", "scale_ptr", "q_stride", *aligned), options),)


KERNELS = (
    Kernel(
        name="activation", op="activation", kind="variant", prepare=_prepare, default_config=_default, compile_units=compile_units,
        space=ConfigSpace(
            ActivationConfig,
            {"rows": (1, 2, 4, 8), "block": (1024, 2048, 4096, 8192, 16384), "warps": (2, 4, 8, 16)}, _reject,
        ),
    ),
)
