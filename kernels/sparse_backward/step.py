"""One training step of one linear layer: master weight to mask + ternary + 2-bit codes once, activations to int8 once, then Y, dX and dW.

`exact-triton` reads 2-bit weights and int8 activations in all three GEMMs and needs no bf16 copy of either. `exact-cublas` writes the
dequantized weight (as the packing pass goes) and the dequantized activations to workspaces and lets cuBLAS make both gradients;
`exact-mixed` does so for dX alone. `kernels.sparse_backward.sparse_step` runs Y on sparse tensor cores. All allocate before the first
call, never synchronize, and can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kernels.gpu import Gpu
from kernels.inputs import Inputs
from kernels.kernel import CompileUnit, Kernel, Outputs, Prepared
from kernels.mask_quantize.activation import ActivationConfig, activation_config, allocate_activation, launch_activation
from kernels.mask_quantize.two_pass import PrepareBuffers, TwoPassConfig, allocate_prepare, check_weight, launch_prepare
from kernels.packed import PackedTernary
from kernels.problem import Problem
from kernels.space import ConfigSpace
from kernels.sparse_backward import input_grad, sparse_step, weight_grad
from kernels.sparse_backward.dequantize import launch_dequantize
from kernels.sparse_backward.input_grad import InputGradConfig, check_gradient, launch_input_grad, train_inputs
from kernels.sparse_backward.weight_grad import WeightGradConfig, launch_weight_grad
from kernels.ternary_gemm import dense_triton
from kernels.ternary_gemm.dense_config import DenseConfig, default_config


@dataclass(frozen=True)
class StepConfig:
    """The configs of a step's parts, also as plain JSON data; input_grad or weight_grad None: through a workspace and cuBLAS."""

    prepare: TwoPassConfig
    activation: ActivationConfig
    gemm: DenseConfig
    input_grad: InputGradConfig | None
    weight_grad: WeightGradConfig | None

    def __post_init__(self) -> None:
        types: dict[str, type[Any]] = {"gemm": DenseConfig, "input_grad": InputGradConfig, "weight_grad": WeightGradConfig,
                                       "prepare": TwoPassConfig, "activation": ActivationConfig}  # fmt: skip
        for name, kind in types.items():
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, kind(**value))


@dataclass(frozen=True)
class Workspaces:
    """What the gradients need besides inputs and outputs: bf16 weight [N, K] and activations [T, K] for cuBLAS, float32 parts of dW."""

    weight: torch.Tensor | None
    x: torch.Tensor | None
    parts: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(tensor.nbytes for tensor in (self.weight, self.x, self.parts) if tensor is not None)


def _workspaces(problem: Problem, config: StepConfig, device: torch.device) -> Workspaces:
    shape = (problem.out_features, problem.in_features)
    weight = torch.empty(shape, dtype=torch.bfloat16, device=device) if config.input_grad is None else None
    if config.weight_grad is None:
        return Workspaces(weight, torch.empty((problem.tokens, shape[1]), dtype=torch.bfloat16, device=device), None)
    return Workspaces(weight, None, weight_grad.workspace(*shape, config.weight_grad, device))


def prepare_step(problem: Problem, inputs: Inputs, config: StepConfig) -> Prepared:
    """Bind a step: everything from the master weight and the bf16 activations to y, dx and dw is inside of `run`."""
    data = train_inputs(inputs)
    check_weight(data.w, problem.sparsity, problem.splits)
    check_gradient(data.dy, problem.out_features)
    device = data.w.device
    buffers = allocate_prepare(problem.out_features, problem.in_features, problem.splits, device)
    packed = PackedTernary(buffers.packed, buffers.w_scale, problem.splits, problem.in_features, problem.sparsity)
    x_q, x_scale = allocate_activation(problem.tokens, problem.in_features, None, device)
    gemm = dense_triton.bind(problem, x_q, x_scale, packed, None, config.gemm)
    dx, dw = torch.empty_like(data.x), torch.empty_like(data.w)
    spaces = _workspaces(problem, config, device)
    outputs = {"y": gemm.out, "dx": dx, "dw": dw, "packed": buffers.packed, "w_scale": buffers.w_scale, "inv_scale": buffers.inv_scale}
    packed.split_ends  # noqa: B018 (made here, outside of any graph capture)

    def run() -> Outputs:
        _prepare_weight(problem, data.w, buffers, spaces.weight, config)
        launch_activation(data.x, x_q, x_scale, None, config.activation)
        gemm.launch(x_q)
        if config.input_grad is not None:
            launch_input_grad(data.dy, packed, dx, config.input_grad)
        elif spaces.weight is not None:
            torch.matmul(data.dy, spaces.weight, out=dx)
        if config.weight_grad is not None:
            launch_weight_grad(data.dy, x_q, x_scale, dw, spaces.parts, config.weight_grad)
        elif spaces.x is not None:
            launch_dequantize(x_q, x_scale, spaces.x)
            torch.matmul(data.dy.t(), spaces.x, out=dw)
        return outputs

    made = packed.weight_bytes + x_q.numel() + x_scale.nbytes + spaces.nbytes
    touched = data.w.nbytes + data.x.nbytes + data.dy.nbytes + gemm.out.nbytes + dx.nbytes + dw.nbytes + made
    rounded = "outputs, x_q · x_scale for dw" + ("" if config.input_grad else ", w_scale for dx")
    return Prepared(run, outputs, touched, packed.weight_bytes, {"rounded": rounded, "workspace_bytes": spaces.nbytes})


def _prepare_weight(problem: Problem, w: torch.Tensor, buffers: PrepareBuffers, w_fake: torch.Tensor | None, config: StepConfig) -> None:
    launch_prepare(w, buffers.packed, buffers.w_scale, buffers.inv_scale, buffers.workspace, problem.sparsity, problem.splits,
                   config.prepare, w_fake=w_fake)  # fmt: skip


def _default(fused_dx: bool, fused_dw: bool, problem: Problem, gpu: Gpu) -> StepConfig:
    return StepConfig(
        TwoPassConfig(),
        activation_config(problem.in_features, problem.tokens),
        default_config(problem, gpu),
        input_grad.default_config(problem, gpu) if fused_dx else None,
        weight_grad.default_config(problem, gpu) if fused_dw else None,
    )


def _unavailable(workspaces: bool, problem: Problem, gpu: Gpu) -> str | None:
    if workspaces and problem.dtype != "bf16":
        return f"the workspaces are bf16, the problem is {problem.dtype}"
    return input_grad.unavailable(problem, gpu) or dense_triton.refusal(problem, gpu)


def compile_units(problem: Problem, config: StepConfig) -> Sequence[CompileUnit]:
    """The GEMMs of the step as the problem and the config make them."""
    units = list(dense_triton.compile_units(problem, config.gemm))
    units += input_grad.compile_units(problem, config.input_grad) if config.input_grad else ()
    units += weight_grad.compile_units(problem, config.weight_grad) if config.weight_grad else ()
    return units


def _kernel(name: str, fused_dx: bool, fused_dw: bool) -> Kernel:
    return Kernel(
        name, "step", "variant", prepare_step, partial(_default, fused_dx, fused_dw), ConfigSpace(StepConfig),
        partial(_unavailable, not (fused_dx and fused_dw)), judged="gradient", compile_units=compile_units,
    )  # fmt: skip


KERNELS: tuple[Kernel, ...] = (
    _kernel("exact-triton", True, True),
    _kernel("exact-cublas", False, False),
    _kernel("exact-mixed", False, True),
    *sparse_step.KERNELS,
)
