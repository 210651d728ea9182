"""Dense fp8 through torch._scaled_mm with fast accumulation: activations rounded to e4m3, ternary weights exact in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl

from kernels.errors import ShapeError
from kernels.gpu import Gpu
from kernels.inputs import ROW_ALIGNMENT, GemmInputs, Inputs, LayerInputs
from kernels.kernel import CompileUnit, Kernel, Outputs, Prepared
from kernels.problem import Problem
from kernels.space import Config, ConfigSpace
from kernels.ternary_gemm.operands import E4M3, OutputPass, fastest, in_rows, nbytes, no_tokens, only_bf16, to_e4m3, up_to, zero_padded
from kernels.ternary_gemm.scaling import compile_units, row_scales
from reference.quantize import EPSILON

E4M3_MAX = 448.0
FEWEST_TOKENS = 32
BLOCK = 4096
WARPS = 8


@dataclass(frozen=True)
class Fp8Config:
    """scaling of a layer: "rowwise" inside torch._scaled_mm, or one "pass" after it (a gemm has neither). tokens: padded rows, 0 for
    the default (a multiple of 16, at least 32)."""

    scaling: Literal["rowwise", "pass"] = "rowwise"
    tokens: int = 0


@triton.jit
def quantize_tokens(x, x_q, x_scale, in_features, stride_x, stride_q, FLOOR: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    """One token to e4m3: a = max(max|x|, FLOOR), x_q = x · (LARGEST / a), x_scale = a / LARGEST."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, in_features, BLOCK):
        value = tl.load(x + token * stride_x + start + column, mask=start + column < in_features, other=0.0)
        largest = tl.maximum(largest, tl.abs(value.to(tl.float32)))
    absmax = tl.maximum(tl.max(largest, 0), FLOOR)
    inverse = tl.div_rn(tl.full((), LARGEST, tl.float32), absmax)
    for start in range(0, in_features, BLOCK):
        value = tl.load(x + token * stride_x + start + column, mask=start + column < in_features, other=0.0)
        code = (value.to(tl.float32) * inverse).to(x_q.dtype.element_ty)
        tl.store(x_q + token * stride_q + start + column, code, mask=start + column < in_features)
    tl.store(x_scale + token, tl.div_rn(absmax, tl.full((), LARGEST, tl.float32)))


def launch_quantize_tokens(x: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor) -> None:
    """Per-token e4m3: x [tokens, in_features] to x_q e4m3 of that shape and x_scale float32 [tokens] (x is about x_q · x_scale).

    Columns of x and x_q must be adjacent; ShapeError where they are not or the shapes differ.
    """
    if x.shape != x_q.shape or x_scale.shape[0] < x.shape[0] or x.stride(1) != 1 or x_q.stride(1) != 1:
        found = f"x_q {tuple(x_q.shape)} {x_q.stride()} and scales {tuple(x_scale.shape)}"
        raise ShapeError(f"x {tuple(x.shape)} {x.stride()} does not fit {found}")
    if x.shape[0]:
        quantize_tokens[(x.shape[0],)](
            x, x_q, x_scale, x.shape[1], x.stride(0), x_q.stride(0), FLOOR=EPSILON, LARGEST=E4M3_MAX, BLOCK=BLOCK, num_warps=WARPS
        )  # fmt: skip


def prepare_gemm(problem: Problem, inputs: Inputs, config: Fp8Config) -> Prepared:
    """bf16 y = e4m3(x_q) · w_ternaryᵀ with one scale of 1.0: no per-token scale, no per-split scale, no bias, which flatters it."""
    if not isinstance(inputs, GemmInputs):
        raise ShapeError(f"{type(inputs).__name__} are not the inputs of a gemm")
    rows, columns, outputs = _padding(problem, config)
    x, load = in_rows(to_e4m3(zero_padded(inputs.x_q, problem.tokens, columns)), rows)
    weight = to_e4m3(zero_padded(inputs.w_ternary, outputs, columns))
    one = torch.ones((), dtype=torch.float32, device=x.device)

    def run() -> Outputs:
        load()
        y = torch._scaled_mm(x, weight.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
        return {"y": y[: problem.tokens, : problem.out_features]}

    touched = nbytes(x, weight) + 2 * rows * outputs
    return Prepared(run, {}, touched, nbytes(weight), {**_notes(problem, config), "scales": "one, of 1.0"})


def prepare_layer(problem: Problem, inputs: Inputs, config: Fp8Config) -> Prepared:
    """A token to e4m3 by its absmax / 448, torch._scaled_mm, and the scales either row-wise inside it or in one pass after it."""
    if not isinstance(inputs, LayerInputs):
        raise ShapeError(f"{type(inputs).__name__} are not the inputs of a layer")
    rows, columns, outputs = _padding(problem, config)
    source = inputs.x.contiguous()
    x = torch.zeros((rows, columns), dtype=E4M3, device=source.device)
    x_q, x_scale = x[: problem.tokens, : problem.in_features], torch.ones(rows, dtype=torch.float32, device=source.device)
    weight = to_e4m3(zero_padded(inputs.w_ternary, outputs, columns))
    multiply, buffers = _multiply(problem, inputs, config, (x, x_scale, weight))

    def run() -> Outputs:
        launch_quantize_tokens(source, x_q, x_scale)
        return {"y": multiply()[: problem.tokens, : problem.out_features]}

    touched = nbytes(source, x, x_scale, weight, inputs.w_scale, inputs.bias) + 2 * rows * outputs + nbytes(*buffers.values())
    return Prepared(run, buffers, touched, nbytes(weight, inputs.w_scale), {**_notes(problem, config), "scales": config.scaling})


def _multiply(
    problem: Problem, inputs: LayerInputs, config: Fp8Config, operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> tuple[Callable[[], torch.Tensor], dict[str, torch.Tensor]]:
    """The multiplication of a layer with its scales, and the buffers it writes in place."""
    x, x_scale, weight = operands
    if config.scaling == "pass":
        one = torch.ones((), dtype=torch.float32, device=x.device)
        finish = OutputPass.of(problem, inputs, x_scale[: problem.tokens])

        def then_scaled() -> torch.Tensor:
            return finish(torch._scaled_mm(x, weight.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True))["y"]

        return then_scaled, finish.buffers
    columns = weight.shape[0]
    scale = zero_padded(row_scales(inputs.w_scale, problem.splits)[None], 1, columns)
    bias = None if inputs.bias is None else zero_padded(inputs.bias[None], 1, columns)[0].bfloat16()

    def rowwise() -> torch.Tensor:
        return torch._scaled_mm(x, weight.t(), x_scale[:, None], scale, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True)

    return rowwise, {}


def _padding(problem: Problem, config: Fp8Config) -> tuple[int, int, int]:
    """Rows, columns and outputs that torch._scaled_mm takes (in_features and out_features in multiples of 16)."""
    rows = config.tokens or max(FEWEST_TOKENS, up_to(problem.tokens, 16))
    return rows, up_to(problem.in_features, ROW_ALIGNMENT), up_to(problem.out_features, 16)


def _notes(problem: Problem, config: Fp8Config) -> dict[str, str | int]:
    rows, columns, outputs = _padding(problem, config)
    return {"library": "torch._scaled_mm", "padded_tokens": rows, "padded_in_features": columns, "padded_out_features": outputs}


def _resolve(problem: Problem, inputs: Inputs, gpu: Gpu) -> Fp8Config:
    """The fastest of the tokens as they are and padded, times the two ways of scaling in a layer."""
    padded = max(FEWEST_TOKENS, up_to(problem.tokens, 16))
    ways: tuple[Literal["rowwise", "pass"], ...] = ("rowwise", "pass") if problem.op == "layer" else ("rowwise",)
    prepare = prepare_layer if problem.op == "layer" else prepare_gemm
    candidates = [Fp8Config(way, tokens) for way in ways for tokens in sorted({problem.tokens, padded})]
    chosen: Fp8Config = fastest(candidates, lambda config: prepare(problem, inputs, config))
    return chosen


def _unavailable(problem: Problem, gpu: Gpu) -> str | None:
    if gpu.capability < 89:
        return f"fp8 tensor cores begin with sm_89; {gpu.name} is {gpu.architecture}"
    return no_tokens(problem) or only_bf16(problem)


def _default(problem: Problem, gpu: Gpu) -> Fp8Config:
    return Fp8Config()


def _layer_units(problem: Problem, config: Config) -> tuple[CompileUnit, ...]:
    signature = {"x": "*bf16", "x_q": "*fp8e4nv", "x_scale": "*fp32", "in_features": "i32", "stride_x": "i32", "stride_q": "i32"}
    constexprs = {"FLOOR": EPSILON, "LARGEST": E4M3_MAX, "BLOCK": BLOCK}
    signature |= dict.fromkeys(constexprs, "constexpr")
    divisible = tuple(name for name in signature if name not in constexprs)
    quantizer = CompileUnit(quantize_tokens, signature, constexprs, divisible, {"num_warps": WARPS})
    return (quantizer, *compile_units(torch.bfloat16, torch.bfloat16, problem.bias, transposed=False))


_SPACE = ConfigSpace(Fp8Config)

KERNELS: tuple[Kernel, ...] = (
    Kernel(
        "dense-fp8", "gemm", "baseline", prepare_gemm, _default, _SPACE, _unavailable, _resolve, exact=False, judged="fp8", dense=True
    ),
    Kernel(
        "dense-fp8", "layer", "baseline", prepare_layer, _default, _SPACE, _unavailable, _resolve, exact=False, judged="fp8", dense=True,
        compile_units=_layer_units,
    ),
)  # fmt: skip
