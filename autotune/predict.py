"""What the kernels' own cost models say of their candidates: places to begin a search with, where there is no time to try many."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from kernels.gpu import Gpu
from kernels.problem import DENSE, Problem
from kernels.space import Config
from kernels.ternary_gemm import decode_estimate, sparse_mma_config
from kernels.ternary_gemm.decode_config import DecodeConfig
from kernels.ternary_gemm.sparse_wgmma_config import SparseConfig, estimated_us

Model = Callable[[Problem, Gpu, Config], float]
"""(problem, gpu, config) to a time in units of its own; infinite where it knows nothing of the config."""


def _dense_wgmma_us(problem: Problem, gpu: Gpu, config: SparseConfig) -> float:
    return estimated_us(problem.with_(sparsity=DENSE), gpu, config)


MODELS: Mapping[tuple[str, type[Config]], Model] = {
    ("sparse-wgmma", SparseConfig): estimated_us, ("dense-wgmma", SparseConfig): _dense_wgmma_us,
    ("decode", DecodeConfig): decode_estimate.estimate,
    ("sparse-mma", sparse_mma_config.MmaConfig): sparse_mma_config.estimated_clocks,
}
"""By the kernel's name, the same for all of its ops, and the type of its configs."""


def likely(kernel: str, problem: Problem, gpu: Gpu, configs: Sequence[Config], count: int) -> list[int]:
    """Places of the configs of the least predicted times, least first; none where the kernel has no model."""
    model = MODELS.get((kernel, type(configs[0]))) if configs else None
    if model is None:
        return []
    times = [model(problem, gpu, config) for config in configs]
    return sorted((place for place, time in enumerate(times) if math.isfinite(time)), key=lambda place: times[place])[:count]
