"""The fake-quantizing baselines as layers of a model: what `kernels.sparse_backward.fakequant` computes, behind `nn.Linear`'s interface.

Straight-through gradients by an autograd function that keeps the quantized operands, as the detach trick does, without its arithmetic:
that flatters these baselines. Meant to be compiled with the model around them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from kernels.bitlinear.module import autocast
from kernels.bitlinear.pack import runs_kernels
from kernels.mask_quantize.baselines import MaskConfig, launch_group_mask
from kernels.problem import Sparsity
from kernels.sparse_backward.fakequant import fake_activation, fake_weight, masked_fake_weight, pairwise_mask, split_tensors


@torch.library.custom_op("tersparse::group_mask", mutates_args=())
def group_mask(weight: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """bool [N, K], the n:m mask of a contiguous weight [N, K], from a Triton kernel with one program per group; on a CPU from PyTorch."""
    if not runs_kernels(weight):
        return pairwise_mask(weight, n, m)
    mask = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
    with torch.cuda.device_of(weight):
        launch_group_mask(weight, mask, Sparsity(n, m), MaskConfig())
    return mask


@group_mask.register_fake
def _(weight: torch.Tensor, n: int, m: int) -> torch.Tensor:
    return torch.empty_like(weight, dtype=torch.bool)


class StraightThrough(torch.autograd.Function):
    """y = x̂ · ŵᵀ of x [..., K] and a weight [N, K] that comes quantized too; dx = dy · ŵ, dw = dyᵀ · x̂ in the weight's type."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        """Quantize x, keep it and the quantized weight, multiply."""
        rows = fake_activation(x.reshape(-1, x.shape[-1]))
        ctx.save_for_backward(rows, quantized)
        ctx.master = weight.dtype
        return (rows @ quantized.t()).view(*x.shape[:-1], quantized.shape[0])

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Both gradients, as if nothing had been rounded."""
        rows, quantized = ctx.saved_tensors
        gradient = dy.reshape(-1, dy.shape[-1])
        dx = (gradient @ quantized).view(*dy.shape[:-1], quantized.shape[1])
        return dx, (gradient.t() @ rows).to(ctx.master), None


class FakeQuantLinear(nn.Linear):
    """A bias-free `nn.Linear` on the parameter of another one, that computes with rounded operands in floating point.

    published: the mask comes from one Triton program per group, and the weight is quantized in every forward pass, as published training
    code does it. Else `requantize` quantizes the weight, once per optimizer step; forward passes before the first one raise TypeError.
    splits: output rows per weight scale.
    """

    averages: torch.Tensor
    split_of_row: torch.Tensor
    quantized: torch.Tensor | None

    def __init__(self, linear: nn.Linear, sparsity: Sparsity, splits: Sequence[int], published: bool) -> None:
        super().__init__(linear.in_features, linear.out_features, False, "meta")
        self.weight, self.sparsity, self.published = linear.weight, sparsity, published
        averages, split_of_row = split_tensors(splits, linear.in_features, linear.weight.device)
        self.register_buffer("averages", averages, persistent=False)
        self.register_buffer("split_of_row", split_of_row, persistent=False)
        self.register_buffer("quantized", None, persistent=False)

    def requantize(self, quantize: Callable[..., torch.Tensor] = masked_fake_weight) -> None:
        """Quantize the weight as it is now, to bf16. quantize: `masked_fake_weight`, plain or compiled."""
        weight = self.weight.detach()
        quantized = quantize(weight, self.sparsity.n, self.sparsity.m, self.averages, self.split_of_row)
        self.quantized = quantized.to(torch.bfloat16)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """y [..., out_features] in x's type, or autocast's."""
        x, quantized = autocast(input), self.quantized
        if self.published:
            weight = self.weight.detach()
            mask = group_mask(weight, self.sparsity.n, self.sparsity.m)
            quantized = fake_weight(weight, mask, self.averages, self.split_of_row)
        if quantized is None:
            raise TypeError("a FakeQuantLinear is used before its weight was quantized; call requantize")
        y: torch.Tensor = StraightThrough.apply(x, self.weight, quantized.to(x.dtype))
        return y
