"""Sparse libraries: cuSPARSELt on 2:4 weights in int8, bf16 and fp8, and SlideSparse's way of running (L-2):L weights on it.

Source of the lifted way: SlideSparse, arXiv 2603.05232.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Literal

import torch

from kernels.errors import ShapeError
from kernels.gpu import Gpu
from kernels.inputs import DTYPES, ROW_ALIGNMENT, GemmInputs, Inputs
from kernels.kernel import CompileUnit, Kernel, Outputs, Prepared
from kernels.problem import Problem
from kernels.space import ConfigSpace
from kernels.ternary_gemm import cusparselt
from kernels.ternary_gemm.cusparselt import OUT_FEATURE_ALIGNMENT, TOKEN_ALIGNMENT, CuSparseLtConfig, SparseOperands
from kernels.ternary_gemm.operands import (
    OutputPass,
    dequantized_activations,
    dequantized_weight,
    in_rows,
    int8_operand,
    linear_inputs,
    nbytes,
    only_bf16,
    to_e4m3,
    up_to,
    zero_padded,
)
from kernels.ternary_gemm.scaling import compile_units
from reference.lifting import lift_weight

Way = Literal["int8", "bf16", "fp8"]


def _compressed(weight: torch.Tensor) -> torch.Tensor:
    """A 2:4 weight as the library stores it, padded with zeros to the sizes that it takes."""
    outputs, columns = up_to(weight.shape[0], OUT_FEATURE_ALIGNMENT), up_to(weight.shape[1], ROW_ALIGNMENT)
    return torch._cslt_compress(zero_padded(weight, outputs, columns))


def _notes(operands: SparseOperands, config: CuSparseLtConfig) -> dict[str, str | int | float | bool | None]:
    rows, columns = operands.x.shape
    padded = {"padded_tokens": rows, "padded_in_features": columns, "padded_out_features": operands.compressed.shape[0]}
    return {"library": "cuSPARSELt", "version": cusparselt.version(), **padded, **asdict(config)}


def _raw_operands(way: Way, problem: Problem, inputs: Inputs) -> tuple[SparseOperands, Callable[[], None]]:
    """Operands of a raw product and the copy that pads the tokens inside the clock."""
    if not isinstance(inputs, GemmInputs):
        raise ShapeError(f"{type(inputs).__name__} are not the inputs of a gemm")
    rows, columns = up_to(problem.tokens, TOKEN_ALIGNMENT), up_to(problem.in_features, ROW_ALIGNMENT)
    if way == "bf16":
        activations, weight = dequantized_activations(inputs), dequantized_weight(problem, inputs)
    elif way == "fp8":
        activations, weight = to_e4m3(inputs.x_q), to_e4m3(inputs.w_ternary)
    else:
        activations, weight = inputs.x_q, inputs.w_ternary
    x, load = in_rows(zero_padded(activations, problem.tokens, columns), rows)
    load()  # a search is to see the data that will be timed
    return SparseOperands(_compressed(weight), x, None if way == "bf16" else torch.bfloat16), load


def prepare_raw(way: Way, problem: Problem, inputs: Inputs, config: CuSparseLtConfig) -> Prepared:
    """The library's product in bf16. int8 and fp8: raw, without scales or bias. bf16: of dequantized operands, and the bias in a pass."""
    operands, load = _raw_operands(way, problem, inputs)
    return _bind_raw(way, problem, inputs, operands, load, config)


def _bind_raw(
    way: Way, problem: Problem, inputs: Inputs, operands: SparseOperands, load: Callable[[], None], config: CuSparseLtConfig
) -> Prepared:
    linear = linear_inputs(inputs)
    bias = linear.bias.bfloat16() if way == "bf16" and linear.bias is not None else None

    def run() -> Outputs:
        load()
        y = cusparselt.multiply(operands, config)[: problem.tokens, : problem.out_features]
        return {"y": y if bias is None else y.add_(bias)}

    touched = nbytes(operands.x, operands.compressed, bias) + 2 * operands.x.shape[0] * operands.compressed.shape[0]
    return Prepared(run, {}, touched, nbytes(operands.compressed), _notes(operands, config))


def _resolve_raw(way: Way, problem: Problem, inputs: Inputs, gpu: Gpu) -> CuSparseLtConfig:
    operands, load = _raw_operands(way, problem, inputs)
    return cusparselt.resolve(operands, lambda config: _bind_raw(way, problem, inputs, operands, load, config))


def _bind_scaled(lifted: bool, problem: Problem, inputs: Inputs) -> tuple[SparseOperands, Callable[[CuSparseLtConfig], Prepared]]:
    """Operands of an int32 product with a scaling pass behind it, and how to bind a config to them."""
    linear = linear_inputs(inputs)
    operand = int8_operand(problem, linear, up_to(problem.tokens, TOKEN_ALIGNMENT), lifted)
    operand.load()  # a search is to see the data that will be timed
    n, m = problem.sparsity.n, problem.sparsity.m
    weight = lift_weight(linear.w_ternary, n, m) if lifted else linear.w_ternary
    operands = SparseOperands(_compressed(weight), operand.x_q, torch.int32)

    def bind(config: CuSparseLtConfig) -> Prepared:
        finish = OutputPass.of(problem, linear, operand.x_scale)

        def run() -> Outputs:
            operand.load()
            return finish(cusparselt.multiply(operands, config))

        acc = 4 * operands.x.shape[0] * operands.compressed.shape[0]
        touched = acc + nbytes(operands.x, operands.compressed, operand.x_scale, finish.row_scale, linear.bias, finish.y)
        weight_bytes = nbytes(operands.compressed, linear.w_scale)
        return Prepared(run, finish.buffers, touched, weight_bytes, {**_notes(operands, config), "lifted": lifted})

    return operands, bind


def prepare_scaled(lifted: bool, problem: Problem, inputs: Inputs, config: CuSparseLtConfig) -> Prepared:
    """int32 accumulators from the library, then one pass that scales, adds the bias and rounds; a layer quantizes its activations first.

    lifted: (L-2):L weights as 2:4 weights on the lifted width; a layer lifts as it quantizes, a gemm's activations before the clock.
    """
    return _bind_scaled(lifted, problem, inputs)[1](config)


def _resolve_scaled(lifted: bool, problem: Problem, inputs: Inputs, gpu: Gpu) -> CuSparseLtConfig:
    operands, bind = _bind_scaled(lifted, problem, inputs)
    return cusparselt.resolve(operands, bind)


def _only_2_4(problem: Problem, gpu: Gpu) -> str | None:
    if problem.sparsity.m != 4 or problem.sparsity.n > 2:
        return f"2:4 weights only, not {problem.sparsity}"
    return cusparselt.unavailable(problem, gpu)


def _raw_unavailable(problem: Problem, gpu: Gpu) -> str | None:
    return _only_2_4(problem, gpu) or only_bf16(problem)


def _fp8_unavailable(problem: Problem, gpu: Gpu) -> str | None:
    found = _raw_unavailable(problem, gpu)
    if found is None and gpu.capability < 89:
        return f"fp8 tensor cores begin with sm_89; {gpu.name} is {gpu.architecture}"
    if found is None and (cusparselt.version() or 0) < cusparselt.FIRST_WITH_FP8:
        return f"fp8 needs cuSPARSELt {cusparselt.FIRST_WITH_FP8}, this is {cusparselt.version()}"
    return found


def _lifted_unavailable(problem: Problem, gpu: Gpu) -> str | None:
    if not problem.sparsity.lifted:
        return f"only (L-2):L weights with L > 4 are lifted, not {problem.sparsity}"
    return cusparselt.unavailable(problem, gpu)


def _default(problem: Problem, gpu: Gpu) -> CuSparseLtConfig:
    return CuSparseLtConfig()


def _units(problem: Problem, config: CuSparseLtConfig) -> tuple[CompileUnit, ...]:
    if problem.dtype == "int32":
        return ()
    return compile_units(torch.int32, DTYPES[problem.dtype], problem.bias, transposed=not config.transpose_result)


_SPACE = ConfigSpace(CuSparseLtConfig)


def _raw(name: str, way: Way, judged: str, exact: bool) -> Kernel:
    unavailable = _fp8_unavailable if way == "fp8" else _raw_unavailable
    prepare, resolve = partial(prepare_raw, way), partial(_resolve_raw, way)
    return Kernel(name, "gemm", "baseline", prepare, _default, _SPACE, unavailable, resolve, exact=exact, judged=judged)


def _scaled(name: str, op: Literal["gemm", "layer"], lifted: bool) -> Kernel:
    unavailable = _lifted_unavailable if lifted else _only_2_4
    prepare, resolve = partial(prepare_scaled, lifted), partial(_resolve_scaled, lifted)
    return Kernel(name, op, "baseline", prepare, _default, _SPACE, unavailable, resolve, compile_units=_units)


KERNELS: tuple[Kernel, ...] = (
    _raw("cusparselt-int8", "int8", judged="raw", exact=False),
    _scaled("cusparselt-int8-scaled", "gemm", lifted=False),
    _scaled("cusparselt-int8-scaled", "layer", lifted=False),
    _raw("cusparselt-bf16", "bf16", judged="float", exact=True),
    _raw("cusparselt-fp8", "fp8", judged="fp8", exact=False),
    _scaled("slidesparse", "gemm", lifted=True),
    _scaled("slidesparse", "layer", lifted=True),
)
