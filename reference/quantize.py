"""Ternary weights with one scale per split and int8 activations with one scale per token.

Sources: BitNet, arXiv 2310.11453; BitNet b1.58 (absmean ternary weights, absmax int8 activations), arXiv 2402.17764.
Every division is the correctly rounded float32 one, every rounding to integers is half to even.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reference.sparsity import chunk_rows

EPSILON = 1e-5
"""Smallest scale of a weight and smallest absmax of a token."""
INT8_MAX = 127


def split_slices(splits: Sequence[int] | None, out_features: int) -> list[slice]:
    """The rows of each split in order; None is one split of all rows. Raises ValueError where they do not sum to out_features."""
    sizes = (out_features,) if splits is None else tuple(splits)
    if sum(sizes) != out_features or min(sizes, default=0) < 0:
        raise ValueError(f"splits {sizes} do not sum to out_features {out_features}")
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def ternary_scale(weight: torch.Tensor, splits: Sequence[int] | None = None) -> torch.Tensor:
    """w_scale: the mean of |w| over all weights of a split, masked ones included, and at least 1e-5.

    weight: [out_features, in_features], any float type. splits: rows per scale. Returns float32 [number of splits].
    The sum runs in float64 and the mean is rounded once. A split that holds a NaN or an infinity gets NaN.
    Raises ValueError where the splits do not sum to out_features.
    """
    scales = []
    for rows in split_slices(splits, weight.shape[0]):
        part = weight[rows]
        total = torch.zeros((), dtype=torch.float64, device=weight.device)
        for chunk in chunk_rows(*part.shape):
            total += part[chunk].double().abs().sum()
        mean = (total / max(1, part.numel())).float().clamp(min=EPSILON)
        scales.append(torch.where(mean.isfinite(), mean, torch.nan))
    return torch.stack(scales)


def ternary_quantize(
    weight: torch.Tensor, splits: Sequence[int] | None = None, inv_scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights to {-1, 0, 1}: clip(rint(w · s), -1, 1) with s = 1 / w_scale in float32.

    weight: [out_features, in_features] bf16, fp16 or fp32. splits: rows per scale. inv_scale: float32 [number of splits], the s to use
    instead of 1 / w_scale (to check a kernel whose s is an ulp away). No mask is applied; the scale is that of the dense weight.
    Returns int8 [out_features, in_features] and w_scale float32 [number of splits]; a split with a non-finite weight has scale NaN
    and zeros. Raises ValueError for splits or an inv_scale that do not fit.
    """
    slices = split_slices(splits, weight.shape[0])
    w_scale = ternary_scale(weight, splits)
    inverse = torch.ones_like(w_scale) / w_scale if inv_scale is None else inv_scale.to(weight.device, torch.float32)
    if inverse.shape != w_scale.shape:
        raise ValueError(f"inv_scale has shape {tuple(inverse.shape)}, not {tuple(w_scale.shape)}")
    ternary = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for index, rows in enumerate(slices):
        part, out = weight[rows], ternary[rows]
        for chunk in chunk_rows(*part.shape):
            scaled = (part[chunk].float() * inverse[index]).round().clamp(-1, 1)
            out[chunk] = torch.where(w_scale[index].isfinite(), scaled, 0).to(torch.int8)
    return ternary, w_scale


def quantize_activation(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token absmax int8: a = max(max|x|, 1e-5); q = rint(x · (127 / a)); x_scale = a / 127, all in float32.

    x: [tokens, in_features], any float type. Returns int8 [tokens, in_features] in [-127, 127] and x_scale float32 [tokens]
    (x is about q · x_scale). A token that holds a NaN or an infinity has scale NaN and zeros.
    """
    tokens, width = x.shape
    q = torch.empty((tokens, width), dtype=torch.int8, device=x.device)
    x_scale = torch.empty(tokens, dtype=torch.float32, device=x.device)
    for chunk in chunk_rows(tokens, width):
        values = x[chunk].float()
        absmax = values.abs().amax(dim=1).clamp(min=EPSILON)
        finite, full = absmax.isfinite(), torch.full_like(absmax, INT8_MAX)  # on a GPU, dividing by a Python number multiplies by 1/number
        scaled = (values * (full / absmax)[:, None]).round()
        q[chunk] = torch.where(finite[:, None], scaled, 0).to(torch.int8)
        x_scale[chunk] = torch.where(finite, absmax / full, torch.nan)
    return q, x_scale
