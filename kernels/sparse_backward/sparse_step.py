"""One training step of one linear layer with a 2:4 weight whose forward GEMM runs on Hopper's sparse tensor cores.

`exact-sparse`: the packing pass writes the 2:4 weight in the order of the tensor cores (layout fragment24) and, for dX, in bf16; Y from
int8 activations on `sparse-wgmma`; dX from the bf16 weight, dW from the saved int8 activations dequantized to a workspace, both by cuBLAS.
`exact-sparse-wide`: the activation pass also writes the dequantized activations in bf16, which are saved instead of the int8 ones: one read
of them less, and the memory of an ordinary layer. Both compute the same function, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kernels.gpu import Gpu
from kernels.inputs import DTYPES, Inputs
from kernels.kernel import CompileUnit, Kernel, Note, Outputs, Prepared
from kernels.mask_quantize import fragment_pack
from kernels.mask_quantize.activation import ActivationConfig, activation_config, allocate_activation, launch_activation
from kernels.mask_quantize.fragment_pack import allocate_fragments, launch_fragments
from kernels.mask_quantize.two_pass import TwoPassConfig, check_weight
from kernels.problem import Problem
from kernels.space import ConfigSpace
from kernels.sparse_backward import input_grad
from kernels.sparse_backward.dequantize import launch_dequantize
from kernels.sparse_backward.input_grad import check_gradient, train_inputs
from kernels.ternary_gemm import sparse_wgmma, sparse_wgmma_config
from kernels.ternary_gemm.sparse_wgmma import ROW_PADDING, FragmentWeight
from kernels.ternary_gemm.sparse_wgmma_config import SparseConfig


@dataclass(frozen=True)
class SparseStepConfig:
    """The configs of a step's parts, also as plain JSON data."""

    prepare: TwoPassConfig
    activation: ActivationConfig
    gemm: SparseConfig

    def __post_init__(self) -> None:
        types: dict[str, type[Any]] = {"prepare": TwoPassConfig, "activation": ActivationConfig, "gemm": SparseConfig}
        for name, kind in types.items():
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, kind(**value))


def prepare_step(problem: Problem, inputs: Inputs, config: SparseStepConfig, *, wide: bool) -> Prepared:
    """Bind a step: everything from the master weight and the bf16 activations to y, dx and dw is inside of `run`."""
    data = train_inputs(inputs)
    check_weight(data.w, problem.sparsity, problem.splits)
    check_gradient(data.dy, problem.out_features)
    device, (rows, columns) = data.w.device, data.w.shape
    weight = allocate_fragments(rows, columns, problem.splits, device, ROW_PADDING)
    x_q, x_scale = allocate_activation(problem.tokens, columns, None, device)
    fragments = FragmentWeight(weight.blocks, weight.row_scale, rows, columns, columns, sparse=True)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    gemm = sparse_wgmma.bind(x_q, x_scale, fragments, None, DTYPES[problem.dtype], config.gemm, processors)
    w_fake, x_wide = torch.empty_like(data.w), torch.empty_like(data.x)
    dx, dw = torch.empty_like(data.x), torch.empty_like(data.w)
    outputs = {"y": gemm.out, "dx": dx, "dw": dw, "w_fake": w_fake, "w_scale": weight.w_scale, "inv_scale": weight.inv_scale}

    def run() -> Outputs:
        launch_fragments(data.w, weight, config.prepare, w_fake)
        launch_activation(data.x, x_q, x_scale, None, config.activation, x_wide if wide else None)
        gemm.launch()
        torch.matmul(data.dy, w_fake, out=dx)
        if not wide:
            launch_dequantize(x_q, x_scale, x_wide)
        torch.matmul(data.dy.t(), x_wide, out=dw)
        return outputs

    made = fragments.weight_bytes + x_q.numel() + x_scale.nbytes + w_fake.nbytes + x_wide.nbytes
    touched = data.w.nbytes + data.x.nbytes + data.dy.nbytes + gemm.out.nbytes + dx.nbytes + dw.nbytes + made
    saved = x_wide.nbytes if wide else x_q.numel() + x_scale.nbytes
    notes: dict[str, Note] = {"rounded": "outputs, x_q · x_scale for dw, w_scale for dx", "saved_activation_bytes": saved,
                              "workspace_bytes": w_fake.nbytes + (0 if wide else x_wide.nbytes)}  # fmt: skip
    buffers = {**outputs, "blocks": weight.blocks, "x_wide": x_wide}
    return Prepared(run, buffers, touched, fragments.weight_bytes, notes)


def default_config(problem: Problem, gpu: Gpu) -> SparseStepConfig:
    """The default config of every part."""
    activation = activation_config(problem.in_features, problem.tokens)
    return SparseStepConfig(TwoPassConfig(), activation, sparse_wgmma_config.default_config(problem, gpu))


def unavailable(problem: Problem, gpu: Gpu) -> str | None:
    """Why a step cannot run so, or None: 2:4, bf16, Hopper."""
    if problem.dtype != "bf16":
        return f"the workspaces are bf16, the problem is {problem.dtype}"
    return fragment_pack.unavailable(problem) or sparse_wgmma_config.unavailable(problem, gpu) or input_grad.unavailable(problem, gpu)


def compile_units(problem: Problem, config: SparseStepConfig) -> Sequence[CompileUnit]:
    """The packing pass and the GEMM as the problem and the config make them."""
    return [*fragment_pack.compile_units(problem, w_fake=True), *sparse_wgmma.compile_units(problem, config.gemm)]


def _kernel(name: str, wide: bool) -> Kernel:
    return Kernel(name, "step", "variant", partial(prepare_step, wide=wide), default_config, ConfigSpace(SparseStepConfig), unavailable,
                  judged="gradient", compile_units=compile_units, interpreted=False)  # fmt: skip


KERNELS: tuple[Kernel, ...] = (_kernel("exact-sparse", wide=False), _kernel("exact-sparse-wide", wide=True))
