"""The table of contents: every variant and baseline there is, by plain imports."""

from __future__ import annotations

from kernels.errors import UsageError
from kernels.kernel import Kernel
from kernels.mask_quantize import activation, two_pass
from kernels.mask_quantize import baselines as prepare_baselines
from kernels.problem import Op
from kernels.sparse_backward import baselines as train_baselines
from kernels.sparse_backward import eight_bit_layer, eight_bit_step, input_grad, int8_grad, step, transposable_step, weight_grad
from kernels.ternary_gemm import baselines as gemm_baselines
from kernels.ternary_gemm import decode, dense_triton, layer, sparse_layer, sparse_mma, sparse_mma_layer, sparse_wgmma

# Where estimates are equal, `kernels.choose` takes the first: dense-wgmma before dense-triton (1.4 times its rate at 2,048 tokens and more,
# 1.5 times at 64: H200, 2026-11-22).
KERNELS: tuple[Kernel, ...] = (
    *sparse_wgmma.KERNELS,
    *sparse_layer.KERNELS,
    *dense_triton.KERNELS,
    *layer.KERNELS,
    *sparse_mma.KERNELS,
    *sparse_mma_layer.KERNELS,
    *decode.KERNELS,
    *gemm_baselines.KERNELS,
    *two_pass.KERNELS,
    *activation.KERNELS,
    *prepare_baselines.KERNELS,
    *input_grad.KERNELS,
    *int8_grad.KERNELS,
    *weight_grad.KERNELS,
    *step.KERNELS,
    *eight_bit_layer.KERNELS,
    *eight_bit_step.KERNELS,
    *transposable_step.KERNELS,
    *train_baselines.KERNELS,
)


def kernels_for(op: Op) -> tuple[Kernel, ...]:
    """The kernels of an op, variants before baselines, else in the order of the catalogue."""
    return tuple(sorted((kernel for kernel in KERNELS if kernel.op == op), key=lambda kernel: kernel.kind == "baseline"))


def find(name: str, op: Op) -> Kernel:
    """The kernel of that name for that op; UsageError lists the names there are."""
    for kernel in kernels_for(op):
        if kernel.name == name:
            return kernel
    allowed = ", ".join(kernel.name for kernel in kernels_for(op))
    raise UsageError(f"unknown kernel {name!r} for {op}; allowed: {allowed}")
