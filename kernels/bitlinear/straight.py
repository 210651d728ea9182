"""The training pass of a layer as modules call it, compiled or not: gradients pass straight through the roundings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kernels.bitlinear.gradients import backward, remember
from kernels.bitlinear.ops import bitlinear_forward


class Straight(torch.autograd.Function):
    """`tersparse::bitlinear` for one output: the same kernels and gradients, and less for the host to do than its registered autograd."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
                variants: str) -> torch.Tensor:
        """y [..., N] in x's type of x [..., K]."""
        y, x_q, x_scale = bitlinear_forward(x, weight, bias, sparsity, splits, variants)
        remember(ctx, weight, bias, (sparsity, splits, variants), x_q, x_scale)
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """See `kernels.bitlinear.gradients.backward`."""
        return backward(ctx, dy)


def straight_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
                    variants: str) -> torch.Tensor:
    """y [..., N] of x [..., K] with gradients."""
    y: torch.Tensor = Straight.apply(x, weight, bias, sparsity, splits, variants)  # type: ignore[no-untyped-call] # torch has no types there
    return y
