"""What follows the accumulation of a dense ternary GEMM: deterministic split-K, scales, bias, one rounding, coalesced stores."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def reduce_splits(acc, partial_ptr, counter_ptr, tile, tiles, split, SPLIT_K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Adds the int32 tiles of all splits; returns (the sum, whether this program is the last to arrive and so owns it).

    Partial tiles lie in partial_ptr as [split][tile][ROWS·COLUMNS]. Integers add up to the same bits in any order. The last program
    sets the tile's counter back to zero, so the same workspace serves the next launch, a replayed graph included.
    """
    offsets = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    size: tl.constexpr = ROWS * COLUMNS
    tl.store(partial_ptr + (split * tiles + tile).to(tl.int64) * size + offsets, acc)
    tl.debug_barrier()  # every warp's stores come before the one atomic that publishes them
    last = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel", scope="gpu") == SPLIT_K - 1
    if last:
        acc = tl.load(partial_ptr + tile.to(tl.int64) * size + offsets, cache_modifier=".cg")
        for other in range(1, SPLIT_K):
            acc += tl.load(partial_ptr + (other * tiles + tile).to(tl.int64) * size + offsets, cache_modifier=".cg")
        tl.store(counter_ptr + tile, 0)
    return acc, last


@triton.jit
def split_scale(rows, w_scale_ptr, ends_ptr, SPLITS: tl.constexpr):
    """float32 weight scale of each output row: w_scale[s] of the split that the row lies in; ends_ptr holds the row after each split."""
    scale = tl.zeros_like(rows).to(tl.float32) + tl.load(w_scale_ptr)
    for index in tl.static_range(1, SPLITS):
        scale = tl.where(rows >= tl.load(ends_ptr + index - 1), tl.load(w_scale_ptr + index), scale)
    return scale


@triton.jit
def store_tile(acc, token, row, x_scale_ptr, w_scale_ptr, ends_ptr, bias_ptr, y_ptr, tokens, out_features,
               SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr, RAW: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Y[token, row] = acc · x_scale[token] · w_scale[split(row)] + bias[row] in float32, rounded once; RAW stores the int32.

    acc: int32 [rows, tokens] where TRANSPOSED, else [tokens, rows]; token, row: their indices. Y is row-major [tokens, out_features];
    the exchange through shared memory that makes its stores contiguous comes after rounding, on output-sized values.
    """
    if RAW:
        out = acc
    else:
        x_scale = tl.load(x_scale_ptr + token, mask=token < tokens, other=0.0)
        w_scale = split_scale(row, w_scale_ptr, ends_ptr, SPLITS)
        if HAS_BIAS:
            bias = tl.load(bias_ptr + row, mask=row < out_features, other=0.0)
        if TRANSPOSED:
            value = acc.to(tl.float32) * x_scale[None, :] * w_scale[:, None]
            if HAS_BIAS:
                value += bias[:, None]
        else:
            value = acc.to(tl.float32) * x_scale[:, None] * w_scale[None, :]
            if HAS_BIAS:
                value += bias[None, :]
        out = value.to(y_ptr.dtype.element_ty)
    if TRANSPOSED:
        offsets = token.to(tl.int64)[None, :] * out_features + row[:, None]
        tl.store(y_ptr + offsets, out, mask=(token < tokens)[None, :] & (row < out_features)[:, None])
    else:
        offsets = token.to(tl.int64)[:, None] * out_features + row[None, :]
        tl.store(y_ptr + offsets, out, mask=(token < tokens)[:, None] & (row < out_features)[None, :])
