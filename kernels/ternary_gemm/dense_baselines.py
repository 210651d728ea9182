"""Dense libraries behind torch: bf16 through cuBLAS, and int8 with int32 accumulators plus one scaling pass."""

from __future__ import annotations

from typing import Literal

import torch

from kernels.gpu import Gpu
from kernels.inputs import DTYPES, ROW_ALIGNMENT, GemmInputs, Inputs
from kernels.kernel import CompileUnit, Kernel, Outputs, Prepared
from kernels.problem import Problem
from kernels.space import Config
from kernels.ternary_gemm.operands import (
    OutputPass,
    dequantized_activations,
    dequantized_weight,
    int8_operand,
    linear_inputs,
    nbytes,
    no_tokens,
    only_bf16,
    up_to,
    zero_padded,
)
from kernels.ternary_gemm.scaling import compile_units

FEWEST_INT8_TOKENS = 24
"""torch._int_mm wants more than 16 rows, and columns of both operands in multiples of 8."""
OUT_FEATURE_ALIGNMENT = 16


def _bf16_unavailable(problem: Problem, gpu: Gpu) -> str | None:
    return no_tokens(problem) or only_bf16(problem)


def _int8_unavailable(problem: Problem, gpu: Gpu) -> str | None:
    return no_tokens(problem)


def prepare_bf16(problem: Problem, inputs: Inputs, config: Config) -> Prepared:
    """y = x · wᵀ + bias in bf16 through cuBLAS, w = ternary · scale rounded to bf16 before the clock.

    gemm: x = x_q · x_scale rounded to bf16, before the clock too. layer: x as it comes, never quantized.
    """
    linear = linear_inputs(inputs)
    x = dequantized_activations(linear) if isinstance(linear, GemmInputs) else linear.x
    weight = dequantized_weight(problem, linear)
    bias = None if linear.bias is None else linear.bias.bfloat16()
    y = torch.empty((problem.tokens, problem.out_features), dtype=torch.bfloat16, device=x.device)

    def run() -> Outputs:
        if bias is None:
            torch.mm(x, weight.t(), out=y)
        else:
            torch.addmm(bias, x, weight.t(), out=y)
        return {"y": y}

    return Prepared(run, {"y": y}, nbytes(x, weight, bias, y), nbytes(weight), {"library": "cuBLAS"})


def prepare_int8(problem: Problem, inputs: Inputs, config: Config) -> Prepared:
    """torch._int_mm to int32, then one pass that scales, adds the bias and rounds; a layer quantizes its activations first.

    Tokens are padded to a multiple of 8, at least 24, inside the clock; in_features (to 128) and out_features (to 16) before it.
    """
    linear = linear_inputs(inputs)
    rows, columns = max(FEWEST_INT8_TOKENS, up_to(problem.tokens, 8)), up_to(problem.in_features, ROW_ALIGNMENT)
    outputs = up_to(problem.out_features, OUT_FEATURE_ALIGNMENT)
    operand = int8_operand(problem, linear, rows)
    weight = zero_padded(linear.w_ternary, outputs, columns)
    acc = torch.empty((rows, outputs), dtype=torch.int32, device=weight.device)
    finish = OutputPass.of(problem, linear, operand.x_scale)

    def run() -> Outputs:
        operand.load()
        torch._int_mm(operand.x_q, weight.t(), out=acc)
        return finish(acc)

    padded = {"padded_tokens": rows, "padded_in_features": columns, "padded_out_features": outputs}
    touched = nbytes(operand.x_q, operand.x_scale, weight, finish.row_scale, linear.bias, acc, finish.y)
    return Prepared(run, finish.buffers, touched, nbytes(weight, linear.w_scale), {"library": "torch._int_mm", **padded})


def _int8_units(problem: Problem, config: Config) -> tuple[CompileUnit, ...]:
    if problem.dtype == "int32":
        return ()
    return compile_units(torch.int32, DTYPES[problem.dtype], problem.bias, transposed=False)


def _dense(op: Literal["gemm", "layer"]) -> tuple[Kernel, ...]:
    return (
        Kernel("dense-bf16", op, "baseline", prepare_bf16, unavailable=_bf16_unavailable, judged="float", dense=True),
        Kernel("dense-int8", op, "baseline", prepare_int8, unavailable=_int8_unavailable, dense=True, compile_units=_int8_units),
    )


KERNELS: tuple[Kernel, ...] = (*_dense("gemm"), *_dense("layer"))
