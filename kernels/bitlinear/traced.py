"""The training pass of a layer whose rounding of activations torch.compile can see, so that it fuses it into what stands before the layer.

The operator `tersparse::bitlinear` is opaque: a norm or a gate writes bf16 that it reads back to round. Here the rounding is written in
PyTorch, and the compiled norm writes int8 codes and scales: 4 bytes a value less, of 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from kernels.bitlinear.gradients import remember
from kernels.bitlinear.ops import bitlinear_codes
from kernels.bitlinear.straight import Straight
from kernels.inputs import ROW_ALIGNMENT

EPSILON, INT8_MAX = 1e-5, 127.0


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x_q int8 [T, K padded to 128], zero behind K, and x_scale float32 [T] of x [T, K]; a row that is not finite has scale NaN.

    The same codes as the kernel's, for the same x. A compiler that fuses keeps more precision than bf16 has: looking at the bits makes it
    round first. Quotients are rounded from float64, as its float32 division need not be correctly rounded.
    """
    values = (x.view(torch.int16).to(torch.int32) << 16).view(torch.float32) if x.dtype == torch.bfloat16 else x.float()
    absmax = values.abs().amax(dim=1).clamp(min=EPSILON)
    full = torch.full_like(absmax, INT8_MAX, dtype=torch.float64)
    inverse = (full / absmax.double()).float()
    x_scale = torch.where(absmax.isfinite(), (absmax.double() / full).float(), torch.nan)
    codes = (values * inverse[:, None]).round().to(torch.int8)
    return F.pad(codes, (0, -x.shape[1] % ROW_ALIGNMENT)), x_scale


class Traced(Straight):
    """`Straight` in parts; inputs as its, gradients the same."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
                variants: str) -> torch.Tensor:
        """y [..., N] in x's type of x [..., K]."""
        x_q, x_scale = quantize_rows(x.reshape(-1, x.shape[-1]))
        y: torch.Tensor = bitlinear_codes(x_q, x_scale, weight, bias, sparsity, splits, variants, x.dtype)
        remember(ctx, weight, bias, (sparsity, splits, variants), x_q, x_scale)
        return y.reshape(*x.shape[:-1], weight.shape[0])


def traced_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
                  variants: str) -> torch.Tensor:
    """y [..., N] of x [..., K] with gradients, the rounding of x in sight of a compiler."""
    y: torch.Tensor = Traced.apply(x, weight, bias, sparsity, splits, variants)  # type: ignore[no-untyped-call] # torch has no types there
    return y
