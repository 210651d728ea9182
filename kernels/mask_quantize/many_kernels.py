"""The Triton functions of `many`: the two passes of `two_pass` over a list of weights, whose places stand in tables on the device.

An int32 per program says whose it is (one load; a search over the list would be a chain of them), an int64 table says the rest.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.mask_quantize.two_four_kernels import pack_two_four_kernel
from kernels.mask_quantize.two_pass_kernels import _store_scale, pack_kernel, pack_words_kernel


@triton.jit
def absmean_many_kernel(
    program_ptr, table_ptr, partial_ptr, counter_ptr, limit_ptr, nonfinite_ptr, w_scale_ptr, inv_scale_ptr, DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr,
):
    """w_scale, inv_scale and the largest magnitude that quantizes to zero of every split of every weight, in one launch.

    Adds in the order of `absmean_kernel`: program p of a split takes blocks p, p + PROGRAMS …, the last to arrive adds all partial
    sums. A row of the table: address of the split's first weight, rows, weights of a row, stride of rows, weights of the split, first
    program, programs, place of the results. Rows that lie back to back are one. ALIGNED: addresses and strides are multiples of 16.
    """
    split = tl.load(program_ptr + tl.program_id(0))
    entry = table_ptr + split * 8
    address = tl.load(entry).to(tl.pointer_type(DTYPE))
    rows = tl.load(entry + 1)
    width = tl.load(entry + 2)
    row_stride = tl.load(entry + 3)
    first = tl.load(entry + 5)
    active = tl.load(entry + 6).to(tl.int32)
    if ALIGNED:
        address = tl.multiple_of(address, 16)
        row_stride = tl.multiple_of(row_stride, 16)
    row_tiles = (width + (BLOCK - 1)) // BLOCK
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK // 8], tl.float64)
    for tile in range(tl.program_id(0) - first, rows * row_tiles, PROGRAMS):
        row = tile // row_tiles
        start = (tile - row * row_tiles) * BLOCK
        left = tl.multiple_of(tl.minimum(width - start, BLOCK).to(tl.int32), VECTOR)
        w = tl.load(address + row * row_stride + start + lanes, mask=lanes < left, other=0.0)
        total += tl.sum(tl.reshape(tl.abs(w.to(tl.float32)).to(tl.float64), [BLOCK // 8, 8]), axis=1)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(total, axis=0))
    if tl.atomic_add(counter_ptr + split, 1) == active - 1:
        tl.store(counter_ptr + split, 0)
        index = tl.arange(0, PROGRAMS)
        partials = tl.load(partial_ptr + first + index, mask=index < active, other=0.0, cache_modifier=".cg")
        mean = tl.sum(partials, axis=0) / tl.maximum(tl.load(entry + 4), 1).to(tl.float64)
        _store_scale(mean, tl.load(entry + 7), limit_ptr, nonfinite_ptr, w_scale_ptr, inv_scale_ptr)


@triton.jit
def pack_many_kernel(
    program_ptr, table_ptr, limit_ptr, w_scale_ptr, DTYPE: tl.constexpr, BF16: tl.constexpr, BY_WORDS: tl.constexpr,
    ALIGNED: tl.constexpr, VECTOR: tl.constexpr, SPLITS: tl.constexpr, KEEP: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    BLOCKS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """The second pass of `two_pass` over every weight of a list: its own functions, told of weights that lie under each other.

    These take the tile from the program's number and from it row and column: a weight starts at a tile that is a multiple of its
    column tiles, so its rows are counted from some first row (a multiple of ROWS). Addresses, bounds and the number of rows in the
    table are meant for rows so counted; tiles between two weights lie under the upper one and store nothing.
    A row of the table (COLUMNS int64): address of the weight, of its packed bytes, end of its rows, in_features, stride of rows, column
    tiles, place of its first limit and scale, the first row of each of SPLITS splits (of splits that it does not have: beyond all).
    """
    weight = tl.load(program_ptr + (tl.num_programs(0) - 1 - tl.program_id(0)))
    entry = table_ptr + weight * COLUMNS
    w = tl.load(entry).to(tl.pointer_type(DTYPE))
    packed = tl.multiple_of(tl.load(entry + 1).to(tl.pointer_type(tl.uint8)), 16)
    out_features = tl.load(entry + 2).to(tl.int32)
    in_features = tl.load(entry + 3).to(tl.int32)
    row_stride = tl.load(entry + 4)
    column_tiles = tl.load(entry + 5).to(tl.int32)
    place = tl.load(entry + 6)
    if ALIGNED:
        w = tl.multiple_of(w, 16)
        row_stride = tl.multiple_of(row_stride, 16)
    in_features = tl.multiple_of(in_features, VECTOR)
    limit = limit_ptr + place
    scale = w_scale_ptr + place
    bound = entry + 7
    if not BY_WORDS:
        pack_kernel(w, packed, None, None, None, bound, limit, scale, out_features, in_features, row_stride, column_tiles,
                    SPLITS, KEEP, GROUP, ROWS, BLOCKS)  # fmt: skip
    elif KEEP == 2 and GROUP == 4:
        pack_two_four_kernel(w, packed, None, None, None, bound, limit, scale, out_features, in_features, row_stride, column_tiles,
                             BF16, SPLITS, ROWS, BLOCKS)  # fmt: skip
    else:
        pack_words_kernel(w, packed, None, None, None, bound, limit, scale, out_features, in_features, row_stride, column_tiles,
                          BF16, SPLITS, KEEP, GROUP, ROWS, BLOCKS)  # fmt: skip
