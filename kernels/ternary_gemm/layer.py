"""`dense-triton` as the layer a user calls: per-token int8 quantization of the activations, then the ternary GEMM, in two launches.

Y[T, N] = quantize(X) · Wᵀ · x_scale[t] · w_scale[split(n)] + bias from float X and a 2-bit weight; also the forward pass of training.
"""

from __future__ import annotations

from kernels.errors import ShapeError
from kernels.inputs import DTYPES, Inputs, LayerInputs, TrainInputs
from kernels.kernel import Kernel, Outputs, Prepared
from kernels.mask_quantize.activation import activation_config, allocate_activation, launch_activation
from kernels.packed import pack
from kernels.problem import Problem
from kernels.ternary_gemm.dense_config import DenseConfig, default_config, space
from kernels.ternary_gemm.dense_triton import bind, compile_units, refusal


def _prepare(problem: Problem, inputs: Inputs, config: DenseConfig) -> Prepared:
    if not isinstance(inputs, LayerInputs | TrainInputs):
        raise ShapeError(f"{problem.op} takes LayerInputs or TrainInputs, not {type(inputs).__name__}")
    x, bias = inputs.x, inputs.bias if isinstance(inputs, LayerInputs) else None
    if x.dim() != 2 or x.shape[1] != problem.in_features or x.dtype != DTYPES[problem.dtype]:
        raise ShapeError(f"x is {x.dtype} {list(x.shape)}; {DTYPES[problem.dtype]} [tokens, {problem.in_features}] is needed")
    tokens, features = x.shape
    packed = pack(inputs.w_ternary, inputs.w_scale, problem.splits, problem.sparsity)
    x_q, x_scale = allocate_activation(tokens, features, None, x.device)
    quantize = activation_config(features, tokens)
    gemm = bind(problem, x_q, x_scale, packed, bias, config)

    def run() -> Outputs:
        launch_activation(x, x_q, x_scale, None, quantize)
        gemm.launch(x_q)
        return {"y": gemm.out}

    footprint = x.numel() * x.element_size() + x_q.numel() + packed.weight_bytes + gemm.out.numel() * gemm.out.element_size()
    return Prepared(run, {"y": gemm.out}, footprint, packed.weight_bytes)


KERNELS: tuple[Kernel, ...] = (
    Kernel("dense-triton", "layer", "variant", _prepare, default_config, space, refusal, compile_units=compile_units),
    Kernel("dense-triton", "forward", "variant", _prepare, default_config, space, refusal, compile_units=compile_units),
)
