"""`sparse-mma` as the layer a user calls: per-token int8 quantization of the activations, lifted where the weight is, then the sparse GEMM,
in two launches; also the forward pass of training."""

from __future__ import annotations

from dataclasses import replace

import torch

from kernels.inputs import Inputs
from kernels.kernel import Kernel, Prepared
from kernels.problem import Problem
from kernels.ternary_gemm.sparse_layer import Gemm, bind_layer
from kernels.ternary_gemm.sparse_mma import GEMM, bind
from kernels.ternary_gemm.sparse_mma_config import MmaConfig
from kernels.ternary_gemm.sparse_wgmma import FragmentWeight


def prepare(problem: Problem, inputs: Inputs, config: MmaConfig) -> Prepared:
    """Bind a layer; packing is outside of `run`. Raises ShapeError for other inputs."""

    def gemm(x_q: torch.Tensor, x_scale: torch.Tensor, weight: FragmentWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> Gemm:
        return bind(x_q, x_scale, weight, bias, dtype, config)

    return bind_layer(problem, inputs, gemm)


LAYER = replace(GEMM, op="layer", prepare=prepare)
FORWARD = replace(LAYER, op="forward")
KERNELS: tuple[Kernel, ...] = (LAYER, FORWARD)
