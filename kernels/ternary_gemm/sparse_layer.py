"""`sparse-wgmma` and `dense-wgmma` as the layer a user calls: per-token int8 quantization of the activations, lifted where the weight is,
then the GEMM on Hopper's sparse tensor cores, or its dense ones; also the forward pass of training. Two launches.

Y[T, N] = quantize(X) · Wᵀ · x_scale[t] · w_scale[split(n)] + bias from float X and weights in fragment order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch

from kernels.errors import ShapeError
from kernels.inputs import DTYPES, Inputs, LayerInputs, TrainInputs
from kernels.kernel import Kernel, Outputs, Prepared
from kernels.mask_quantize.activation import activation_config, allocate_activation, launch_activation
from kernels.problem import Op, Problem
from kernels.ternary_gemm import sparse_wgmma
from kernels.ternary_gemm.sparse_wgmma import (
    FragmentWeight,
    bind,
    dense_fragment_weight,
    early_units,
    fragment_weight,
    multiprocessors,
)
from kernels.ternary_gemm.sparse_wgmma_config import SparseConfig, default_config, space, unavailable

OPS: tuple[Op, ...] = ("layer", "forward")


class Gemm(Protocol):
    """A GEMM bound to its buffers."""

    @property
    def out(self) -> torch.Tensor:
        """What `launch` writes: [T, N]."""

    def launch(self) -> None:
        """One launch on the current stream."""


Bind = Callable[[torch.Tensor, torch.Tensor, FragmentWeight, "torch.Tensor | None", torch.dtype], Gemm]
"""int8 activations (lifted where the weight is), their scales, weight, bias and type of the result to a GEMM."""


def bind_layer(problem: Problem, inputs: Inputs, gemm_of: Bind, dense: bool = False) -> Prepared:
    """Quantization and a GEMM on fragment weights as one layer; packing is outside of `run`. dense: for the dense tensor cores, unlifted.

    Raises ShapeError for other inputs.
    """
    if not isinstance(inputs, LayerInputs | TrainInputs):
        raise ShapeError(f"{problem.op} takes LayerInputs or TrainInputs, not {type(inputs).__name__}")
    x, dtype, bias = inputs.x, DTYPES[problem.dtype], inputs.bias if isinstance(inputs, LayerInputs) else None
    if x.dim() != 2 or x.shape[1] != problem.in_features or x.dtype != dtype:
        raise ShapeError(f"x is {x.dtype} {list(x.shape)}; {dtype} [tokens, {problem.in_features}] is needed")
    tokens, features = x.shape
    group = problem.sparsity.m if problem.sparsity.lifted and not dense else None
    if dense:
        weight = dense_fragment_weight(inputs.w_ternary, inputs.w_scale, problem.splits)
    else:
        weight = fragment_weight(inputs.w_ternary, inputs.w_scale, problem.splits, problem.sparsity)
    x_q, x_scale = allocate_activation(tokens, features, group, x.device)
    quantize = activation_config(features, tokens)
    gemm = gemm_of(x_q, x_scale, weight, bias, dtype)

    def run() -> Outputs:
        launch_activation(x, x_q, x_scale, group, quantize)
        gemm.launch()
        return {"y": gemm.out}

    footprint = x.nbytes + x_q.numel() + weight.weight_bytes + gemm.out.nbytes
    return Prepared(run, {"y": gemm.out}, footprint, weight.weight_bytes, {"columns": weight.columns})


def prepare(problem: Problem, inputs: Inputs, config: SparseConfig, dense: bool = False) -> Prepared:
    """Bind a layer. Raises ShapeError for other inputs.

    The GEMM asks for its weights while activations are quantized: that launch lets it begin once the launches ahead, a step's preparation
    of the weights among them, have ended.
    """

    def gemm(x_q: torch.Tensor, x_scale: torch.Tensor, weight: FragmentWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> Gemm:
        return bind(x_q, x_scale, weight, bias, dtype, config, multiprocessors(x_q.device), early=True)

    return bind_layer(problem, inputs, gemm, dense)


_, DENSE = sparse_wgmma.KERNELS

KERNELS: tuple[Kernel, ...] = (
    *(Kernel("sparse-wgmma", op, "variant", prepare, default_config, space, unavailable, compile_units=early_units, interpreted=False)
      for op in OPS),
    *(replace(DENSE, op=op, prepare=partial(prepare, dense=True)) for op in OPS),
)
