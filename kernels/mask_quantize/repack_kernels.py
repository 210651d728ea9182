"""The Triton functions that turn packed bytes (layout dense2 of `kernels.packed`) into fragments (`kernels.fragments`), of the weight or of
its transpose.

A byte of dense2 holds four columns that lie 64 apart, its 2-bit fields: whatever is done to one field of a word is done to all. For the
weight the fields are steps of 64 columns, for its transpose blocks of 64 rows. Bytes are put where the fragments want them; the fields
are told apart last.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.mask_quantize.fragment_kernels import _EVEN, _all_metadata, _all_values, _bytes_of_row, _compressed, _four


@triton.jit
def _four_bytes(pointer, stride, count, mask):
    """Bytes at pointer, pointer + stride … as one word, lowest first; count: how many of them there are to be read, zeros behind."""
    b0 = tl.load(pointer, mask=mask & (count > 0), other=0).to(tl.int32)
    b1 = tl.load(pointer + stride, mask=mask & (count > 1), other=0).to(tl.int32)
    b2 = tl.load(pointer + 2 * stride, mask=mask & (count > 2), other=0).to(tl.int32)
    b3 = tl.load(pointer + 3 * stride, mask=mask & (count > 3), other=0).to(tl.int32)
    return b0 | (b1 << 8) | (b2 << 16) | (b3 << 24)


@triton.jit
def _by_byte(a, b, c, d):
    """The words [a, b, c, d] of bytes 0, of bytes 1, 2 and 3."""
    low_ab = (a & 0x00FF00FF) | ((b & 0x00FF00FF) << 8)
    high_ab = ((a >> 8) & 0x00FF00FF) | (b & -0xFF0100)
    low_cd = (c & 0x00FF00FF) | ((d & 0x00FF00FF) << 8)
    high_cd = ((c >> 8) & 0x00FF00FF) | (d & -0xFF0100)
    return ((low_ab & 0xFFFF) | (low_cd << 16), (high_ab & 0xFFFF) | (high_cd << 16),
            ((low_ab >> 16) & 0xFFFF) | (low_cd & -0x10000), ((high_ab >> 16) & 0xFFFF) | (high_cd & -0x10000))  # fmt: skip


@triton.jit
def _along_rows(packed_ptr, stride, rows, first_row, first_byte, byte, TRANSPOSED: tl.constexpr):
    """Four weights that follow each other along the fragments' columns, as bytes of a word.

    first_row: row of the fragments, [4, 8, 1]; first_byte + byte: their first column, [1, 1, 4]. Transposed, a column is a row of the
    packed weight and a row is one of its bytes.
    """
    if TRANSPOSED:
        row = first_byte + byte
        pointer = packed_ptr + row.to(tl.int64) * stride + first_row
        return _four_bytes(pointer, stride, rows - row, first_row >= 0)
    pointer = packed_ptr + first_row.to(tl.int64) * stride + (first_byte + byte)
    return tl.load(pointer.to(tl.pointer_type(tl.int32)), mask=first_row < rows, other=0)


@triton.jit
def row_scale(w_scale, bounds, row, SPLITS: tl.constexpr):
    """w_scale / 64 of the split that each row lies in; bounds: int64, first row of every split."""
    value = tl.zeros(row.shape, tl.float32) + tl.load(w_scale)
    for split in tl.static_range(1, SPLITS):
        value = tl.where(row >= tl.load(bounds + split), tl.load(w_scale + split), value)
    return value * 0.015625


@triton.jit
def _half(a0, a1, b0, b1):
    """Values of an upper and a lower row and their metadata, of 32 columns: first words of both, second words of both."""
    w0, w1, w2, w3 = _by_byte(a0, a1, b0, b1)
    one, two, low, high = _compressed(w0 & _EVEN, w1 & _EVEN, w2 & _EVEN, w3 & _EVEN, (w0 >> 1) & _EVEN, (w1 >> 1) & _EVEN,
                                      (w2 >> 1) & _EVEN, (w3 >> 1) & _EVEN)  # fmt: skip
    return _bytes_of_row(one, two, 0), _bytes_of_row(one, two, 1), _bytes_of_row(low, high, 0), _bytes_of_row(low, high, 1)


@triton.jit
def _sparse_words(packed_ptr, stride, rows, first_row, first, quad, TRANSPOSED: tl.constexpr):
    """Values and metadata of 64 columns from `first`, for all four fields: two tensors [4, 8, 4, 2, 2], the fields last."""
    for half in tl.static_range(2):
        a0 = _along_rows(packed_ptr, stride, rows, first_row, first, 32 * half + 8 * quad, TRANSPOSED)
        b0 = _along_rows(packed_ptr, stride, rows, first_row, first, 32 * half + 8 * quad + 4, TRANSPOSED)
        a1 = _along_rows(packed_ptr, stride, rows, first_row + 8, first, 32 * half + 8 * quad, TRANSPOSED)
        b1 = _along_rows(packed_ptr, stride, rows, first_row + 8, first, 32 * half + 8 * quad + 4, TRANSPOSED)
        if half == 0:
            u0, u1, r0, r1 = _half(a0, a1, b0, b1)
        else:
            u2, u3, r2, r3 = _half(a0, a1, b0, b1)
    return _all_values(u0, u1, u2, u3), _all_metadata(r0, r1, r2, r3, quad)


@triton.jit
def _dense_words(packed_ptr, stride, rows, first_row, first, quad, TRANSPOSED: tl.constexpr):
    """The words of 32 columns from `first`, for all four fields: [4, 8, 4, 2, 2], the fields last."""
    u0 = _along_rows(packed_ptr, stride, rows, first_row, first, 4 * quad, TRANSPOSED)
    u1 = _along_rows(packed_ptr, stride, rows, first_row + 8, first, 4 * quad, TRANSPOSED)
    u2 = _along_rows(packed_ptr, stride, rows, first_row, first, 4 * quad + 16, TRANSPOSED)
    u3 = _along_rows(packed_ptr, stride, rows, first_row + 8, first, 4 * quad + 16, TRANSPOSED)
    return _all_values(u0, u1, u2, u3)


@triton.jit
def repack_kernel(
    packed_ptr, blocks_ptr, rows, stride, row_blocks, column_blocks, column_programs, SPARSE: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Four fields of 64 × 64 weights (one block of rows), or transposed of 64 × 128 (four blocks of rows, one of columns); 4 warps.

    packed_ptr: uint8 [rows, stride]. SPARSE: layout fragment24, of a weight with at most 2 non-zeros in every four along its columns (its
    rows, transposed); else layout fragment.
    """
    down = tl.program_id(0) // column_programs
    along = tl.program_id(0) % column_programs
    quad = tl.arange(0, 4)[None, None, :]
    in_block = 16 * tl.arange(0, 4)[:, None, None] + tl.arange(0, 8)[None, :, None]
    if TRANSPOSED:
        first_row = down * 64 + in_block
        first = along * 128
        if SPARSE:
            v0, m0 = _sparse_words(packed_ptr, stride, rows, first_row, first, quad, True)
            v1, m1 = _sparse_words(packed_ptr, stride, rows, first_row, first + 64, quad, True)
            words = tl.join(tl.join(v0, v1), tl.join(m0, m1))
        else:
            words = _four(_dense_words(packed_ptr, stride, rows, first_row, first, quad, True),
                          _dense_words(packed_ptr, stride, rows, first_row, first + 32, quad, True),
                          _dense_words(packed_ptr, stride, rows, first_row, first + 64, quad, True),
                          _dense_words(packed_ptr, stride, rows, first_row, first + 96, quad, True))  # fmt: skip
    else:
        first_row = down * 64 + in_block
        first = along * 64
        if SPARSE:
            value, meta = _sparse_words(packed_ptr, stride, rows, first_row, first, quad, False)
            words = tl.join(value, meta)
        else:
            words = tl.join(_dense_words(packed_ptr, stride, rows, first_row, first, quad, False),
                            _dense_words(packed_ptr, stride, rows, first_row, first + 32, quad, False))  # fmt: skip
    thread = 4 * (32 * tl.arange(0, 4)[:, None, None] + 4 * tl.arange(0, 8)[None, :, None] + quad)
    two = tl.arange(0, 2)
    if TRANSPOSED:
        field = 4 * down + 2 * two[None, None, None, :, None, None, None] + two[None, None, None, None, :, None, None]
        start = (field.to(tl.int64) * column_blocks + along) * 512
        inner = 2 * two[None, None, None, None, None, :, None] + two[None, None, None, None, None, None, :]
        place = start + (thread[:, :, :, None, None, None, None] + inner)
        tl.store(blocks_ptr + place, words, mask=(field < row_blocks) & (inner < 4) & (thread[:, :, :, None, None, None, None] >= 0))
    else:
        side = two[None, None, None, :, None, None]
        inner = 2 * two[None, None, None, None, :, None] + two[None, None, None, None, None, :]
        start = (down.to(tl.int64) * column_blocks + 2 * along) * 512
        place = thread[:, :, :, None, None, None] + (512 * side + inner)
        tl.store(blocks_ptr + start + place, words, mask=(place < 512) | (2 * along + 1 < column_blocks))
