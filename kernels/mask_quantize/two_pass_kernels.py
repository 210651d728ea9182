"""The two Triton functions of `two_pass`: the mean of |w| per split, then mask, ternary values and packing."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def absmean_kernel(
    w_ptr, partial_ptr, counter_ptr, bound_ptr, limit_ptr, nonfinite_ptr, w_scale_ptr, inv_scale_ptr, in_features, row_stride,
    FLAT: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr,
):
    """w_scale, inv_scale and the largest magnitude that quantizes to zero, per split (program axis 1), in one launch.

    Every program adds its blocks in float64 (float32 sums of a few weights would move the scale by an ulp where an outlier is among
    them) and leaves one partial sum; the last one to arrive (an integer counter, which it sets back to 0) adds the partial sums in
    their order, so the result does not depend on timing. FLAT: rows lie back to back.
    """
    split = tl.program_id(1)
    pid = tl.program_id(0)
    first = tl.load(bound_ptr + split)
    rows = tl.load(bound_ptr + split + 1) - first
    width = tl.full((), in_features, tl.int64)
    elements = rows * width
    if FLAT:
        width = elements
        rows = tl.minimum(rows, 1)
    row_tiles = (width + (BLOCK - 1)) // BLOCK
    tiles = rows * row_tiles
    active = tl.maximum(tl.minimum(tiles, PROGRAMS), 1).to(tl.int32)
    if pid < active:
        lanes = tl.arange(0, BLOCK)
        total = tl.zeros([BLOCK // 8], tl.float64)
        for tile in range(pid, tiles, PROGRAMS):
            row = tile * 0 if FLAT else tile // row_tiles
            start = (tile - row * row_tiles) * BLOCK
            left = tl.multiple_of(tl.minimum(width - start, BLOCK).to(tl.int32), VECTOR)
            w = tl.load(w_ptr + (first + row) * row_stride + start + lanes, mask=lanes < left, other=0.0)
            total += tl.sum(tl.reshape(tl.abs(w.to(tl.float32)).to(tl.float64), [BLOCK // 8, 8]), axis=1)
        tl.store(partial_ptr + split * PROGRAMS + pid, tl.sum(total, axis=0))
        if tl.atomic_add(counter_ptr + split, 1) == active - 1:
            tl.store(counter_ptr + split, 0)
            index = tl.arange(0, PROGRAMS)
            partials = tl.load(partial_ptr + split * PROGRAMS + index, mask=index < active, other=0.0, cache_modifier=".cg")
            mean = tl.sum(partials, axis=0) / tl.maximum(elements, 1).to(tl.float64)
            _store_scale(mean, split, limit_ptr, nonfinite_ptr, w_scale_ptr, inv_scale_ptr)


@triton.jit
def _store_scale(mean, split, limit_ptr, nonfinite_ptr, w_scale_ptr, inv_scale_ptr):
    """max(mean, 1e-5), its correctly rounded inverse s, and the bits of the largest |w| with |w| · s rounded to at most 0.5."""
    scale = mean.to(tl.float32)
    finite = (scale >= 0) & (scale < float("inf"))
    scale = tl.maximum(tl.where(finite, scale, 1.0), 1e-5)
    inverse = tl.div_rn(tl.full((), 1.0, tl.float32), scale)
    # |w| · s is monotonic in |w|: search the few floats around 0.5 / s.
    near = tl.div_rn(tl.full((), 0.5, tl.float32), inverse).to(tl.int32, bitcast=True) - 4
    limit = near - 1
    for step in tl.static_range(8):
        limit += ((near + step).to(tl.float32, bitcast=True) * inverse <= 0.5).to(tl.int32)
    tl.store(limit_ptr + split, tl.where(finite, limit, 0x7FFFFFFF))
    tl.store(nonfinite_ptr + split, tl.where(finite, 0, 1))
    tl.store(w_scale_ptr + split, tl.where(finite, scale, float("nan")))
    tl.store(inv_scale_ptr + split, tl.where(finite, inverse, float("nan")))


@triton.jit
def _cut(key, KEEP: tl.constexpr, GROUP: tl.constexpr, UNSIGNED: tl.constexpr):
    """The value that exactly the KEEP largest of the GROUP distinct non-negative keys along the last axis exceed, axis kept.

    Walks from the nearer end; the next key below t is t − 1 − min(t − 1 − key) in wrapping unsigned arithmetic.
    """
    axis: tl.constexpr = len(key.shape) - 1
    if 2 * KEEP <= GROUP:
        below = tl.max(key, axis, keep_dims=True) - 1
        for _ in tl.static_range(KEEP - 1):
            below = below - tl.min((below - key).to(UNSIGNED, bitcast=True), axis, keep_dims=True).to(key.dtype, bitcast=True) - 1
        return below
    above = tl.min(key, axis, keep_dims=True) + 1
    for _ in tl.static_range(GROUP - KEEP - 1):
        above = above + tl.min((key - above).to(UNSIGNED, bitcast=True), axis, keep_dims=True).to(key.dtype, bitcast=True) + 1
    return above - 1


@triton.jit
def _keep_by_rank(row_ptr, magnitude, columns, valid, KEEP: tl.constexpr, GROUP: tl.constexpr):
    """For groups that no power of two holds: fewer than KEEP members are greater, or equal with a lower index. Reads the group again."""
    position = columns % GROUP
    rank = tl.zeros(magnitude.shape, tl.int32)
    for other in tl.static_range(GROUP):
        member = tl.load(row_ptr + (columns - position + other), mask=valid, other=0.0)
        score = tl.abs(member.to(tl.float32))
        rank += ((score > magnitude) | ((score == magnitude) & (other < position))).to(tl.int32)
    return rank < KEEP


@triton.jit
def pack_kernel(
    w_ptr, packed_ptr, mask_ptr, fake_ptr, bound_ptr, limit_ptr, w_scale_ptr, out_features, in_features, row_stride, column_tiles,
    SPLITS: tl.constexpr, KEEP: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
):
    """ROWS rows × BLOCKS blocks of 256 columns to packed bytes: byte b of a block holds columns b, 64 + b, 128 + b and 192 + b.

    Runs from the last tile to the first: the end of the weight is what the pass before left in the L2.
    A weight is non-zero where its magnitude exceeds the split's limit; magnitudes are compared as float bits, which order alike.
    WIDE: float32 masters, whose bits leave no room for the position in a 32-bit key. mask_ptr (uint8) and fake_ptr (bf16) may be None.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    row = (tile // column_tiles) * ROWS + tl.arange(0, ROWS)
    block = (tile % column_tiles) * BLOCKS + tl.arange(0, BLOCKS)[None, :, None]
    lane = tl.arange(0, 64)[None, None, :]
    limit = tl.zeros([ROWS], tl.int32) + tl.load(limit_ptr)
    scale = tl.zeros([ROWS], tl.float32) + tl.load(w_scale_ptr)
    for split in tl.static_range(1, SPLITS):
        inside = row >= tl.load(bound_ptr + split)
        limit = tl.where(inside, tl.load(limit_ptr + split), limit)
        scale = tl.where(inside, tl.load(w_scale_ptr + split), scale)
    limit = limit[:, None, None]
    # To bf16, half to even, once per row; the conversion at the store is then exact (and the interpreter's, which truncates, right).
    rounded = scale.to(tl.int32, bitcast=True)
    rounded = (rounded + 0x7FFF + ((rounded >> 16) & 1)) & ~0xFFFF
    scale = rounded.to(tl.float32, bitcast=True)[:, None, None]
    row_valid = (row < out_features)[:, None, None]
    long_row = row.to(tl.int64)[:, None, None]
    packed = tl.zeros([ROWS, BLOCKS, 64], tl.int32)
    for field in tl.static_range(4):
        columns = block * 256 + (field * 64 + lane)
        valid = row_valid & (columns < in_features)
        w = tl.load(w_ptr + long_row * row_stride + columns, mask=valid, other=0.0)
        bits = w.to(tl.float32).to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        if GROUP == 1:
            keep = valid
            nonzero = magnitude > limit
        elif 64 % GROUP != 0:
            keep = _keep_by_rank(w_ptr + long_row * row_stride, tl.abs(w.to(tl.float32)), columns, valid, KEEP, GROUP)
            nonzero = keep & (magnitude > limit)
        else:
            tie = (GROUP - 1) - lane % GROUP  # of equal magnitudes the lower index is the larger key
            if WIDE:
                key = tl.reshape((magnitude.to(tl.int64) << 4) | tie, [ROWS, BLOCKS, 64 // GROUP, GROUP])
                cut = _cut(key, KEEP, GROUP, tl.uint64)
                floor = (limit.to(tl.int64) << 4) | 15
            else:
                key = tl.reshape(magnitude | tie, [ROWS, BLOCKS, 64 // GROUP, GROUP])
                cut = _cut(key, KEEP, GROUP, tl.uint32)
                floor = limit | 15
            nonzero = tl.reshape(key > tl.maximum(cut, floor[:, :, :, None]), [ROWS, BLOCKS, 64])
            if mask_ptr is not None:
                keep = tl.reshape(key > cut, [ROWS, BLOCKS, 64])
        code = ((bits >> (30 - 2 * field)) & (2 << (2 * field))) | (1 << (2 * field))
        packed |= tl.where(nonzero, code, 0)
        if mask_ptr is not None:
            tl.store(mask_ptr + long_row * in_features + columns, keep.to(tl.uint8), mask=valid)
        if fake_ptr is not None:
            value = tl.where(bits < 0, -scale, scale)
            tl.store(fake_ptr + long_row * in_features + columns, tl.where(nonzero, value, 0.0).to(tl.bfloat16), mask=valid)
    blocks = (in_features + 255) // 256
    target = packed_ptr + long_row * (blocks * 64) + (block * 64 + lane)
    tl.store(target, packed.to(tl.uint8), mask=row_valid & (block < blocks))
