"""Per-token absmax int8 activations, plain or lifted for (L−2):L weights on 2:4 hardware, in one pass over device memory.

Floor: the activation read once, the int8 rows (lifted: 1.5 of them for 6:8) written once.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton

from kernels.errors import ShapeError
from kernels.gpu import Gpu
from kernels.inputs import DTYPES, ROW_ALIGNMENT, ActivationInputs, Inputs
from kernels.kernel import CompileUnit, Kernel, Outputs, Prepared
from kernels.launch import MOST_LAUNCHES, Launch
from kernels.mask_quantize.activation_kernels import activation_kernel, activation_words_kernel
from kernels.problem import Problem
from kernels.space import Config, ConfigSpace
from reference.lifting import lifted_width

MOST_VALUES = 96
"""Values of a row that a thread holds, two a register."""
LARGEST_BLOCK = 4096

_POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class ActivationConfig:
    """rows of a program; block: columns taken at once (a power of two from 128); warps.

    bf16 rows of several blocks stay in registers where these hold them (`MOST_VALUES` a thread); others that are longer are read twice.
    """

    rows: int
    block: int
    warps: int


@functools.lru_cache(maxsize=4096)
def activation_config(in_features: int, tokens: int | None = None, words: bool = True) -> ActivationConfig:
    """A heuristic config. words: bf16 rows, plain or lifted by 8, which are held in as many blocks as leave the fewest lanes idle.

    Blocks of at least 1,024 from 2,048 columns on, 16 values of a row of one block a thread and 8 of each of several: the fastest of all
    timed, or within 1 % of it, at T = 16384 and nine widths from 896 to 18,944 (docs/by-hand/activation.txt, H200, 2026-11-22; 2,048
    columns took 28.4 µs with 8 values a thread and take 24.9).
    """
    few = tokens is not None and tokens < 1024
    if words and in_features <= 8 * LARGEST_BLOCK:
        whole = max(128, min(LARGEST_BLOCK, triton.next_power_of_2(in_features)))
        least = 1024 if in_features >= 2048 else 128
        fitting = [block for block in (4096, 2048, 1024, 512, 256, 128) if least <= block <= whole and -(-in_features // block) <= 8]
        block = whole if few else min(fitting, key=lambda block: -(-in_features // block) * block)
        rows = 1 if few else max(1, 1024 // block)
        values = 16 if not few and block >= max(2048, in_features) else 8
        return ActivationConfig(rows, block, max(1, rows * block // (32 * values)))
    block = max(128, min(16384, triton.next_power_of_2(in_features)))
    if in_features > block:
        block = 8192
    rows = 1 if few else max(1, 4096 // block)
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


def launch_activation(
    x: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, m: int | None, config: ActivationConfig, wide: torch.Tensor | None = None
) -> None:
    """Quantize x into the given buffers on the current stream of their device: one launch (none for no tokens), no allocation, no
    synchronization.

    x: [T, K] bf16, fp16 or fp32, unit column stride, any row stride. x_q: int8 [T, quantized_width(K, m)], row stride a multiple of 128.
    x_scale: float32 [T]. m: group of the lifting, or None. A token with a NaN or an infinity gets the scale NaN and undefined codes.
    wide: contiguous bf16 [T, K] for code · scale too; it needs bf16 x in rows of whole words that registers hold.
    Raises ShapeError for what does not fit.
    """
    width, tokens = _check(x, m), x.shape[0]
    padded = not tokens or (x_q.stride(1) == 1 and x_q.stride(0) % ROW_ALIGNMENT == 0)
    if x_q.dtype != torch.int8 or tuple(x_q.shape) != (tokens, width) or not padded:
        raise ShapeError(f"x_q is {x_q.dtype} {list(x_q.shape)} stride {x_q.stride()}; int8 {[tokens, width]} with rows padded to "
                         f"{ROW_ALIGNMENT} columns is needed")
    if x_scale.dtype != torch.float32 or tuple(x_scale.shape) != (tokens,) or not x_scale.is_contiguous():
        raise ShapeError(f"x_scale is {x_scale.dtype} {list(x_scale.shape)}; contiguous float32 {[tokens]} is needed")
    if tokens:
        start_activation(x, x_q, x_scale, m, config, wide)


def start_activation(
    x: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, m: int | None, config: ActivationConfig, wide: torch.Tensor | None = None,
    flags: torch.Tensor | None = None,
) -> None:
    """`launch_activation` of at least one token for buffers that are known to fit; finding that out takes longer than the launch.

    flags: int32 whose first element becomes 1 where a token is not finite, or None.
    """
    tokens, in_features = x.shape
    aligned = x.stride(0) % 2 == 0 and x.data_ptr() % 4 == 0
    words = aligned and by_words(x.dtype, in_features, m, config)
    if wide is not None and not words:
        raise ShapeError(f"x is {x.dtype} {list(x.shape)} with rows {x.stride(0)} apart; wide needs bf16 rows at multiples of 4 bytes that "
                         f"{config} holds in registers")
    sizes = (x_q.shape[1], x_q.stride(0))
    launch = activation_launch(words, tokens, in_features, x.stride(0), sizes, m, config, x.device)
    launch((x, x_q, x_scale, wide, flags) if words else (x, x_q, x_scale, flags))


@functools.lru_cache(maxsize=MOST_LAUNCHES)
def activation_launch(
    words: bool, tokens: int, in_features: int, x_stride: int, sizes: tuple[int, int], m: int | None, config: ActivationConfig,
    device: torch.device,
) -> Launch:
    """The launch for at least one token, of x, x_q, x_scale, where words (`by_words`) are taken also wide, and flags; None for the last two
    where they are not asked for. x_stride: of x; sizes: columns and row stride of x_q."""
    grid, options = (-(-tokens // config.rows),), {"num_warps": config.warps, "enable_fp_fusion": False, **dependence(device)}
    tile: dict[str, Any] = {"ROWS": config.rows, "BLOCK": config.block}
    if words:
        pieces = -(-in_features // config.block)
        integers = (tokens, in_features, x_stride, sizes[1])
        return Launch(activation_words_kernel, grid, integers, MIDDLE=m is not None, PIECES=pieces, **tile, **options)
    tile |= {"LIFT": m or 0, "ONE_BLOCK": in_features <= config.block}
    return Launch(activation_kernel, grid, (tokens, in_features, sizes[0], x_stride, sizes[1]), **tile, **options)


@functools.cache
def dependence(device: torch.device) -> dict[str, bool]:
    """Programmatic dependent launch, where the device has it: begun before the launch before it has ended, as the next one is before
    this."""
    has = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"DEPENDENT": True, "launch_pdl": True} if has else {"DEPENDENT": False}


def by_words(dtype: torch.dtype, in_features: int, m: int | None, config: ActivationConfig) -> bool:
    """Whether aligned rows are taken two values a word and held in registers."""
    held = -(-in_features // config.block) * config.rows * config.block
    return dtype == torch.bfloat16 and in_features % 2 == 0 and m in (None, 8) and held <= MOST_VALUES * 32 * config.warps


def quantize_activation(
    x: torch.Tensor, m: int | None = None, config: ActivationConfig | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_q int8 [T, quantized_width(K, m)], rows padded to 128 columns, and x_scale float32 [T] of x [T, K] with any strides.

    m: group of the lifting, or None. Allocates; see `launch_activation` for types and errors.
    """
    rows = x if x.dim() != 2 or x.shape[1] == 1 or x.stride(1) == 1 else x.contiguous()
    _check(rows, m)
    x_q, x_scale = allocate_activation(rows.shape[0], rows.shape[1], m, rows.device)
    words = rows.dtype == torch.bfloat16 and m in (None, 8)
    launch_activation(rows, x_q, x_scale, m, config or activation_config(rows.shape[1], rows.shape[0], words))
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
    return activation_config(problem.in_features, problem.tokens, problem.dtype == "bf16" and _group(problem) in (None, 8))


def _reject(problem: Problem, gpu: Gpu, config: Config) -> str | None:
    values = config.rows * config.block // (config.warps * 32)
    words = by_words(DTYPES[problem.dtype], problem.in_features, _group(problem), config)
    if not 8 <= values <= (32 if words else 64):
        return f"{values} values of a block per thread: 8 to {32 if words else 64} fill the loads without spilling"
    if config.block >= 2 * max(128, problem.in_features):
        return f"block {config.block} is more than twice in_features {problem.in_features}"
    if config.block < min(2048, problem.in_features) and not words:
        return f"blocks of {config.block} columns are for rows that stay in registers"
    return None


def compile_units(problem: Problem, config: Config) -> tuple[CompileUnit, ...]:
    """The kernel as it is compiled for contiguous activations of the problem's dtype."""
    arguments = {"x_ptr": _POINTERS[DTYPES[problem.dtype]], "q_ptr": "*i8", "scale_ptr": "*fp32", "tokens": "i32", "in_features": "i32",
                 "width": "i32", "x_stride": "i32", "q_stride": "i32"}
    constants: dict[str, Any] = {"ROWS": config.rows, "BLOCK": config.block, "DEPENDENT": False, "flags_ptr": None}
    kernel, group = activation_kernel, _group(problem)
    if by_words(DTYPES[problem.dtype], problem.in_features, group, config):
        kernel = activation_words_kernel
        constants |= {"wide_ptr": None, "MIDDLE": group is not None, "PIECES": triton.cdiv(problem.in_features, config.block)}
    else:
        constants |= {"LIFT": group or 0, "ONE_BLOCK": problem.in_features <= config.block}
    signature = {name: arguments.get(name, "constexpr") for name in kernel.arg_names}
    aligned = ("in_features", "x_stride") if problem.in_features % 16 == 0 else ()
    options = {"num_warps": config.warps, "enable_fp_fusion": False}
    return (CompileUnit(kernel, signature, constants, ("x_ptr", "q_ptr", "scale_ptr", "q_stride", *aligned), options,
                        since={90: {"DEPENDENT": True, "launch_pdl": True}}),)


KERNELS = (
    Kernel(
        name="activation", op="activation", kind="variant", prepare=_prepare, default_config=_default, compile_units=compile_units,
        space=ConfigSpace(
            ActivationConfig,
            {"rows": (1, 2, 4, 8), "block": (512, 1024, 2048, 4096, 8192, 16384), "warps": (2, 4, 8, 16)}, _reject,
        ),
    ),
)
