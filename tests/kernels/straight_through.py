"""The straight-through layer as an explicit float64 autograd graph: what every gradient is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels.problem import Sparsity
from reference.quantize import quantize_activation, ternary_quantize
from reference.sparsity import nm_mask


def layer(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: Sparsity, splits: Sequence[int]) -> torch.Tensor:
    """y in float64 with gradients to float64 copies of x, weight and bias, which must be leaves of the values themselves."""
    rows = torch.tensor(splits, device=x.device)
    codes, x_scale = quantize_activation(x.detach().float())
    ternary, w_scale = ternary_quantize(weight.detach().float(), splits)
    masked = ternary * nm_mask(weight.detach(), sparsity.n, sparsity.m)
    x_rounded = codes.double() * x_scale.double()[:, None]
    w_rounded = masked.double() * w_scale.double().repeat_interleave(rows)[:, None]
    y = (x + (x_rounded - x).detach()) @ (weight + (w_rounded - weight).detach()).t()
    return y if bias is None else y + bias


def gradients(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dy: torch.Tensor, sparsity: Sparsity,
              splits: Sequence[int]) -> dict[str, torch.Tensor]:
    """y, dx, dw and db in float64 by autograd."""
    leaves = {name: value.detach().double().requires_grad_() for name, value in (("x", x), ("w", weight), ("b", bias)) if value is not None}
    y = layer(leaves["x"], leaves["w"], leaves.get("b"), sparsity, splits)
    y.backward(dy.double())
    return {"y": y.detach(), **{f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}}
