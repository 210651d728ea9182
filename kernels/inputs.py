"""The one generator of inputs: what is timed is what was checked.

Everything is drawn on the device from a seed; equal seeds give equal inputs on one kind of device. `KINDS` names the awkward ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

import torch

from kernels.errors import UsageError
from kernels.problem import Problem
from reference.quantize import quantize_activation, ternary_quantize
from reference.sparsity import nm_mask

Kind = Literal["random", "equal", "zero_rows", "ties", "outlier", "tiny"]
KINDS: tuple[Kind, ...] = ("random", "equal", "zero_rows", "ties", "outlier", "tiny")
ROW_ALIGNMENT = 128

DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "int32": torch.int32}


@dataclass(frozen=True)
class GemmInputs:
    """x_q int8 [T, K] (row stride padded to 128), x_scale float32 [T], w_ternary int8 [N, K] masked, w_scale float32 [splits],
    bias float32 [N]."""

    x_q: torch.Tensor
    x_scale: torch.Tensor
    w_ternary: torch.Tensor
    w_scale: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class LayerInputs:
    """x [T, K] in the problem's dtype, w_ternary int8 [N, K] masked, w_scale float32 [splits], bias float32 [N]."""

    x: torch.Tensor
    w_ternary: torch.Tensor
    w_scale: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class PrepareInputs:
    """w [N, K]: master weight in the problem's dtype."""

    w: torch.Tensor


@dataclass(frozen=True)
class ActivationInputs:
    """x [T, K] in the problem's dtype."""

    x: torch.Tensor


@dataclass(frozen=True)
class TrainInputs:
    """One training step of one layer: x [T, K], master weight w [N, K], output gradient dy [T, N] in the problem's dtype, and what the
    forward pass derives from them: x_q int8 [T, K], x_scale [T], w_ternary int8 [N, K], w_scale [splits]."""

    x: torch.Tensor
    w: torch.Tensor
    dy: torch.Tensor
    x_q: torch.Tensor
    x_scale: torch.Tensor
    w_ternary: torch.Tensor
    w_scale: torch.Tensor


Inputs = GemmInputs | LayerInputs | PrepareInputs | ActivationInputs | TrainInputs
I = TypeVar("I", bound=Inputs)  # noqa: E741


@dataclass(frozen=True)
class Weights:
    """A layer's weight, kept between the cases that share it: master [N, K], w_ternary int8 [N, K], w_scale float32 [splits]."""

    master: torch.Tensor
    w_ternary: torch.Tensor
    w_scale: torch.Tensor


def make_weights(problem: Problem, device: str = "cpu", seed: int = 0, kind: Kind = "random") -> Weights:
    """A master weight of this kind with its mask and ternary values. Raises UsageError where the group does not divide in_features."""
    if problem.refusal:
        raise UsageError(problem.refusal)
    master = _values(problem.out_features, problem.in_features, _float_type(problem), device, seed, kind) * 0.02
    ternary, scale = ternary_quantize(master, problem.splits)
    mask = nm_mask(master, problem.sparsity.n, problem.sparsity.m)
    return Weights(master, ternary * mask, scale)


def make_inputs(problem: Problem, device: str = "cpu", seed: int = 0, kind: Kind = "random", weights: Weights | None = None) -> Inputs:
    """Inputs for a problem's op; `weights` reuses a layer's weight. Raises UsageError where the problem has no answer."""
    if problem.op == "activation":
        return ActivationInputs(_activations(problem, device, seed, kind))
    weights = weights or make_weights(problem, device, seed, kind)
    if problem.op == "prepare":
        return PrepareInputs(weights.master)
    x = _activations(problem, device, seed + 1, kind)
    bias = _values(1, problem.out_features, torch.float32, device, seed + 2, "random")[0] if problem.bias else None
    if problem.op == "layer":
        return LayerInputs(x, weights.w_ternary, weights.w_scale, bias)
    x_q, x_scale = quantize_activation(x)
    if problem.op == "gemm":
        return GemmInputs(pad_rows(x_q), x_scale, weights.w_ternary, weights.w_scale, bias)
    dy = _values(problem.tokens, problem.out_features, _float_type(problem), device, seed + 3, kind) * 0.1
    return TrainInputs(x, weights.master, dy, pad_rows(x_q), x_scale, weights.w_ternary, weights.w_scale)


def pad_rows(x_q: torch.Tensor) -> torch.Tensor:
    """The same int8 [T, K] with its row stride padded to 128 columns, zeros behind; K that fits is returned contiguous."""
    tokens, width = x_q.shape
    padded = -(-width // ROW_ALIGNMENT) * ROW_ALIGNMENT
    if padded == width:
        return x_q.contiguous()
    buffer = torch.zeros((tokens, padded), dtype=x_q.dtype, device=x_q.device)
    buffer[:, :width] = x_q
    return buffer[:, :width]


def clone(inputs: I) -> I:
    """The same values in fresh memory, strides kept: one more set for a cold measurement."""
    tensors: dict[str, Any] = {}
    for entry in fields(inputs):
        value = getattr(inputs, entry.name)
        if isinstance(value, torch.Tensor):
            tensors[entry.name] = pad_rows(value.clone()) if entry.name == "x_q" else value.clone()
    return replace(inputs, **tensors)


def _float_type(problem: Problem) -> torch.dtype:
    return torch.bfloat16 if problem.dtype == "int32" else DTYPES[problem.dtype]


def _activations(problem: Problem, device: str, seed: int, kind: Kind) -> torch.Tensor:
    return _values(problem.tokens, problem.in_features, _float_type(problem), device, seed, kind)


def _values(rows: int, columns: int, dtype: torch.dtype, device: str, seed: int, kind: Kind) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    draw: Callable[..., torch.Tensor] = torch.randn
    values = draw((rows, columns), generator=generator, device=device, dtype=torch.float32)
    if kind == "equal":
        values = torch.full_like(values, 0.75)
    elif kind == "zero_rows":
        values[::3] = 0
    elif kind == "ties":
        values = values.round() + (values >= 0).float() - 0.5
    elif kind == "outlier":
        values[:, columns // 2] = 1000.0
    elif kind == "tiny":
        values = values * 1e-7
    return values.to(dtype)
