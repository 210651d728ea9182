"""Every library baseline of a gemm and of a layer, in the order in which reports list them. What each is: docs/baselines.md."""

from __future__ import annotations

from kernels.kernel import Kernel
from kernels.ternary_gemm import dense_baselines, fp8_baselines, sparse_baselines

KERNELS: tuple[Kernel, ...] = (*dense_baselines.KERNELS, *fp8_baselines.KERNELS, *sparse_baselines.KERNELS)
