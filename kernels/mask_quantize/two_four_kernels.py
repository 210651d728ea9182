"""The Triton function that packs a 2:4 master in bf16 or fp16 to bytes (layout dense2): the second pass where groups are pairs of words."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.mask_quantize.pairs import _SIGNS, _at, _by_position, _fake, _in_memory_order, _two_largest
from kernels.mask_quantize.two_pass_kernels import _add_flips, _half_limit, _row_limits


@triton.jit
def _bytes(w0, w1, w2, w3):
    """The low bytes of each half of four words: [..., first group, second group] words of four bytes, member 0 lowest."""
    low = (w0 & 0x00FF00FF) | ((w1 & 0x00FF00FF) << 8)
    high = (w2 & 0x00FF00FF) | ((w3 & 0x00FF00FF) << 8)
    return tl.join((low & 0xFFFF) | (high << 16), ((low >> 16) & 0xFFFF) | (high & -0x10000))


@triton.jit
def pack_two_four_kernel(
    w_ptr, packed_ptr, mask_ptr, fake_ptr, flips_ptr, bound_ptr, limit_ptr, w_scale_ptr, out_features, in_features, row_stride,
    column_tiles, BF16: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """ROWS rows × BLOCKS blocks of 256 columns, eight columns a thread and field: what `pack_words_kernel` does, for 2:4 alone.

    Rows start at words. mask_ptr (uint8), fake_ptr (bf16) and flips_ptr (int64 [1]) may be None. Runs from the last tile to the first.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    row = (tile // column_tiles) * ROWS + tl.arange(0, ROWS)
    block = (tile % column_tiles) * BLOCKS + tl.arange(0, BLOCKS)[None, :, None]
    lane = tl.arange(0, 32)[None, None, :]
    limit, scale = _row_limits(row, limit_ptr, bound_ptr, w_scale_ptr, SPLITS)
    floor = (((_half_limit(limit, BF16) >> 16) & 0xFFFF) + 1)[:, None, None]
    floor = floor | (floor << 16)
    scale = (scale | ((scale >> 16) & 0xFFFF))[:, None, None]
    row_valid = (row < out_features)[:, None, None]
    long_row = row.to(tl.int64)[:, None, None]
    words = in_features // 2
    zero = tl.zeros([ROWS, BLOCKS, 8], tl.int32)
    z0, z1, z2, z3, s0, s1, s2, s3 = zero, zero, zero, zero, zero, zero, zero, zero
    for field in tl.static_range(4):
        place = block * 128 + (field * 32 + lane)
        valid = row_valid & (place < words)
        word = tl.load(w_ptr.to(tl.pointer_type(tl.int32)) + long_row * (row_stride // 2) + place, mask=valid, other=0)
        w0, w1, w2, w3 = _by_position(tl.reshape(word, [ROWS, BLOCKS, 8, 2, 2]))
        k0, k1, k2, k3 = _two_largest(w0, w1, w2, w3)
        n0 = k0 & ((w0 | _SIGNS) - floor)
        n1 = k1 & ((w1 | _SIGNS) - floor)
        n2 = k2 & ((w2 | _SIGNS) - floor)
        n3 = k3 & ((w3 | _SIGNS) - floor)
        z0 |= _at(n0, 2 * field)
        z1 |= _at(n1, 2 * field)
        z2 |= _at(n2, 2 * field)
        z3 |= _at(n3, 2 * field)
        s0 |= _at(w0, 2 * field)
        s1 |= _at(w1, 2 * field)
        s2 |= _at(w2, 2 * field)
        s3 |= _at(w3, 2 * field)
        if mask_ptr is not None:
            kept = tl.reshape(_bytes(_at(k0, 0), _at(k1, 0), _at(k2, 0), _at(k3, 0)), [ROWS, BLOCKS, 16])
            column = block * 64 + field * 16 + tl.arange(0, 16)[None, None, :]
            target = mask_ptr.to(tl.pointer_type(tl.int32)) + long_row * (in_features // 4) + column
            tl.store(target, kept, mask=row_valid & (column < in_features // 4))
        if fake_ptr is not None:
            fake = _in_memory_order(_fake(w0, n0, scale), _fake(w1, n1, scale), _fake(w2, n2, scale), _fake(w3, n3, scale))
            target = fake_ptr.to(tl.pointer_type(tl.int32)) + long_row * words + place
            tl.store(target, tl.reshape(fake, [ROWS, BLOCKS, 32]), mask=valid)
    codes = _bytes(z0 | ((s0 & z0) << 1), z1 | ((s1 & z1) << 1), z2 | ((s2 & z2) << 1), z3 | ((s3 & z3) << 1))
    codes = tl.reshape(codes, [ROWS, BLOCKS, 16])
    blocks = (in_features + 255) // 256
    target = packed_ptr.to(tl.pointer_type(tl.int32)) + long_row * (blocks * 16) + (block * 16 + tl.arange(0, 16)[None, None, :])
    inside = row_valid & (block < blocks)
    if flips_ptr is not None:
        old = tl.load(target, mask=inside, other=0)
        _add_flips(flips_ptr, tl.join(old & 0xFFFF, (old >> 16) & 0xFFFF), tl.join(codes & 0xFFFF, (codes >> 16) & 0xFFFF))
    tl.store(target, codes, mask=inside)
