"""Which kernels a layer runs, and how each is called: the one place where a variant is chosen (`choose`) and added (the tables below)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from kernels import chooser
from kernels.bitlinear.forward import FORWARD
from kernels.catalogue import kernels_for
from kernels.errors import UsageError
from kernels.gpu import Gpu
from kernels.packed import PackedTernary
from kernels.problem import Problem
from kernels.sparse_backward import eight_bit_layer, input_grad, weight_grad
from kernels.sparse_backward.dequantize import launch_dequantize


@dataclass(frozen=True)
class Choice:
    """The kernels of a layer by name, as in the catalogue; in text joined by "+"."""

    forward: str
    input_grad: str
    weight_grad: str

    def __post_init__(self) -> None:
        tables = {"forward": FORWARD, "input-grad": INPUT_GRAD, "weight-grad": WEIGHT_GRAD}
        for name, (part, table) in zip(astuple(self), tables.items(), strict=True):
            if name not in table:
                raise UsageError(f"unknown {part} kernel {name!r} of a BitLinear; allowed: {', '.join(table)}")

    @classmethod
    def parse(cls, text: str) -> Choice:
        """Read `forward+input-grad+weight-grad`; UsageError lists what is allowed."""
        names = text.split("+")
        if len(names) != 3:
            raise UsageError(f"variants {text!r}: three names joined by + are needed, as dense-triton+unpack-cublas+dequantize-cublas")
        return cls(*names)

    def __str__(self) -> str:
        return "+".join(astuple(self))


def choose(problem: Problem, gpu: Gpu, interpreted: bool = False, path: Path | None = None) -> Choice:
    """The exact variants that are expected to take the least time: the forward pass by `kernels.chooser` among those of the catalogue that
    a layer can call, both gradients through workspaces (the faster ones on an H200: docs/kernels-backward.md).

    problem: a `step` of training, or a `layer` in evaluation; its dtype is that of the activations. interpreted: only what
    Triton's interpreter runs. path: another tuned table than the GPU's own. Raises UsageError with every reason where none can.
    """
    asked = problem.with_(op="layer" if problem.op == "layer" else "forward")
    known = [kernel for kernel in kernels_for(asked.op) if kernel.name in FORWARD and (kernel.interpreted or not interpreted)]
    refused = {kernel.name: FORWARD[kernel.name].refusal(asked, gpu) for kernel in known}
    able = [kernel for kernel in known if refused[kernel.name] is None]
    if not able:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise UsageError(f"no kernel of a BitLinear can do {asked} on {gpu.name}: {reasons}")
    return Choice(chooser.choose(asked, gpu, able, path).kernel.name, "unpack-cublas", "dequantize-cublas")


InputGrad: TypeAlias = Callable[[Problem, Gpu, torch.Tensor, PackedTernary], torch.Tensor]
"""dx [T, K] in dy's type from dy [T, N]."""

WeightGrad: TypeAlias = Callable[[Problem, Gpu, torch.Tensor, torch.Tensor, torch.Tensor, torch.dtype], torch.Tensor]
"""dw [N, K] in the given type from dy [T, N], x_q int8 [T, K] and x_scale [T]."""


def _unpack_cublas(problem: Problem, gpu: Gpu, dy: torch.Tensor, packed: PackedTernary) -> torch.Tensor:
    weight = torch.empty((problem.out_features, problem.in_features), dtype=dy.dtype, device=dy.device)
    input_grad.launch_unpack(packed, weight)
    return torch.mm(dy, weight)


def _unpack_dot(problem: Problem, gpu: Gpu, dy: torch.Tensor, packed: PackedTernary) -> torch.Tensor:
    dx = torch.empty((problem.tokens, problem.in_features), dtype=dy.dtype, device=dy.device)
    input_grad.launch_input_grad(dy, packed, dx, input_grad.default_config(problem, gpu))
    return dx


def _dequantize_cublas(problem: Problem, gpu: Gpu, dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor,
                       dtype: torch.dtype) -> torch.Tensor:
    x = torch.empty(x_q.shape, dtype=dy.dtype, device=dy.device)
    launch_dequantize(x_q, x_scale, x)
    if dtype == torch.float32 and dy.dtype != dtype and dy.is_cuda:
        return torch.mm(dy.t(), x, out_dtype=dtype)  # not rounded to dy's type on its way into a float32 gradient
    return torch.mm(dy.t(), x).to(dtype)


def _convert_dot(problem: Problem, gpu: Gpu, dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor,
                 dtype: torch.dtype) -> torch.Tensor:
    dw = torch.empty((problem.out_features, problem.in_features), dtype=dtype, device=dy.device)
    config = weight_grad.default_config(problem, gpu)
    parts = weight_grad.workspace(problem.out_features, problem.in_features, config, dy.device)
    weight_grad.launch_weight_grad(dy, x_q, x_scale, dw, parts, config)
    return dw


INPUT_GRAD: Mapping[str, InputGrad] = {
    "unpack-cublas": _unpack_cublas, "unpack-dot": _unpack_dot, "int8-wgmma": eight_bit_layer.layer_input_grad,
}  # fmt: skip
WEIGHT_GRAD: Mapping[str, WeightGrad] = {
    "dequantize-cublas": _dequantize_cublas, "convert-dot": _convert_dot, "int8-triton": eight_bit_layer.layer_weight_grad,
}  # fmt: skip
"""The 8-bit ones are not exact: never chosen, only named."""

