"""`sparse-mma` as the layer a user calls: per-token int8 quantization of the activations, lifted where the weight is, then the sparse GEMM,
in two launches; also the forward pass of training."""

from __future__ import annotations

from dataclasses import replace

from kernels.errors import ShapeError
from kernels.inputs import DTYPES, Inputs, LayerInputs, TrainInputs
from kernels.kernel import Kernel, Outputs, Prepared
from kernels.mask_quantize.activation import activation_config, allocate_activation, launch_activation
from kernels.problem import Problem
from kernels.ternary_gemm.sparse_mma import GEMM, bind
from kernels.ternary_gemm.sparse_mma_config import MmaConfig
from kernels.ternary_gemm.sparse_wgmma import fragment_weight


def prepare(problem: Problem, inputs: Inputs, config: MmaConfig) -> Prepared:
    """Bind a layer; packing is outside of `run`. Raises ShapeError for other inputs."""
    if not isinstance(inputs, LayerInputs | TrainInputs):
        raise ShapeError(f"{problem.op} takes LayerInputs or TrainInputs, not {type(inputs).__name__}")
    x, dtype, bias = inputs.x, DTYPES[problem.dtype], inputs.bias if isinstance(inputs, LayerInputs) else None
    if x.dim() != 2 or x.shape[1] != problem.in_features or x.dtype != dtype:
        raise ShapeError(f"x is {x.dtype} {list(x.shape)}; {dtype} [tokens, {problem.in_features}] is needed")
    tokens, features = x.shape
    group = problem.sparsity.m if problem.sparsity.lifted else None
    weight = fragment_weight(inputs.w_ternary, inputs.w_scale, problem.splits, problem.sparsity)
    x_q, x_scale = allocate_activation(tokens, features, group, x.device)
    quantize = activation_config(features, tokens)
    gemm = bind(x_q, x_scale, weight, bias, dtype, config)

    def run() -> Outputs:
        launch_activation(x, x_q, x_scale, group, quantize)
        gemm.launch()
        return {"y": gemm.out}

    footprint = x.nbytes + x_q.numel() + weight.weight_bytes + gemm.out.nbytes
    return Prepared(run, {"y": gemm.out}, footprint, weight.weight_bytes, {"columns": weight.columns})


LAYER = replace(GEMM, op="layer", prepare=prepare)
FORWARD = replace(LAYER, op="forward")
KERNELS: tuple[Kernel, ...] = (LAYER, FORWARD)
