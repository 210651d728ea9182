"""`dense-triton` as the layer a user calls: per-token int8 quantization of the activations, then the ternary GEMM, in two launches.

Y[T, N] = quantize(X) · Wᵀ · x_scale[t] · w_scale[split(n)] + bias from float X and a 2-bit weight; also the forward pass of training.
"""

from __future__ import annotations

import torch

from kernels.errors import ShapeError
from kernels.inputs import DTYPES, ROW_ALIGNMENT, Inputs, LayerInputs, TrainInputs
from kernels.kernel import Kernel, Outputs, Prepared
from kernels.mask_quantize.activation import ActivationConfig, launch_activation
from kernels.packed import PackedTernary, pack
from kernels.problem import Problem
from kernels.ternary_gemm.dense_config import DenseConfig, default_config, space
from kernels.ternary_gemm.dense_triton import Gemm, bind, compile_units, refusal


def _prepare(problem: Problem, inputs: Inputs, config: DenseConfig) -> Prepared:
    if not isinstance(inputs, LayerInputs | TrainInputs):
        raise ShapeError(f"{problem.op} takes LayerInputs or TrainInputs, not {type(inputs).__name__}")
    bias = inputs.bias if isinstance(inputs, LayerInputs) else None
    packed = pack(inputs.w_ternary, inputs.w_scale, problem.splits, problem.sparsity)
    x, x_q, gemm = inputs.x, *_buffers(problem, inputs.x, packed, bias, config)

    def run() -> Outputs:
        launch_activation(x, x_q, gemm.x_scale, None, ActivationConfig())
        gemm.launch(x_q)
        return {"y": gemm.out}

    read = x.numel() * x.element_size() + 2 * x_q.numel() + 8 * x.shape[0]
    footprint = read + packed.weight_bytes + gemm.out.numel() * gemm.out.element_size()
    return Prepared(run, {"y": gemm.out}, footprint, packed.weight_bytes)


def _buffers(problem: Problem, x: torch.Tensor, packed: PackedTernary, bias: torch.Tensor | None,
             config: DenseConfig) -> tuple[torch.Tensor, Gemm]:
    """int8 activations with rows padded to 128 columns, and the GEMM that reads them."""
    if x.dim() != 2 or x.shape[1] != problem.in_features or x.dtype != DTYPES[problem.dtype]:
        raise ShapeError(f"x is {x.dtype} {list(x.shape)}; {DTYPES[problem.dtype]} [tokens, {problem.in_features}] is needed")
    tokens, features = x.shape
    padded = -(-features // ROW_ALIGNMENT) * ROW_ALIGNMENT
    x_q = torch.empty((tokens, padded), dtype=torch.int8, device=x.device)[:, :features]
    x_scale = torch.empty(tokens, dtype=torch.float32, device=x.device)
    return x_q, bind(problem, x_q, x_scale, packed, bias, config)


KERNELS: tuple[Kernel, ...] = (
    Kernel("dense-triton", "layer", "variant", _prepare, default_config, space, refusal, compile_units=compile_units),
    Kernel("dense-triton", "forward", "variant", _prepare, default_config, space, refusal, compile_units=compile_units),
)
