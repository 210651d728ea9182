"""dX[T, K] = dY[T, N] · Ŵ in bf16 on Hopper's sparse tensor cores, for a ternary Ŵ that is 2:4 along out_features too.

dY goes to the tensor cores as it is, Ŵ as ± its scale rounded to bf16, from 4 bits a weight (`wide_fragments`); sums are float32. Floor:
half the time of a dense bf16 product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels.errors import ShapeError
from kernels.gpu import Gpu
from kernels.kernel import CompileUnit
from kernels.problem import DENSE, Problem
from kernels.sparse_backward.wide_fragments import STEP
from kernels.ternary_gemm import sparse_wgmma, sparse_wgmma_config
from kernels.ternary_gemm.dense_triton import MAX_IN_FEATURES, is_aligned
from kernels.ternary_gemm.sparse_wgmma import FragmentWeight, SparseGemm, padded_rows
from kernels.ternary_gemm.sparse_wgmma_config import COST, SparseConfig, most_stages
from kernels.ternary_gemm.sparse_wgmma_ptx import CONSUMERS

WIDTH = 2
"""Columns of int8 that a column of bf16 takes."""


def bind(dy: torch.Tensor, blocks: torch.Tensor, in_features: int, config: SparseConfig, processors: int) -> SparseGemm:
    """The GEMM with its output allocated. dy: bf16 [T, N] in contiguous rows at multiples of 16 bytes. blocks: int32 of the transpose
    [in_features, N]. Raises ShapeError before anything runs."""
    rows = dy.dtype == torch.bfloat16 and dy.stride(1) == 1
    codes = dy.view(torch.int8) if rows else dy
    if not rows or (dy.numel() and not is_aligned(codes)) or in_features % 8 or config.splits > 1:
        raise ShapeError(f"dy is {dy.dtype} {list(dy.shape)} {dy.stride()}, in_features {in_features}, {config}; bf16 rows at multiples of "
                         "16 bytes, a multiple of 8 and whole tiles are needed")
    ones = padded_rows(torch.ones(in_features, device=dy.device), in_features)
    columns = codes.shape[1]
    weight = FragmentWeight(blocks, ones, in_features, columns, columns, sparse=True, wide=True)
    tokens = torch.ones(dy.shape[0], device=dy.device)
    return sparse_wgmma.bind(codes, tokens, weight, None, torch.bfloat16, config, processors)


def default_config(problem: Problem, gpu: Gpu) -> SparseConfig:
    """The whole tile with the least time by the 8-bit GEMM's costs, for the problem of a step or of dX."""
    steps = -(-problem.out_features // STEP) // 2 + 1

    def time(tile: tuple[int, int]) -> float:
        tiles = -(-problem.in_features // (CONSUMERS * 64 * tile[0])) * -(-max(1, problem.tokens) // tile[1])
        step, rest = COST[tile]
        return -(-tiles // max(1, gpu.sms)) * (steps * step + rest)

    best = min(COST, key=time)
    return SparseConfig(*best, most_stages(*best, 1, gpu.shared_bytes))


def unavailable(problem: Problem, gpu: Gpu) -> str | None:
    """Why dX of a step cannot be made so, or None: Hopper, bf16, sizes that TMA and the scales take."""
    if problem.dtype != "bf16":
        return f"gradients are bf16, not {problem.dtype}"
    if problem.in_features % 8 or problem.out_features % 8:
        return f"{problem.out_features}x{problem.in_features}: both must be multiples of 8"
    ends = [sum(problem.splits[: i + 1]) for i in range(len(problem.splits) - 1)]
    if any(end % STEP for end in ends):
        return f"splits {problem.splits} do not end at multiples of {STEP}, the columns of a scale"
    if WIDTH * problem.out_features > MAX_IN_FEATURES:
        return f"out_features {problem.out_features} is too large"
    return sparse_wgmma_config.unavailable(problem, gpu)


def compile_units(problem: Problem, config: SparseConfig) -> Sequence[CompileUnit]:
    """The kernel as a step and the config make it."""
    transposed = Problem("gemm", problem.in_features, problem.out_features, problem.tokens, DENSE)
    return sparse_wgmma.compile_units(transposed, config, "wide")
