"""The linear layer on quantized operands and its straight-through gradients, in int64 and float64.

Sources: BitNet b1.58, arXiv 2402.17764; gradients of masked ternary weights that stay dense, Sparse-BitNet, arXiv 2603.05168.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reference.quantize import split_slices
from reference.sparsity import chunk_rows


def row_scale(w_scale: torch.Tensor, splits: Sequence[int] | None, out_features: int) -> torch.Tensor:
    """w_scale [number of splits] repeated over the rows of its splits: float64 [out_features]."""
    slices = split_slices(splits, out_features)
    if w_scale.shape != (len(slices),):
        raise ValueError(f"w_scale has shape {tuple(w_scale.shape)}, the layer {len(slices)} split(s)")
    counts = torch.tensor([rows.stop - rows.start for rows in slices], device=w_scale.device)
    return w_scale.double().repeat_interleave(counts, output_size=out_features)


def _token_scale(x_scale: torch.Tensor, tokens: int) -> torch.Tensor:
    """x_scale [tokens] as a column of float64."""
    if x_scale.shape != (tokens,):
        raise ValueError(f"x_scale has shape {tuple(x_scale.shape)}, there are {tokens} tokens")
    return x_scale.double()[:, None]


def _product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x · wᵀ in float64, some tokens at a time: x [tokens, in_features], w [out_features, in_features]."""
    if x.shape[1] != w.shape[1]:
        raise ValueError(f"in_features differ: activations have {x.shape[1]}, weights {w.shape[1]}")
    weight = w.double().t()
    out = torch.empty((x.shape[0], w.shape[0]), dtype=torch.float64, device=x.device)
    for chunk in chunk_rows(x.shape[0], max(x.shape[1], w.shape[0])):
        torch.mm(x[chunk].double(), weight, out=out[chunk])
    return out


def accumulate(x_q: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The integer accumulators x_q · wᵀ.

    x_q: int8 [tokens, in_features]. w: int8 [out_features, in_features]. Returns int64 [tokens, out_features]. Either may already be
    float64, of integers. Computed as a float64 product (torch has no integer product on a GPU), which is exact: every partial sum is
    an integer of at most 2^14 · in_features, far below 2^53. Raises ValueError where in_features differ.
    """
    return _product(x_q, w).to(torch.int64)


def linear(
    x_q: torch.Tensor,
    x_scale: torch.Tensor,
    w_ternary: torch.Tensor,
    w_scale: torch.Tensor,
    splits: Sequence[int] | None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """y = (x_q · w_ternaryᵀ) · x_scale[token] · w_scale[split] + bias, not rounded to an output type.

    x_q: int8 [tokens, in_features], or values of any float type; x_scale: [tokens]; w_ternary: int8 or float64 [out_features, in_features],
    masked where it is sparse; w_scale: [number of splits]; bias: [out_features]. Returns float64 [tokens, out_features]; the
    product is exact for int8 as in `accumulate`. Raises ValueError where shapes do not fit.
    """
    y = _product(x_q, w_ternary)
    y *= _token_scale(x_scale, y.shape[0])
    y *= row_scale(w_scale, splits, w_ternary.shape[0])
    if bias is None:
        return y
    if bias.shape != y.shape[1:]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}, the layer {y.shape[1]} out_features")
    return y.add_(bias.double())


def input_grad(dy: torch.Tensor, w_ternary: torch.Tensor, w_scale: torch.Tensor, splits: Sequence[int] | None) -> torch.Tensor:
    """dx = dy · (w_ternary · w_scale): the rounding of the activation is passed straight through.

    dy: [tokens, out_features]; w_ternary: [out_features, in_features], masked; w_scale: [number of splits].
    Returns float64 [tokens, in_features]. Raises ValueError where shapes do not fit.
    """
    if dy.shape[1] != w_ternary.shape[0]:
        raise ValueError(f"out_features differ: gradients have {dy.shape[1]}, weights {w_ternary.shape[0]}")
    return (dy.double() * row_scale(w_scale, splits, w_ternary.shape[0])) @ w_ternary.double()


def weight_grad(dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
    """dw = dyᵀ · (x_q · x_scale), dense: masked positions get their gradient too, so that they can come back.

    dy: [tokens, out_features]; x_q: int8 [tokens, in_features]; x_scale: [tokens]. Returns float64 [out_features, in_features].
    Raises ValueError where shapes do not fit.
    """
    if dy.shape[0] != x_q.shape[0]:
        raise ValueError(f"tokens differ: gradients have {dy.shape[0]}, activations {x_q.shape[0]}")
    return (dy.double() * _token_scale(x_scale, dy.shape[0])).t() @ x_q.double()


def bias_grad(dy: torch.Tensor) -> torch.Tensor:
    """The sum of dy [tokens, out_features] over the tokens: float64 [out_features]."""
    return dy.double().sum(dim=0)
