"""The operators of the backward pass, and what an autograd function keeps for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kernels.bitlinear.known import Layer, layer_like, layer_of, tokens_of
from kernels.bitlinear.operator import on, operator
from kernels.bitlinear.pack import KernelPack, ReferencePack, runs_kernels
from kernels.bitlinear.packs import GRADIENT, pack_of
from kernels.bitlinear.small_kernels import launch_flag
from kernels.bitlinear.variants import INPUT_GRAD, WEIGHT_GRAD, Choice
from kernels.errors import UsageError
from reference.linear import input_grad, weight_grad


def codes_of(saved: torch.Tensor, in_features: int) -> torch.Tensor:
    """[T, K] of codes [T, K padded to 128]."""
    return saved if saved.shape[1] == in_features else saved[:, :in_features]


def _fake_input_grad(dy: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    return dy.new_empty((*dy.shape[:-1], weight.shape[1]))


@operator(_fake_input_grad)
def bitlinear_input_grad(dy: torch.Tensor, weight: torch.Tensor, sparsity: str, splits: Sequence[int], variants: str) -> torch.Tensor:
    """dx [..., K] in dy's type: dy [..., N] times the masked ternary weight and its scales."""
    layer = layer_of(dy, weight, dy.dtype, sparsity, splits, variants)
    with on(dy):
        return _input_grad(_rows(dy), weight, layer).view(*dy.shape[:-1], weight.shape[1])


def _rows(dy: torch.Tensor) -> torch.Tensor:
    """[T, N], contiguous, of [..., N]."""
    return dy.reshape(tokens_of(dy), dy.shape[-1]).contiguous()


def _input_grad(dy: torch.Tensor, weight: torch.Tensor, layer: Layer) -> torch.Tensor:
    """dx [T, K] of dy [T, N], contiguous."""
    pack = pack_of(weight, layer.problem.sparsity, layer.problem.splits, "backward")
    if isinstance(pack, KernelPack):
        assert layer.choice is not None
        dx = INPUT_GRAD[layer.choice.input_grad](layer.problem, layer.gpu, dy, pack.packed)
        launch_flag(dx, pack.flags, GRADIENT)  # a NaN or an infinity in a row of dy is in every column of its dx
        return dx
    assert isinstance(pack, ReferencePack)
    dx = input_grad(dy, pack.ternary, pack.w_scale, pack.splits).to(dy.dtype)
    pack.flags[GRADIENT] |= (~dx[:, 0].isfinite()).any()
    return dx


def _fake_weight_grad(
    dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, in_features: int, dtype: torch.dtype, variants: str
) -> torch.Tensor:
    return dy.new_empty((dy.shape[-1], in_features), dtype=dtype)


@operator(_fake_weight_grad)
def bitlinear_weight_grad(
    dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, in_features: int, dtype: torch.dtype, variants: str
) -> torch.Tensor:
    """dw [N, K] in `dtype`, dense: the transpose of dy [..., N], T rows in all, times x_q · x_scale; x_q int8 [T, at least K]."""
    layer = layer_like(tokens_of(dy), dy.shape[-1], in_features, dy.dtype, "dense", (), "", dy.device.index, runs_kernels(dy))
    named = Choice.parse(variants) if variants else layer.choice
    with on(dy):
        return _weight_grad(_rows(dy), codes_of(x_q, in_features), x_scale, dtype, layer, named)


def _weight_grad(dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, dtype: torch.dtype, layer: Layer,
                 choice: Choice | None) -> torch.Tensor:
    """dw [N, K] of dy [T, N], contiguous, x_q [T, K] and x_scale [T]; layer: its sparsity is of no importance."""
    if layer.choice is None or choice is None:
        return weight_grad(dy, x_q, x_scale).to(dtype)
    return WEIGHT_GRAD[choice.weight_grad](layer.problem, layer.gpu, dy, x_q, x_scale, dtype)


def _fake_grads(dy: torch.Tensor, weight: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return _fake_input_grad(dy, weight), dy.new_empty(weight.shape, dtype=weight.dtype)


@operator(_fake_grads)
def bitlinear_grads(
    dy: torch.Tensor, weight: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, sparsity: str, splits: Sequence[int], variants: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx and dw, in the weight's type, as the two operators give them, in one call."""
    layer = layer_of(dy, weight, dy.dtype, sparsity, splits, variants)
    with on(dy):
        rows = _rows(dy)
        dx = _input_grad(rows, weight, layer).view(*dy.shape[:-1], weight.shape[1])
        return dx, _weight_grad(rows, codes_of(x_q, weight.shape[1]), x_scale, weight.dtype, layer, layer.choice)


def backward(ctx: Any, dy: torch.Tensor | None, *kept: None) -> tuple[torch.Tensor | None, ...]:
    """Straight through: as if the roundings of x and the weight and the mask were not there; dw is dense. ctx: see `remember`.

    These have no gradients themselves: after `create_graph`, whoever asks for them gets a UsageError.
    """
    if dy is None or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _gradients(ctx, dy)
    with torch.no_grad():
        made = _gradients(ctx, dy)
    return (*_Last.apply(dy, ctx.saved_tensors[0], *made[:3]), None, None, None)  # type: ignore[no-untyped-call] # torch has no types there


class _Last(torch.autograd.Function):
    """Gradients as they are, for whom PyTorch would warn and leave out what it has no rule for."""

    @staticmethod
    def forward(ctx: Any, dy: torch.Tensor | None, weight: torch.Tensor, *made: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """The gradients, made of the first two."""
        return tuple(None if one is None else one.view_as(one) for one in made)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> None:
        """Raises UsageError."""
        raise UsageError("the gradients of a BitLinear have no gradients: they pass straight through roundings")


def _gradients(ctx: Any, dy: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    weight, x_q, x_scale = ctx.saved_tensors
    dx = dw = dbias = None
    if dy is not None:
        if ctx.needs_input_grad[0] and ctx.needs_input_grad[1]:
            dx, dw = bitlinear_grads(dy, weight, x_q, x_scale, *ctx.layer)
        elif ctx.needs_input_grad[0]:
            dx = bitlinear_input_grad(dy, weight, *ctx.layer)
        elif ctx.needs_input_grad[1]:
            dw = bitlinear_weight_grad(dy, x_q, x_scale, weight.shape[1], weight.dtype, ctx.layer[2])
        if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
            dbias = dy.reshape(-1, dy.shape[-1]).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
    return dx, dw, dbias, None, None, None


def remember(ctx: Any, weight: torch.Tensor, bias: torch.Tensor | None, layer: tuple[str, Sequence[int], str], x_q: torch.Tensor,
             x_scale: torch.Tensor) -> None:
    """Keep in ctx what `backward` needs. layer: sparsity, splits, variants."""
    ctx.layer, ctx.bias_dtype = layer, None if bias is None else bias.dtype
    ctx.save_for_backward(weight, x_q, x_scale)
