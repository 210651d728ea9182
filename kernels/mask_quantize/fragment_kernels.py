"""The Triton function that packs a 2:4 master weight in the order of the sparse tensor cores (layout fragment24 of `kernels.fragments`).

A thread holds what it stores: of 8 rows and 4 × 64 columns, two rows and 8 of every 32 columns, which are 8 + 8 groups of four per field
of 64. Everything is done on many weights at once: two groups share a word while magnitudes are compared (16 bits each), and all the
groups of half the thread's columns share one while kept values and positions are chosen (2 bits each).
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.mask_quantize.pairs import _SIGNS, _at, _by_position, _fake, _in_memory_order, _two_largest
from kernels.mask_quantize.two_pass_kernels import _half_limit, _row_limits

_EVEN = tl.constexpr(0x55555555)


@triton.jit
def _compressed(z0, z1, z2, z3, s0, s1, s2, s3):
    """The two kept values of every group as 2-bit codes, and their positions: bits at even places say non-zero (z) and negative (s).

    Groups with fewer than two non-zeros keep the lowest zeros beside them. Returns first and second code, first and second position.
    """
    second_high = z2 | z3
    second_low = (z3 | ~z2) & _EVEN
    first_low = ~z0 & z1 & second_high
    first_high = ~z0 & ~z1 & z2 & z3
    first = z0 | first_low | first_high
    first_sign = (z0 & s0) | (first_low & s1) | (first_high & s2)
    second = z1 | second_high
    second_sign = (z3 & s3) | (~z3 & ((z2 & s2) | (~z2 & z1 & s1)))
    return (first | (first_sign << 1), second | (second_sign << 1),
            first_low | (first_high << 1), second_low | (second_high << 1))  # fmt: skip


@triton.jit
def _bytes_of_row(first, second, ROW: tl.constexpr):
    """Bytes of the first and second entries of both groups of a chunk of row ROW: [A first, A second, B first, B second]."""
    if ROW == 0:
        return (first & 0x00FF00FF) | ((second & 0x00FF00FF) << 8)
    return ((first >> 8) & 0x00FF00FF) | (second & -0xFF0100)


@triton.jit
def _moved(word, FROM: tl.constexpr, TO: tl.constexpr):
    """The 2-bit fields at bit FROM of every byte, at bit TO of it."""
    if FROM >= TO:
        return (word >> (FROM - TO)) & ((0x03030303 << TO) - ((TO // 6) << 32))
    return (word << (TO - FROM)) & ((0x03030303 << TO) - ((TO // 6) << 32))


@triton.jit
def _four(a, b, c, d):
    """Four tensors of one shape along a new last axis."""
    return tl.join(tl.join(a, c), tl.join(b, d))


@triton.jit
def _metadata(r0, r1, r2, r3, quad, FIELD: tl.constexpr):
    """Of every thread of a quad the byte (two groups) of each of the four chunks, at its place in the chunk's word: [..., 2, 2]."""
    fields = _four(_moved(r0, 2 * FIELD, 0), _moved(r1, 2 * FIELD, 0), _moved(r2, 2 * FIELD, 0), _moved(r3, 2 * FIELD, 0))
    # The product gathers the low two bits of four bytes in the highest byte; no two partial products meet.
    return (((fields * 0x01041040) >> 24) & 0xFF) << (8 * quad[:, :, :, None, None])


@triton.jit
def _values(u0, u1, u2, u3, FIELD: tl.constexpr):
    """The word of values of every thread: register j in bits 6 − 2j and 7 − 2j of each byte."""
    return _moved(u0, 2 * FIELD, 6) | _moved(u1, 2 * FIELD, 4) | _moved(u2, 2 * FIELD, 2) | _moved(u3, 2 * FIELD, 0)


@triton.jit
def _all_values(u0, u1, u2, u3):
    """`_values` of the four fields, which are the last axes."""
    return _four(_values(u0, u1, u2, u3, 0), _values(u0, u1, u2, u3, 1), _values(u0, u1, u2, u3, 2), _values(u0, u1, u2, u3, 3))


@triton.jit
def _all_metadata(r0, r1, r2, r3, quad):
    """The words of metadata of a quad's threads, for the four fields: [4, 8, 4, 2, 2], the fields last.

    Chunk j is the metadata of thread j of the quad: adding up over the threads leaves the words in the order of the threads.
    """
    parts = _four(_metadata(r0, r1, r2, r3, quad, 0), _metadata(r0, r1, r2, r3, quad, 1), _metadata(r0, r1, r2, r3, quad, 2),
                  _metadata(r0, r1, r2, r3, quad, 3))  # fmt: skip
    return tl.reshape(tl.sum(parts, axis=2), [4, 8, 4, 2, 2])


@triton.jit
def pack_fragments_kernel(
    w_ptr, blocks_ptr, row_scale_ptr, fake_ptr, bound_ptr, limit_ptr, w_scale_ptr, out_features, in_features, row_stride, column_pairs,
    column_blocks, BF16: tl.constexpr, SPLITS: tl.constexpr,
):
    """64 rows × 256 columns (two blocks) of a 16-bit master, 2:4, to values and metadata; 4 warps.

    row_scale_ptr (float32 [out_features], w_scale / 64 of every row) and fake_ptr (bf16 [out_features, in_features], ternary · w_scale)
    may be None. Runs from the last tile to the first: the end of the weight is what the pass before left in the L2.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    row_block = tile // column_pairs
    pair = tile % column_pairs
    quad = tl.arange(0, 4)[None, None, :]
    in_row = tl.arange(0, 4)
    row_of = row_block * 64 + 16 * tl.arange(0, 4)[:, None] + tl.arange(0, 8)[None, :]
    words = in_features // 2
    master = w_ptr.to(tl.pointer_type(tl.int32))
    zero = tl.zeros([4, 8, 4], tl.int32)
    for half in tl.static_range(2):
        z0, z1, z2, z3, s0, s1, s2, s3 = zero, zero, zero, zero, zero, zero, zero, zero
        for eight in tl.static_range(2):
            rows = row_of + 8 * eight
            flat_rows = tl.reshape(rows, [32])
            limit, scale = _row_limits(flat_rows, limit_ptr, bound_ptr, w_scale_ptr, SPLITS)
            floor = tl.reshape(((_half_limit(limit, BF16) >> 16) & 0xFFFF) + 1, [4, 8])[:, :, None]
            floor = floor | (floor << 16)
            fake_scale = tl.reshape(scale, [4, 8])[:, :, None]
            fake_scale = fake_scale | ((fake_scale >> 16) & 0xFFFF)
            long_rows = rows.to(tl.int64)[:, :, None, None]
            inside = (rows < out_features)[:, :, None, None]
            for field in tl.static_range(4):
                column = pair * 128 + 32 * field + 16 * half + (4 * quad[:, :, :, None] + in_row[None, None, None, :])
                valid = inside & (column < words)
                word = tl.load(master + long_rows * (row_stride // 2) + column, mask=valid, other=0)
                w0, w1, w2, w3 = _by_position(tl.reshape(word, [4, 8, 4, 2, 2]))
                n0, n1, n2, n3 = _two_largest(w0, w1, w2, w3)
                n0 &= (w0 | _SIGNS) - floor
                n1 &= (w1 | _SIGNS) - floor
                n2 &= (w2 | _SIGNS) - floor
                n3 &= (w3 | _SIGNS) - floor
                z0 |= _at(n0, 8 * eight + 2 * field)
                z1 |= _at(n1, 8 * eight + 2 * field)
                z2 |= _at(n2, 8 * eight + 2 * field)
                z3 |= _at(n3, 8 * eight + 2 * field)
                s0 |= _at(w0, 8 * eight + 2 * field)
                s1 |= _at(w1, 8 * eight + 2 * field)
                s2 |= _at(w2, 8 * eight + 2 * field)
                s3 |= _at(w3, 8 * eight + 2 * field)
                if fake_ptr is not None:
                    fake = _in_memory_order(_fake(w0, n0, fake_scale), _fake(w1, n1, fake_scale), _fake(w2, n2, fake_scale),
                                            _fake(w3, n3, fake_scale))  # fmt: skip
                    target = fake_ptr.to(tl.pointer_type(tl.int32)) + long_rows * words + column
                    tl.store(target, tl.reshape(fake, [4, 8, 4, 4]), mask=valid)
        first, second, low, high = _compressed(z0, z1, z2, z3, s0, s1, s2, s3)
        if half == 0:
            u0, u1 = _bytes_of_row(first, second, 0), _bytes_of_row(first, second, 1)
            r0, r1 = _bytes_of_row(low, high, 0), _bytes_of_row(low, high, 1)
        else:
            u2, u3 = _bytes_of_row(first, second, 0), _bytes_of_row(first, second, 1)
            r2, r3 = _bytes_of_row(low, high, 0), _bytes_of_row(low, high, 1)
    value, meta = _all_values(u0, u1, u2, u3), _all_metadata(r0, r1, r2, r3, quad)
    thread = 32 * tl.arange(0, 4)[:, None, None] + 4 * tl.arange(0, 8)[None, :, None] + quad
    side = tl.arange(0, 2)[None, None, None, :, None, None]
    step = tl.arange(0, 2)[None, None, None, None, :, None]
    kind = tl.arange(0, 2)[None, None, None, None, None, :]
    start = (row_block.to(tl.int64) * column_blocks + 2 * pair) * 512
    place = thread[:, :, :, None, None, None] * 4 + (512 * side + 2 * step + kind)
    tl.store(blocks_ptr + start + place, tl.join(value, meta), mask=(place < 512) | (2 * pair + 1 < column_blocks))
    if row_scale_ptr is not None:  # noqa: SIM102 (the first is known when this is compiled, the second is not)
        if pair == 0:
            every_row = row_block * 64 + tl.arange(0, 64)
            row_scale = tl.zeros([64], tl.float32) + tl.load(w_scale_ptr)
            for split in tl.static_range(1, SPLITS):
                row_scale = tl.where(every_row >= tl.load(bound_ptr + split), tl.load(w_scale_ptr + split), row_scale)
            tl.store(row_scale_ptr + every_row, row_scale * 0.015625, mask=every_row < out_features)
