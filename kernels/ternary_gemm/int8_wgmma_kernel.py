"""The persistent int8 × int8 GEMM for Hopper's tensor cores, in Gluon: a producer, two consumer warpgroups.

Output tiles of BLOCK_N rows × 128 · TILES columns, operands from shared memory. Tiles run in groups of rows, so that the programs of a wave
share both operands in the L2. The first tiles are whole, one program each; in pairs (PAIR = 2) two programs of neighbouring columns bring
half of their rows' operand each, to both. The rest (all of them where they are few) may be cut along the sum into parts, one for each
program of a cluster, which meet in its shared memory.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from kernels.ternary_gemm.int8_wgmma_epilogue import bring_scales, epilogue, plain_epilogue
from kernels.ternary_gemm.int8_wgmma_ptx import begin, declare, fill, ring_offsets, share
from kernels.ternary_gemm.int8_wgmma_stage import add_up, all_sent, prime, send, sent, stage
from kernels.ternary_gemm.sparse_wgmma_epilogue import settle
from kernels.ternary_gemm.sparse_wgmma_ptx import SLICE, depend, rank
from kernels.ternary_gemm.sparse_wgmma_split import all_ready, ready
from kernels.ternary_gemm.sparse_wgmma_stage import drain

PRODUCER_WARPS = gl.constexpr(4)
"""One of them copies; no warp of the program is idle: a barrier of the cluster waits for all."""


@gluon.constexpr_function
def _offset(index, tiles, block_n, stages):
    return ring_offsets(tiles, block_n, stages)[index]


@gluon.constexpr_function
def _words(tiles, block_n, stages):
    return ring_offsets(tiles, block_n, stages)[4] // 8


@gluon.constexpr_function
def _slices(block_n):
    return block_n // SLICE


@gluon.constexpr_function
def _cluster(splits, pair):
    return max(splits, pair)


@gluon.constexpr_function
def _layout(cluster):
    """Of shared memory that each of so many programs of a cluster has for itself."""
    return mbarrier.MBarrierLayout([[0] for _ in range(cluster.bit_length() - 1)])


@gluon.jit
def _place(CLUSTER: gl.constexpr):
    """This program, all programs, and which of its cluster it is."""
    if CLUSTER == 1:  # noqa: SIM108 - decided by the compiler
        part = 0
    else:
        part = gl.inline_asm_elementwise(rank(), "=r,r", [CLUSTER], dtype=gl.int32, is_pure=True, pack=1)
    return gl.program_id(0) * CLUSTER + part, gl.num_programs(0) * CLUSTER, part


@gluon.jit
def _pieces(rounds, tiles, SPLITS: gl.constexpr, CLUSTER: gl.constexpr):
    """How many pieces this program has: whole tiles, and with SPLITS a part of one of the others."""
    program, programs, _ = _place(CLUSTER)
    if SPLITS == 1:
        count = (tiles - program + programs - 1) // programs
    else:
        count = rounds
        if gl.program_id(0) < tiles - rounds * programs:
            count += 1
    return count


@gluon.jit
def _piece(index, steps, rounds, SPLITS: gl.constexpr, CLUSTER: gl.constexpr):
    """Piece `index` of this program: its tile, the steps [begin, until) of it, and whether it is whole."""
    program, programs, part = _place(CLUSTER)
    tile = program + index * programs
    begin = 0
    until = steps
    whole = 1
    if SPLITS > 1:  # noqa: SIM102 - the outer one is decided by the compiler, the inner one by the program
        if index == rounds:
            tile = rounds * programs + gl.program_id(0)
            begin = part * steps // SPLITS
            until = (part + 1) * steps // SPLITS
            whole = 0
    return tile, begin, until, whole


@gluon.jit
def _corner(tile, row_tiles, column_tiles, group, BLOCK_N: gl.constexpr, TILES: gl.constexpr, PAIR: gl.constexpr):
    """First row and first column of a tile: `group` tiles of rows under each other, then the next ones beside them; of a pair, side by
    side."""
    width = column_tiles // PAIR
    unit = tile // PAIR
    above = unit // (group * width) * group
    height = row_tiles - above
    if height > group:
        height = group
    inside = unit - above * width
    return (above + inside % height) * BLOCK_N, (inside // height * PAIR + tile % PAIR) * (128 * TILES)


@gluon.jit
def _producer(steps, rounds, row_tiles, column_tiles, group, TILES: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
              SPLITS: gl.constexpr, PAIR: gl.constexpr):
    """Fill the ring, stage after stage, for every piece of this program."""
    CLUSTER: gl.constexpr = _cluster(SPLITS, PAIR)
    if PAIR > 1:
        gl.inline_asm_elementwise(ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
        gl.inline_asm_elementwise(all_ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    gl.inline_asm_elementwise(share(BLOCK_N, PAIR), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    gl.inline_asm_elementwise(depend(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    at = 0
    parity = 1
    count = _pieces(rounds, row_tiles * column_tiles, SPLITS, CLUSTER)
    for index in range(count):
        tile, begin, until, whole = _piece(index, steps, rounds, SPLITS, CLUSTER)
        row, column = _corner(tile, row_tiles, column_tiles, group, BLOCK_N, TILES, PAIR)
        for step in range(begin, until):
            gl.inline_asm_elementwise(fill(TILES, BLOCK_N, STAGES, PAIR), "=r,r,r,r,r,r,r,~{memory}",
                                      [at, parity, row, column, step * 128, whole], dtype=gl.int32, is_pure=False, pack=1)
            at += 1
            if at == STAGES:
                at = 0
                parity ^= 1
    if SPLITS > 1:  # noqa: SIM102 - as above
        if count > rounds:
            gl.inline_asm_elementwise(ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
            gl.inline_asm_elementwise(all_ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
            gl.inline_asm_elementwise(sent(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
            gl.inline_asm_elementwise(all_sent(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    if PAIR > 1:
        gl.inline_asm_elementwise(ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
        gl.inline_asm_elementwise(all_ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _consumer(scale_ptr, out_ptr, steps, rounds, row_tiles, column_tiles, group, rows, columns, TILES: gl.constexpr,
              BLOCK_N: gl.constexpr, STAGES: gl.constexpr, SPLITS: gl.constexpr, PAIR: gl.constexpr, OUT: gl.constexpr,
              WIDE: gl.constexpr):
    """Both consumer warpgroups: per piece all stages with one stage's products always in flight, then the epilogue."""
    CLUSTER: gl.constexpr = _cluster(SPLITS, PAIR)
    ALL: gl.constexpr = _slices(BLOCK_N)
    EMPTY: gl.constexpr = _offset(3, TILES, BLOCK_N, STAGES)
    count = _pieces(rounds, row_tiles * column_tiles, SPLITS, CLUSTER)
    scale, out = scale_ptr.to(gl.int64, bitcast=True), out_ptr.to(gl.int64, bitcast=True)
    if PAIR > 1:
        gl.inline_asm_elementwise(ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
        gl.inline_asm_elementwise(all_ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    gl.inline_asm_elementwise(depend(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    gl.inline_asm_elementwise(prime(TILES, BLOCK_N), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    for index in range(count):
        tile, begin, until, whole = _piece(index, steps, rounds, SPLITS, CLUSTER)
        gl.assume(until > begin)
        row, column = _corner(tile, row_tiles, column_tiles, group, BLOCK_N, TILES, PAIR)
        gl.inline_asm_elementwise(bring_scales(TILES, BLOCK_N, STAGES), "=r,r,r,l,~{memory}", [row, rows, scale], dtype=gl.int32,
                                  is_pure=False, pack=1)
        for step in range(begin, until):
            gl.inline_asm_elementwise(stage(TILES, BLOCK_N, STAGES, PAIR), "=r,r,~{memory}", [step - begin], dtype=gl.int32,
                                      is_pure=False, pack=1)
        gl.inline_asm_elementwise(drain(EMPTY, PAIR), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
        first = 0
        end = ALL
        if SPLITS > 1:  # noqa: SIM102 - as above
            if whole == 0:
                _, _, part = _place(CLUSTER)
                gl.inline_asm_elementwise(ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
                gl.inline_asm_elementwise(all_ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
                gl.inline_asm_elementwise(send(TILES, BLOCK_N, SPLITS), "=r,r,~{memory}", [part], dtype=gl.int32, is_pure=False, pack=1)
                gl.inline_asm_elementwise(sent(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
                gl.inline_asm_elementwise(all_sent(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
                gl.inline_asm_elementwise(add_up(TILES, BLOCK_N, SPLITS), "=r,r,~{memory}", [part], dtype=gl.int32, is_pure=False, pack=1)
                first = part * ALL // SPLITS
                end = (part + 1) * ALL // SPLITS
        for m in gl.static_range(TILES):
            if WIDE:
                gl.inline_asm_elementwise(epilogue(m, TILES, BLOCK_N, STAGES, SPLITS, OUT), "=r,r,r,r,r,~{memory}",
                                          [column, row, first, end], dtype=gl.int32, is_pure=False, pack=1)
            else:
                gl.inline_asm_elementwise(plain_epilogue(m, TILES, BLOCK_N, STAGES, OUT), "=r,r,r,r,r,r,r,l,~{memory}",
                                          [column, row, first, end, rows, columns, out], dtype=gl.int32, is_pure=False, pack=1)
    if PAIR > 1:
        gl.inline_asm_elementwise(ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
        gl.inline_asm_elementwise(all_ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    if WIDE:
        gl.inline_asm_elementwise(settle(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit(do_not_specialize=["steps", "rounds", "row_tiles", "column_tiles", "group", "rows", "columns"])
def int8_gemm(left_desc, right_desc, out_desc, scale_ptr, out_ptr, steps, rounds, row_tiles, column_tiles, group, rows, columns,
              TILES: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, SPLITS: gl.constexpr, PAIR: gl.constexpr,
              OUT: gl.constexpr, WIDE: gl.constexpr):
    """out[rows, columns] = scale[row] · left[rows, T] · right[columns, T]ᵀ of int8; left_desc, right_desc, out_desc: TMA descriptors
    (out_desc unused but with WIDE).

    steps: blocks of 128 of T. row_tiles, column_tiles: of the output; group: tiles of rows that run under each other. PAIR = 2: launched in
    clusters of two programs, which bring half of the left operand each; column_tiles is even. SPLITS > 1: in clusters of so many; each does
    `rounds` whole tiles alone (or in a pair), and the others are cut in SPLITS parts, a cluster each. OUT: bf16, f16 or f32. WIDE: stores
    by TMA (columns a multiple of 8, OUT of 16 bits).
    """
    gl.inline_asm_elementwise(declare(TILES, BLOCK_N), "=r,r", [steps], dtype=gl.int32, is_pure=False, pack=1)
    # All shared memory is addressed by asm: one allocation, counted in the 8 bytes of a barrier. The compiler keeps it for the first
    # barrier's sake.
    FULL: gl.constexpr = _offset(2, TILES, BLOCK_N, STAGES) // 8
    memory = gl.allocate_shared_memory(gl.int64, [_words(TILES, BLOCK_N, STAGES), 1], _layout(_cluster(SPLITS, PAIR)))
    mbarrier.init(memory.index(FULL), count=1)
    gl.inline_asm_elementwise(begin(TILES, BLOCK_N, STAGES, PAIR, WIDE), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    gl.warp_specialize([
        (_consumer, (scale_ptr, out_ptr, steps, rounds, row_tiles, column_tiles, group, rows, columns, TILES, BLOCK_N, STAGES, SPLITS, PAIR,
                     OUT, WIDE)),
        (_producer, (steps, rounds, row_tiles, column_tiles, group, TILES, BLOCK_N, STAGES, SPLITS, PAIR)),
    ], [PRODUCER_WARPS], [32])
