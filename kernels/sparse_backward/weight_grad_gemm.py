"""dW's GEMM of 8-bit gradients: `int8_wgmma` where it runs, else `dense-int8-triton`'s kernel. Both give the same bits.

Problems are the GEMM's: out_features are its tokens, in_features its out_features, and tokens are summed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch

from kernels.gpu import Gpu
from kernels.inputs import DTYPES
from kernels.kernel import CompileUnit
from kernels.problem import Problem
from kernels.ternary_gemm import dense_config, dense_triton, int8_wgmma, int8_wgmma_config, sparse_wgmma
from kernels.ternary_gemm.dense_config import DenseConfig
from kernels.ternary_gemm.dense_triton import Int8Weight
from kernels.ternary_gemm.int8_wgmma_config import Int8Config

GemmConfig: TypeAlias = Int8Config | DenseConfig
INT8_GEMM = next(kernel for kernel in dense_triton.KERNELS if kernel.name == "dense-int8-triton")
"""The dense GEMM of two int8 operands in plain Triton."""


class BoundGemm(Protocol):
    """A GEMM bound to its buffers; out: [out_features, in_features]."""

    @property
    def out(self) -> torch.Tensor:
        """dw [N, K]."""

    def launch(self) -> None:
        """One launch on the current stream."""


@dataclass(frozen=True)
class TritonGemm:
    """`dense-int8-triton`'s GEMM and its first operand."""

    gemm: dense_triton.Gemm
    codes: torch.Tensor

    @property
    def out(self) -> torch.Tensor:
        """dw [N, K]."""
        return self.gemm.out

    def launch(self) -> None:
        """One launch on the current stream."""
        self.gemm.launch(self.codes)


def gemm_config(value: GemmConfig | Mapping[str, Any]) -> GemmConfig:
    """A config, also from plain JSON data."""
    if isinstance(value, Mapping):
        return Int8Config(**value) if "pair" in value else DenseConfig(**value)
    return value


def bind(problem: Problem, codes: torch.Tensor, scale: torch.Tensor, x_t: torch.Tensor, config: GemmConfig) -> BoundGemm:
    """The GEMM with its output allocated. codes: int8 [N, T], x_t: int8 [K, T], rows padded to 128 with zeros; scale: float32 [N]. Raises
    ShapeError."""
    if isinstance(config, Int8Config):
        return int8_wgmma.bind(codes, scale, x_t, DTYPES[problem.dtype], config, sparse_wgmma.multiprocessors(codes.device))
    return TritonGemm(dense_triton.bind(problem, codes, scale, rows_as_weight(x_t), None, config), codes)


def rows_as_weight(x_t: torch.Tensor) -> Int8Weight:
    """Transposed activations [K, T] as the second operand of the Triton GEMM, with their padding and the scale 1."""
    features, tokens = x_t.shape
    whole = x_t.as_strided((features, x_t.stride(0)), (x_t.stride(0), 1)) if tokens else x_t
    ends = torch.full((1,), features, dtype=torch.int32, device=x_t.device)  # a copy from the host would synchronize
    return Int8Weight(whole, torch.ones(1, device=x_t.device), ends, (features,), tokens)


def default_config(problem: Problem, gpu: Gpu) -> GemmConfig:
    """Of `int8_wgmma` on Hopper; elsewhere tiles of 128 × 128 where they fill the GPU twice, in groups where a row of them is long; else
    the heuristic for few tiles."""
    if int8_wgmma_config.unavailable(problem, gpu) is None:
        return int8_wgmma_config.default_config(problem, gpu)
    tiles = -(-problem.tokens // 128) * -(-problem.out_features // 128)
    if tiles >= 2 * gpu.sms:
        return DenseConfig(128, 128, 128, num_warps=4, num_stages=3, group=8 if problem.out_features > 8192 else 1)
    return dense_config.int8_default_config(problem, gpu)


def compile_units(problem: Problem, config: GemmConfig) -> Sequence[CompileUnit]:
    """The GEMM as the problem and the config make it."""
    return int8_wgmma.compile_units(problem, config) if isinstance(config, Int8Config) else INT8_GEMM.compile_units(problem, config)
