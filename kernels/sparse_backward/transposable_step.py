"""`bf16-transposable`: one training step with bf16 gradients and a mask that is 2:4 both ways, so that two of the three GEMMs are sparse.

Y from int8 activations on `sparse-wgmma`; dX = dY · Ŵ in bf16 on the same tensor cores (`wide_gemm`); dW by cuBLAS from the dequantized
activations, which are saved in bf16. Each is exact as in `exact-sparse-wide`, for another mask than the problem's: so it is no exact
variant of the case, and judged with that mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kernels.gpu import Gpu
from kernels.inputs import DTYPES, Inputs
from kernels.kernel import CompileUnit, Kernel, Note, Outputs, Prepared
from kernels.mask_quantize import transposable
from kernels.mask_quantize.activation import ActivationConfig, activation_config, allocate_activation, launch_activation
from kernels.mask_quantize.two_pass import TwoPassConfig, check_weight
from kernels.problem import Problem
from kernels.space import ConfigSpace
from kernels.sparse_backward import sparse_step, wide_fragments, wide_gemm
from kernels.sparse_backward.eight_bit_step import allocate_weight
from kernels.sparse_backward.input_grad import check_gradient, train_inputs
from kernels.sparse_backward.wide_fragments import launch_widen, wide_shape
from kernels.ternary_gemm import sparse_wgmma
from kernels.ternary_gemm.sparse_wgmma_config import SparseConfig


@dataclass(frozen=True)
class TransposableConfig:
    """The configs of a step's parts, also as plain JSON data."""

    prepare: TwoPassConfig
    activation: ActivationConfig
    forward: SparseConfig
    input_grad: SparseConfig

    def __post_init__(self) -> None:
        types: dict[str, type[Any]] = {"prepare": TwoPassConfig, "activation": ActivationConfig, "forward": SparseConfig,
                                       "input_grad": SparseConfig}  # fmt: skip
        for name, kind in types.items():
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, kind(**value))


def prepare_step(problem: Problem, inputs: Inputs, config: TransposableConfig) -> Prepared:
    """Bind a step: everything from the master weight and the bf16 activations to y, dx and dw is inside of `run`."""
    data = train_inputs(inputs)
    check_weight(data.w, problem.sparsity, problem.splits)
    check_gradient(data.dy, problem.out_features)
    device, (rows, columns) = data.w.device, data.w.shape
    weight, processors = allocate_weight(problem, device, both_ways=True), sparse_wgmma.multiprocessors(device)
    wide = torch.empty(wide_shape(columns, rows), dtype=torch.int32, device=device)
    x_q, x_scale = allocate_activation(problem.tokens, columns, None, device)
    y = sparse_wgmma.bind(x_q, x_scale, weight.forward, None, DTYPES[problem.dtype], config.forward, processors)
    dx = wide_gemm.bind(data.dy, wide, columns, config.input_grad, processors)
    x_wide, dw = torch.empty_like(data.x), torch.empty_like(data.w)
    outputs = {"y": y.out, "dx": dx.out, "dw": dw, "w_scale": weight.made.w_scale, "inv_scale": weight.made.inv_scale}

    def run() -> Outputs:
        weight.launch(data.w, config.prepare)
        launch_widen(weight.backward.blocks, wide, weight.made.w_scale, weight.made.workspace.bounds)
        launch_activation(data.x, x_q, x_scale, None, config.activation, x_wide)
        y.launch()
        dx.launch()
        torch.matmul(data.dy.t(), x_wide, out=dw)
        return outputs

    workspace, stored = x_q.numel() + x_scale.nbytes, weight.weight_bytes + wide.nbytes
    touched = data.w.nbytes + 2 * data.x.nbytes + data.dy.nbytes + y.out.nbytes + dx.out.nbytes + dw.nbytes + stored + workspace
    notes: dict[str, Note] = {"rounded": "outputs, x_q · x_scale for dw, w_scale for dx", "mask": "transposable",
                              "saved_activation_bytes": x_wide.nbytes, "workspace_bytes": workspace}  # fmt: skip
    return Prepared(run, {**outputs, "x_wide": x_wide, "wide": wide}, touched, stored, notes)


def default_config(problem: Problem, gpu: Gpu) -> TransposableConfig:
    """The default config of every part."""
    step = sparse_step.default_config(problem, gpu)
    return TransposableConfig(step.prepare, activation_config(problem.in_features, problem.tokens), step.gemm,
                              wide_gemm.default_config(problem, gpu))  # fmt: skip


def unavailable(problem: Problem, gpu: Gpu) -> str | None:
    """Why a step cannot run so, or None: 2:4, bf16, Hopper, sizes that the sparse bf16 GEMM takes."""
    if not problem.tokens:
        return "no tokens to multiply"
    return sparse_step.unavailable(problem, gpu) or transposable.unavailable(problem) or wide_gemm.unavailable(problem, gpu)


def compile_units(problem: Problem, config: TransposableConfig) -> Sequence[CompileUnit]:
    """The packing passes and both sparse GEMMs as the problem and the config make them."""
    splits = len(problem.splits)
    return [transposable.compile_unit(DTYPES[problem.dtype], splits), wide_fragments.compile_unit(splits),
            *sparse_wgmma.compile_units(problem, config.forward), *wide_gemm.compile_units(problem, config.input_grad)]  # fmt: skip


KERNELS: tuple[Kernel, ...] = (
    Kernel("bf16-transposable", "step", "variant", prepare_step, default_config, ConfigSpace(TransposableConfig), unavailable,
           exact=False, judged="transposable", compile_units=compile_units, interpreted=False),
)  # fmt: skip
