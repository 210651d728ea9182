"""Training baselines that quantize nothing (cuBLAS on the master weight) or only the weight (cuSPARSELt), and the fake-quantizing ones.

`dense-bf16` computes X · Wᵀ, dY · W and dYᵀ · X of the operands as they are: the cost of an ordinary layer, and another function than
the quantized layer's, so it is judged on its own operands and never counts as exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch

from kernels.gpu import Gpu
from kernels.inputs import ROW_ALIGNMENT, Inputs, TrainInputs
from kernels.kernel import Kernel, Outputs, Prepared
from kernels.problem import Op, Problem
from kernels.space import ConfigSpace
from kernels.sparse_backward import fakequant
from kernels.sparse_backward.input_grad import train_inputs, unavailable
from kernels.ternary_gemm import cusparselt
from kernels.ternary_gemm.cusparselt import OUT_FEATURE_ALIGNMENT, TOKEN_ALIGNMENT, CuSparseLtConfig, SparseOperands
from kernels.ternary_gemm.operands import in_rows, only_bf16, up_to, zero_padded
from kernels.ternary_gemm.scaling import row_scales

OUTPUTS: dict[Op, tuple[str, ...]] = {"forward": ("y",), "input-grad": ("dx",), "weight-grad": ("dw",), "step": ("y", "dx", "dw")}

NOT_SPARSE: dict[Op, str] = {
    "input-grad": "out_features is the reduced dimension here, and the mask runs along in_features: not 2:4 for cuSPARSELt",
    "weight-grad": "neither dy nor x is sparse",
    "step": "of the three GEMMs only the forward one has a 2:4 operand: see forward",
}


def prepare_dense(problem: Problem, inputs: Inputs, config: object) -> Prepared:
    """The GEMMs of the op on x, w and dy as they are, through torch.mm."""
    data = train_inputs(inputs)
    shapes = {"y": (problem.tokens, problem.out_features), "dx": tuple(data.x.shape), "dw": tuple(data.w.shape)}
    outputs = {name: torch.empty(shapes[name], dtype=data.x.dtype, device=data.x.device) for name in OUTPUTS[problem.op]}
    operands = {"y": (data.x, data.w.t()), "dx": (data.dy, data.w), "dw": (data.dy.t(), data.x)}

    def run() -> Outputs:
        for name, output in outputs.items():
            torch.mm(*operands[name], out=output)
        return outputs

    read = {tensor.data_ptr(): tensor.nbytes for name in outputs for tensor in operands[name]}
    touched = sum(read.values()) + sum(output.nbytes for output in outputs.values())
    return Prepared(run, outputs, touched, 0 if problem.op == "weight-grad" else data.w.nbytes, {"library": "cuBLAS"})


def _sparse_operands(problem: Problem, data: TrainInputs) -> tuple[SparseOperands, Callable[[], None]]:
    columns = up_to(problem.in_features, ROW_ALIGNMENT)
    weight = (data.w_ternary * row_scales(data.w_scale, problem.splits)[:, None]).bfloat16()
    x, load = in_rows(zero_padded(data.x, problem.tokens, columns), up_to(problem.tokens, TOKEN_ALIGNMENT))
    padded = zero_padded(weight, up_to(problem.out_features, OUT_FEATURE_ALIGNMENT), columns)
    return SparseOperands(torch._cslt_compress(padded), x, None), load


def _bind_sparse(problem: Problem, operands: SparseOperands, load: Callable[[], None], config: CuSparseLtConfig) -> Prepared:
    def run() -> Outputs:
        load()
        return {"y": cusparselt.multiply(operands, config)[: problem.tokens, : problem.out_features]}

    stored = operands.compressed.nbytes
    touched = operands.x.nbytes + stored + 2 * problem.tokens * problem.out_features
    return Prepared(run, {}, touched, stored, {"library": "cuSPARSELt", "version": cusparselt.version(), **asdict(config)})


def prepare_sparse(problem: Problem, inputs: Inputs, config: CuSparseLtConfig) -> Prepared:
    """y = x · ŵᵀ through cuSPARSELt, ŵ = ternary · scale in bf16, compressed before the clock; x is never quantized, which flatters it."""
    return _bind_sparse(problem, *_sparse_operands(problem, train_inputs(inputs)), config)


def _resolve_sparse(problem: Problem, inputs: Inputs, gpu: Gpu) -> CuSparseLtConfig:
    operands, load = _sparse_operands(problem, train_inputs(inputs))
    return cusparselt.resolve(operands, lambda config: _bind_sparse(problem, operands, load, config))


def _sparse_unavailable(problem: Problem, gpu: Gpu) -> str | None:
    if problem.sparsity.m != 4 or problem.sparsity.n > 2:
        return f"2:4 weights only, not {problem.sparsity}"
    return cusparselt.unavailable(problem, gpu) or only_bf16(problem)


def _dense_only(op: Op) -> Kernel:
    """What cuSPARSELt cannot do, as a record that says why."""
    return Kernel("cusparselt-bf16", op, "baseline", prepare_dense, unavailable=lambda problem, gpu: NOT_SPARSE[op])


def _dense(op: Op) -> Kernel:
    return Kernel("dense-bf16", op, "baseline", prepare_dense, unavailable=unavailable, exact=False, judged="dense-linear", dense=True)


def _cusparselt_default(problem: Problem, gpu: Gpu) -> CuSparseLtConfig:
    return CuSparseLtConfig()


KERNELS: tuple[Kernel, ...] = (
    *map(_dense, OUTPUTS),
    Kernel("cusparselt-bf16", "forward", "baseline", prepare_sparse, _cusparselt_default, ConfigSpace(CuSparseLtConfig),
           _sparse_unavailable, _resolve_sparse, judged="unquantized"),
    *map(_dense_only, NOT_SPARSE),
    *fakequant.KERNELS,
)  # fmt: skip
