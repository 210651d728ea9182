"""The Triton functions of `two_pass`: the mean of |w| per split, then mask, ternary values and packing."""

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
def carried_scales_kernel(sum_ptr, bound_ptr, limit_ptr, nonfinite_ptr, w_scale_ptr, inv_scale_ptr, in_features):
    """The same from sums of |w| that somebody carried, float64 per split (the program)."""
    split = tl.program_id(0)
    elements = (tl.load(bound_ptr + split + 1) - tl.load(bound_ptr + split)) * in_features
    mean = tl.load(sum_ptr + split) / tl.maximum(elements, 1).to(tl.float64)
    _store_scale(mean, split, limit_ptr, nonfinite_ptr, w_scale_ptr, inv_scale_ptr)


@triton.jit
def _add_flips(flips_ptr, old, new):
    """Adds up how many 2-bit codes of these words (16 bits at most) turned from zero to non-zero or back: an integer, in any order."""
    changed = (old ^ new) & 0x5555
    changed = (changed & 0x1111) + ((changed >> 2) & 0x1111)
    changed = changed + (changed >> 4)
    changed = ((changed & 0xF) + ((changed >> 8) & 0xF)).to(tl.int64)
    tl.atomic_add(flips_ptr, tl.sum(tl.reshape(changed, [changed.numel]), axis=0))


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
def _cut(even, odd, KEEP: tl.constexpr, GROUP: tl.constexpr, UNSIGNED: tl.constexpr):
    """The value that exactly the KEEP largest of a group's distinct non-negative keys exceed; last axis reduced, kept as 1.

    The group is what `even` and `odd` hold along the last axis together (one tensor twice is that tensor).
    Walks from the nearer end; the next key below t is t − 1 − min(t − 1 − key) in wrapping unsigned arithmetic.
    """
    axis: tl.constexpr = len(even.shape) - 1
    if 2 * KEEP <= GROUP:
        below = tl.max(tl.maximum(even, odd), axis, keep_dims=True) - 1
        for _ in tl.static_range(KEEP - 1):
            steps = tl.minimum((below - even).to(UNSIGNED, bitcast=True), (below - odd).to(UNSIGNED, bitcast=True))
            below = below - tl.min(steps, axis, keep_dims=True).to(even.dtype, bitcast=True) - 1
        return below
    above = tl.min(tl.minimum(even, odd), axis, keep_dims=True) + 1
    for _ in tl.static_range(GROUP - KEEP - 1):
        steps = tl.minimum((even - above).to(UNSIGNED, bitcast=True), (odd - above).to(UNSIGNED, bitcast=True))
        above = above + tl.min(steps, axis, keep_dims=True).to(even.dtype, bitcast=True) + 1
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
def _row_limits(row, limit_ptr, bound_ptr, w_scale_ptr, SPLITS: tl.constexpr):
    """Per row: the bits of the largest float32 magnitude that quantizes to zero, and the bits of w_scale rounded to bf16 (upper half)."""
    limit = tl.zeros(row.shape, tl.int32) + tl.load(limit_ptr)
    scale = tl.zeros(row.shape, tl.float32) + tl.load(w_scale_ptr)
    for split in tl.static_range(1, SPLITS):
        inside = row >= tl.load(bound_ptr + split)
        limit = tl.where(inside, tl.load(limit_ptr + split), limit)
        scale = tl.where(inside, tl.load(w_scale_ptr + split), scale)
    # Half to even, once per row: the conversion at the store is then exact (and the interpreter's, which truncates, right).
    bits = scale.to(tl.int32, bitcast=True)
    return limit, (bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF


@triton.jit
def _half_limit(limit, BF16: tl.constexpr):
    """The limit as bits of bf16 or fp16 in the upper half of a word: the largest of its values that is not above the limit."""
    if BF16:
        return limit & ~0xFFFF
    value = limit.to(tl.float32, bitcast=True)
    half = value.to(tl.float16)
    bits = half.to(tl.int16, bitcast=True).to(tl.int32) - (half.to(tl.float32) > value).to(tl.int32)
    return tl.where(limit >= 0x7F800000, 0x7FFF, bits) << 16


@triton.jit
def pack_words_kernel(
    w_ptr, packed_ptr, mask_ptr, fake_ptr, flips_ptr, bound_ptr, limit_ptr, w_scale_ptr, out_features, in_features, row_stride,
    column_tiles, BF16: tl.constexpr, SPLITS: tl.constexpr, KEEP: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """ROWS rows × BLOCKS blocks of 256 columns of a 16-bit master to packed bytes, two weights (a 32-bit word) at a time.

    The words of a row are aligned (even row stride) and groups divide 64. A weight's key is its magnitude bits, which order like
    magnitudes, in the upper half of a word, above its place from the end of the group, so that no two are equal and the lower index
    wins a tie. It is kept above its group's cut and non-zero above its split's limit: one comparison with the larger of the two.
    Runs from the last tile to the first: the end of the weight is what the pass before left in the L2.
    mask_ptr (uint8) and fake_ptr (bf16) may be None; both are written as words. flips_ptr: None, or int64 [1] that is added to.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    row = (tile // column_tiles) * ROWS + tl.arange(0, ROWS)
    block = (tile % column_tiles) * BLOCKS + tl.arange(0, BLOCKS)[None, :, None]
    lane = tl.arange(0, 32)[None, None, :]
    limit, scale = _row_limits(row, limit_ptr, bound_ptr, w_scale_ptr, SPLITS)
    floor = (_half_limit(limit, BF16) | 0xFFFF)[:, None, None]
    scale = scale[:, None, None]
    row_valid = (row < out_features)[:, None, None]
    long_row = row.to(tl.int64)[:, None, None]
    words = in_features // 2
    w_row = w_ptr.to(tl.pointer_type(tl.int32)) + long_row * (row_stride // 2)
    signs = tl.zeros([ROWS, BLOCKS, 32], tl.int32)
    ones = tl.zeros([ROWS, BLOCKS, 32], tl.int32)
    for field in tl.static_range(4):
        word = block * 128 + (field * 32 + lane)
        valid = row_valid & (word < words)
        w = tl.load(w_row + word, mask=valid, other=0)
        place = (GROUP - 1) - (2 * lane) % GROUP
        even = ((w << 16) & 0x7FFF0000) | place
        odd = (w & 0x7FFF0000) | tl.maximum(place - 1, 0)
        if GROUP == 1:
            keep_even = valid
            keep_odd = valid
            even_one = even > floor
            odd_one = odd > floor
        else:
            even = tl.reshape(even, [ROWS, BLOCKS, 64 // GROUP, GROUP // 2])
            odd = tl.reshape(odd, [ROWS, BLOCKS, 64 // GROUP, GROUP // 2])
            cut = _cut(even, odd, KEEP, GROUP, tl.uint32)
            above = tl.maximum(cut, floor[:, :, :, None])
            even_one = tl.reshape(even > above, [ROWS, BLOCKS, 32])
            odd_one = tl.reshape(odd > above, [ROWS, BLOCKS, 32])
            if mask_ptr is not None:
                keep_even = tl.reshape(even > cut, [ROWS, BLOCKS, 32])
                keep_odd = tl.reshape(odd > cut, [ROWS, BLOCKS, 32])
        signs |= (w >> (14 - 2 * field)) & (0x00020002 << (2 * field))
        ones |= tl.where(even_one, 1 << (2 * field), 0) | tl.where(odd_one, 0x10000 << (2 * field), 0)
        if mask_ptr is not None:
            kept = keep_even.to(tl.int32) | (keep_odd.to(tl.int32) << 8)
            mask_row = mask_ptr.to(tl.pointer_type(tl.int16)) + long_row * words
            tl.store(mask_row + word, kept.to(tl.int16), mask=valid)
        if fake_ptr is not None:
            low = tl.where(even_one, (w & 0x8000) | (scale >> 16), 0)
            high = tl.where(odd_one, (w & -0x80000000) | scale, 0)
            tl.store(fake_ptr.to(tl.pointer_type(tl.int32)) + long_row * words + word, low | high, mask=valid)
    codes = ones | (signs & (ones << 1))
    blocks = (in_features + 255) // 256
    target = packed_ptr.to(tl.pointer_type(tl.int16)) + long_row * (blocks * 32) + (block * 32 + lane)
    codes = (codes | (codes >> 8)) & 0xFFFF
    if flips_ptr is not None:
        _add_flips(flips_ptr, tl.load(target, mask=row_valid & (block < blocks), other=0).to(tl.int32), codes)
    tl.store(target, codes.to(tl.int16), mask=row_valid & (block < blocks))


@triton.jit
def pack_kernel(
    w_ptr, packed_ptr, mask_ptr, fake_ptr, flips_ptr, bound_ptr, limit_ptr, w_scale_ptr, out_features, in_features, row_stride,
    column_tiles, SPLITS: tl.constexpr, KEEP: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
):
    """The same for every type, group and alignment, one weight at a time.

    Where groups divide 64 a key has 64 bits (float32 magnitudes leave no room for the place); else every weight counts its group.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    row = (tile // column_tiles) * ROWS + tl.arange(0, ROWS)
    block = (tile % column_tiles) * BLOCKS + tl.arange(0, BLOCKS)[None, :, None]
    lane = tl.arange(0, 64)[None, None, :]
    limit, scale = _row_limits(row, limit_ptr, bound_ptr, w_scale_ptr, SPLITS)
    limit = limit[:, None, None]
    scale = scale.to(tl.float32, bitcast=True)[:, None, None]
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
            place = (GROUP - 1) - lane % GROUP
            key = tl.reshape((magnitude.to(tl.int64) << 4) | place, [ROWS, BLOCKS, 64 // GROUP, GROUP])
            cut = _cut(key, key, KEEP, GROUP, tl.uint64)
            floor = (limit.to(tl.int64) << 4) | 15
            nonzero = tl.reshape(key > tl.maximum(cut, floor[:, :, :, None]), [ROWS, BLOCKS, 64])
            if mask_ptr is not None:
                keep = tl.reshape(key > cut, [ROWS, BLOCKS, 64])
        code = ((bits >> (30 - 2 * field)) & (2 << (2 * field))) | (1 << (2 * field))
        packed |= tl.where(nonzero, code, 0)
        if mask_ptr is not None:
            tl.store(mask_ptr + long_row * in_features + columns, keep.to(tl.uint8), mask=valid)
        if fake_ptr is not None:
            value = tl.where(nonzero, tl.where(bits < 0, -scale, scale), 0.0)
            tl.store(fake_ptr + long_row * in_features + columns, value.to(tl.bfloat16), mask=valid)
    blocks = (in_features + 255) // 256
    target = packed_ptr + long_row * (blocks * 64) + (block * 64 + lane)
    if flips_ptr is not None:
        _add_flips(flips_ptr, tl.load(target, mask=row_valid & (block < blocks), other=0).to(tl.int32), packed)
    tl.store(target, packed.to(tl.uint8), mask=row_valid & (block < blocks))
