"""`dense-triton`: the dense ternary GEMM on 2-bit weights, and `dense-int8-triton`, the same kernel on int8 weights as a baseline.

Y[T, N] = X · Wᵀ · x_scale[t] · w_scale[split(n)] + bias, from int8 X and a `PackedTernary`; sparsity is not exploited here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import TypeAlias

import torch
from triton.runtime.jit import JITFunction

from kernels.errors import ShapeError
from kernels.gpu import Gpu, by_name, detect
from kernels.inputs import DTYPES, GemmInputs, Inputs, pad_rows
from kernels.kernel import CompileUnit, Kernel, Outputs, Prepared
from kernels.packed import PackedTernary, pack
from kernels.problem import Problem
from kernels.ternary_gemm.dense_config import (
    MIN_SHARED_BYTES,
    DenseConfig,
    Device,
    choose,
    default_config,
    int8_default_config,
    int8_space,
    space,
)
from kernels.ternary_gemm.dense_kernel import dense_gemm

MAX_IN_FEATURES = 131_072
"""The accumulator holds 64 times the sum: 64 · 127 · 131,072 is the last that int32 holds."""

OUT_DTYPES = tuple(DTYPES.values())


@dataclass(frozen=True)
class Int8Weight:
    """A ternary weight kept as int8 [N, K], K padded with zeros to a multiple of 16; the fields are named as in `PackedTernary`."""

    data: torch.Tensor
    w_scale: torch.Tensor
    split_ends: torch.Tensor
    splits: tuple[int, ...]
    in_features: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight as stored, scales included."""
        return self.data.numel() + 4 * self.w_scale.numel()


Weight: TypeAlias = PackedTernary | Int8Weight


@dataclass(frozen=True)
class Workspace:
    """What split-K needs: int32 partial tiles, and one int32 counter per tile that each launch leaves at zero."""

    partial: torch.Tensor
    counter: torch.Tensor


@dataclass(frozen=True)
class Gemm:
    """The GEMM bound to everything but the activations' address. bias: float32 [N]. out: [T, N] contiguous."""

    weight: Weight
    x_scale: torch.Tensor
    bias: torch.Tensor | None
    out: torch.Tensor
    config: DenseConfig
    workspace: Workspace | None

    @cached_property
    def _arguments(self) -> tuple[tuple[int, int], tuple[object, ...], dict[str, object]]:
        """The grid, what follows x_q's address, and the compile-time values."""
        config, weight, (tokens, out_features) = self.config, self.weight, self.out.shape
        spare = self.workspace or Workspace(weight.split_ends, weight.split_ends)  # an address that is not used
        pointers = (self.x_scale, weight.data, weight.w_scale, weight.split_ends, weight.w_scale if self.bias is None else self.bias,
                    self.out, spare.partial, spare.counter)
        constants = _compile_time(config, len(weight.splits), self.bias is not None, self.out.dtype == torch.int32,
                                  isinstance(weight, PackedTernary), weight.in_features, asm=self.out.is_cuda)
        grid = (ceil(out_features / config.block_n) * ceil(tokens / config.block_t), config.split_k)
        return grid, (*pointers, tokens, out_features, _width(weight.in_features)), constants

    def launch(self, x_q: torch.Tensor) -> None:
        """One launch on the current stream of the tensors' device. x_q: rows as `aligned_rows` gives them."""
        if self.out.numel() == 0:
            return
        grid, arguments, constants = self._arguments
        with torch.cuda.device_of(self.out):
            dense_gemm[grid](x_q, *arguments, x_q.stride(0), self.weight.data.shape[1], **constants,
                             num_warps=self.config.num_warps, num_stages=self.config.num_stages)


def ternary_gemm(x_q: torch.Tensor, x_scale: torch.Tensor, packed: PackedTernary, bias: torch.Tensor | None = None,
                 out_dtype: torch.dtype = torch.bfloat16, config: DenseConfig | None = None) -> torch.Tensor:
    """Y [T, N] in out_dtype (bf16, fp16, fp32, or int32 for the raw accumulators, which ignore scales and bias).

    x_q: int8 [T, K]; rows that do not start at multiples of 16 bytes are copied once. x_scale: float32 [T]. bias: float32 [N].
    config: None takes the heuristic one. Raises ShapeError, before anything is launched, for what does not fit.
    """
    check(x_q, x_scale, packed, bias, out_dtype)
    if config is None:
        gpu = (detect(x_q.device.index or 0) if x_q.is_cuda else None) or by_name("a100")
        config = choose(packed.out_features, packed.in_features, x_q.shape[0], Device.of(gpu))
    out = torch.empty((x_q.shape[0], packed.out_features), dtype=out_dtype, device=x_q.device)
    Gemm(packed, x_scale, bias, out, config, workspace(config, out)).launch(aligned_rows(x_q))
    return out


def check(x_q: torch.Tensor, x_scale: torch.Tensor, weight: Weight, bias: torch.Tensor | None,
          out_dtype: torch.dtype) -> None:
    """Raises ShapeError, naming what was given and what is needed, unless these fit one another."""
    n, k = weight.data.shape[0], weight.in_features
    if k > MAX_IN_FEATURES:
        raise ShapeError(f"in_features is {k}; int32 accumulators of 64-fold weights hold at most {MAX_IN_FEATURES}")
    _need(x_q, "x_q", torch.int8, (None, k), weight.data.device)
    _need(x_scale, "x_scale", torch.float32, (x_q.shape[0],), weight.data.device)
    if bias is not None:
        _need(bias, "bias", torch.float32, (n,), weight.data.device)
    if out_dtype not in OUT_DTYPES:
        raise ShapeError(f"out_dtype is {out_dtype}; one of {', '.join(map(str, OUT_DTYPES))} is needed")
    if not x_q.is_cuda and isinstance(dense_gemm, JITFunction):
        raise ShapeError(f"tensors are on {x_q.device}; a CUDA device is needed outside of the interpreter")


def _need(tensor: torch.Tensor, name: str, dtype: torch.dtype, shape: tuple[int | None, ...], device: torch.device) -> None:
    fits = tensor.dim() == len(shape) and all(want in (None, have) for want, have in zip(shape, tensor.shape, strict=True))
    if not fits or tensor.dtype != dtype or tensor.device != device or (len(shape) == 1 and not tensor.is_contiguous()):
        wanted = ", ".join("tokens" if size is None else str(size) for size in shape)
        raise ShapeError(f"{name} is {tensor.dtype} {list(tensor.shape)} with strides {list(tensor.stride())} on {tensor.device}; "
                         f"{dtype} [{wanted}] on {device} is needed")


def is_aligned(x_q: torch.Tensor) -> bool:
    """Whether rows can be read as they lie: contiguous columns, rows at multiples of 16 bytes, each readable to a multiple of 16."""
    tokens, features = x_q.shape
    if x_q.stride(1) != 1 or x_q.stride(0) % 16 or x_q.data_ptr() % 16 or (tokens > 1 and x_q.stride(0) < features):
        return False
    last = x_q.storage_offset() + max(tokens - 1, 0) * x_q.stride(0) + _width(features)
    return last <= x_q.untyped_storage().nbytes()


def aligned_rows(x_q: torch.Tensor) -> torch.Tensor:
    """x_q itself where `is_aligned`, else a copy with rows padded to 128 columns."""
    return x_q if is_aligned(x_q) else pad_rows(x_q.contiguous())


def workspace(config: DenseConfig, out: torch.Tensor) -> Workspace | None:
    """Memory for split-K of this output, None without; allocate it once for a captured graph."""
    tiles = ceil(out.shape[1] / config.block_n) * ceil(out.shape[0] / config.block_t)
    if config.split_k == 1 or tiles == 0:
        return None
    partial = torch.empty(config.split_k * tiles * config.block_n * config.block_t, dtype=torch.int32, device=out.device)
    return Workspace(partial, torch.zeros(tiles, dtype=torch.int32, device=out.device))


def _width(in_features: int) -> int:
    return -(-in_features // 16) * 16


def _compile_time(config: DenseConfig, splits: int, bias: bool, raw: bool, packed: bool, in_features: int, asm: bool) -> dict[str, object]:
    """Inline assembly does not run in the interpreter: CPU tensors (asm=False) take the plain arithmetic that gives the same values."""
    return {
        "SPLITS": splits, "HAS_BIAS": bias, "RAW": raw, "PACKED": packed, "EVEN_K": _width(in_features) % config.block_k == 0,
        "BLOCK_N": config.block_n, "BLOCK_T": config.block_t, "BLOCK_K": config.block_k, "SPLIT_K": config.split_k,
        "GROUP": config.group, "ASM": asm and config.unpack == "asm", "TRANSPOSED": config.transposed,
    }


def bind(problem: Problem, x_q: torch.Tensor, x_scale: torch.Tensor, weight: Weight, bias: torch.Tensor | None,
         config: DenseConfig) -> Gemm:
    """The GEMM with its output and workspace allocated, for repeated launches and graph capture. Raises ShapeError."""
    out_dtype = DTYPES[problem.dtype]
    check(x_q, x_scale, weight, bias, out_dtype)
    out = torch.empty((x_q.shape[0], problem.out_features), dtype=out_dtype, device=x_q.device)
    return Gemm(weight, x_scale, bias, out, config, workspace(config, out))


def _prepare_with(make_weight: Callable[[Problem, GemmInputs], Weight]) -> Callable[[Problem, Inputs, DenseConfig], Prepared]:
    def prepare(problem: Problem, inputs: Inputs, config: DenseConfig) -> Prepared:
        if not isinstance(inputs, GemmInputs):
            raise ShapeError(f"{problem.op} takes GemmInputs, not {type(inputs).__name__}")
        weight = make_weight(problem, inputs)
        gemm = bind(problem, inputs.x_q, inputs.x_scale, weight, inputs.bias, config)
        aligned = is_aligned(inputs.x_q)

        def run() -> Outputs:
            gemm.launch(inputs.x_q if aligned else aligned_rows(inputs.x_q))
            return {"y": gemm.out}

        footprint = inputs.x_q.numel() + 4 * inputs.x_scale.numel() + weight.weight_bytes + gemm.out.numel() * gemm.out.element_size()
        return Prepared(run, {"y": gemm.out}, footprint, weight.weight_bytes, {"copies_x": not aligned})

    return prepare


def packed_weight(problem: Problem, inputs: GemmInputs) -> PackedTernary:
    """The inputs' weight packed to 2 bits."""
    packed = pack(inputs.w_ternary, inputs.w_scale, problem.splits, problem.sparsity)
    packed.split_ends  # noqa: B018 (made here, outside of any graph capture)
    return packed


def _int8_weight(problem: Problem, inputs: GemmInputs) -> Int8Weight:
    features = inputs.w_ternary.shape[1]
    data = torch.nn.functional.pad(inputs.w_ternary, (0, _width(features) - features)).contiguous()
    ends = torch.tensor(problem.splits, dtype=torch.int32, device=data.device).cumsum(0, dtype=torch.int32)
    return Int8Weight(data, inputs.w_scale, ends, problem.splits, features)


def _units_with(packed: bool) -> Callable[[Problem, DenseConfig], Sequence[CompileUnit]]:
    def units(problem: Problem, config: DenseConfig) -> Sequence[CompileUnit]:
        out = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32", "int32": "*i32"}[problem.dtype]
        pointers = {"x_ptr": "*i8", "x_scale_ptr": "*fp32", "w_ptr": "*u8" if packed else "*i8", "w_scale_ptr": "*fp32", "ends_ptr": "*i32",
                    "bias_ptr": "*fp32", "y_ptr": out, "partial_ptr": "*i32", "counter_ptr": "*i32"}
        sizes = dict.fromkeys(("tokens", "out_features", "x_width", "x_stride", "w_width"), "i32")
        raw, splits = problem.dtype == "int32", len(problem.splits)
        constants = _compile_time(config, splits, problem.bias, raw, packed, problem.in_features, asm=True)
        divisible = (*pointers, "x_width", "x_stride", "w_width", *(("out_features",) if problem.out_features % 16 == 0 else ()))
        first = config.block_n if config.transposed else config.block_t
        expects = {80: "IMMA", 90: "IGMMA", 100: "IMMA"} if first >= 64 else {80: "IMMA"}
        return [CompileUnit(dense_gemm, {**pointers, **sizes, **dict.fromkeys(constants, "constexpr")}, constants, divisible,
                            {"num_warps": config.num_warps, "num_stages": config.num_stages}, expects)]

    return units


def refusal(problem: Problem, gpu: Gpu) -> str | None:
    """Why this kernel cannot do the problem on that GPU, or None."""
    if gpu.capability < 80:
        return f"needs sm_80 or later, {gpu.name} is {gpu.architecture}"
    if gpu.shared_bytes < MIN_SHARED_BYTES:
        return f"needs {MIN_SHARED_BYTES} bytes of shared memory a block, {gpu.name} has {gpu.shared_bytes}"
    if problem.in_features > MAX_IN_FEATURES:
        return f"in_features {problem.in_features} is above {MAX_IN_FEATURES}"
    return None


compile_units = _units_with(packed=True)

KERNELS: tuple[Kernel, ...] = (
    Kernel("dense-triton", "gemm", "variant", _prepare_with(packed_weight), default_config, space, refusal, compile_units=compile_units),
    Kernel("dense-int8-triton", "gemm", "baseline", _prepare_with(_int8_weight), int8_default_config, int8_space, refusal,
           dense=True, compile_units=_units_with(packed=False)),
)
