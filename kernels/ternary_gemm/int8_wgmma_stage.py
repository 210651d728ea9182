"""The PTX of the Hopper GEMM of two int8 operands: a consumer's way through the ring, products, and how the parts of a tile meet.

Both consumer warpgroups run the same text; they differ by `%tid.x`, of which bit 7 is the warpgroup.
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.int8_wgmma_ptx import BLOCK, ring_offsets, stage_bytes
from kernels.ternary_gemm.sparse_wgmma_ptx import CONSUMERS, DESCRIPTOR, DONE, STAGE_COLUMNS
from kernels.ternary_gemm.sparse_wgmma_split import (
    PIECE_BYTES,
    accumulator,
    add_pieces,
    first_piece,
    loads_in_flight,
    pieces_of,
    sent_bytes,
)
from kernels.ternary_gemm.sparse_wgmma_stage import release


@gluon.constexpr_function
def prime(tiles, block_n):
    """A value for every accumulator: a product in flight may not be the first to define one (C7515). And the ring's first stage."""
    return "".join(f"mov.b32 acc{i}, 0;\n" for i in range(tiles * block_n // 2)) + f"""{{
        .reg .b32 t, wg;
        mov.u32 shared, global_smem;
        mov.u32 t, %tid.x;
        shr.u32 wg, t, 7;
        shl.b32 mine, t, 4;
        mad.lo.u32 wg, wg, {tiles * BLOCK // 16}, {block_n * STAGE_COLUMNS // 16};
        cvt.u64.u32 beside, wg;
        mov.b32 slot, 0;
        mov.b32 phase, 0;
        mov.b32 left, -1;
        mov.b32 turn, 0;
        setp.ne.b32 ready, 0, 0;
        mov.u32 peer, %cluster_ctarank;
        xor.b32 peer, peer, 1;
        {point(tiles, block_n)}
        {DONE}
    }}"""


@gluon.constexpr_function
def point(tiles, block_n):
    """rows and columns of `slot`."""
    return f"""
        mad.lo.u32 t, slot, {stage_bytes(tiles, block_n)}, shared;
        shr.u32 t, t, 4;
        and.b32 t, t, 0x3FFF;
        cvt.u64.u32 rows, t;
        add.u64 rows, rows, {DESCRIPTOR};
        add.u64 columns, rows, beside;"""


@gluon.constexpr_function
def multiply(m, step, tiles, block_n):
    """32 bytes of the sum for one block of 64 columns; `more` is false where an accumulator starts from zero."""
    count = block_n // 2
    registers = ", ".join(f"acc{m * count + i}" for i in range(count))
    return f"""
        add.u64 a, columns, {m * BLOCK // 16 + 2 * step};
        add.u64 b, rows, {2 * step};
        wgmma.mma_async.sync.aligned.m64n{block_n}k32.s32.s8.s8
            {{{registers}}},
            a, b, {"always" if step else "more"};"""


@gluon.constexpr_function
def stage(tiles, block_n, stages, pair):
    """A stage's products, left in flight while those of the stage before are waited for, and that one handed back: $1 zero in a tile's
    first stage."""
    _, _, full, empty, _ = ring_offsets(tiles, block_n, stages)
    text = f"""{{
        .reg .b32 t, gone;
        .reg .b64 a, b;
        .reg .pred more, always, wrap;
        setp.ne.b32 more, $1, 0;
        setp.eq.b32 always, 0, 0;
        @ready bra GO_${{:uid}};
        mad.lo.u32 t, slot, 8, shared;
    WAIT_${{:uid}}:
        mbarrier.try_wait.parity.shared::cta.b64 ready, [t+{full}], phase;
        @!ready bra WAIT_${{:uid}};
    GO_${{:uid}}:
        wgmma.fence.sync.aligned;"""
    for step in range(STAGE_COLUMNS // 32):
        text += "".join([multiply(m, step, tiles, block_n) for m in range(tiles)])
    return text + f"""
        wgmma.commit_group.sync.aligned;
        mov.b32 gone, left;
        mov.b32 left, slot;
        add.u32 slot, slot, 1;
        setp.eq.u32 wrap, slot, {stages};
        selp.b32 slot, 0, slot, wrap;
        selp.b32 t, 1, 0, wrap;
        xor.b32 phase, phase, t;
        {point(tiles, block_n)}
        mad.lo.u32 t, slot, 8, shared;
        mbarrier.test_wait.parity.shared::cta.b64 ready, [t+{full}], phase;
        wgmma.wait_group.sync.aligned 1;
        {release(empty, pair, "gone")}
        {DONE}
    }}"""


@gluon.constexpr_function
def sent():
    """By every warp of a cluster: what its program wrote into others' shared memory is written."""
    return f"barrier.cluster.arrive.release.aligned;\n{DONE}"


@gluon.constexpr_function
def all_sent():
    """By every warp: what the other programs wrote is there."""
    return f"barrier.cluster.wait.acquire.aligned;\n{DONE}"


@gluon.constexpr_function
def thread_place(tiles, block_n, splits):
    """place: of this thread in the memory for the other parts' sums, which is the ring, empty behind a program's last stage."""
    return f"""
        mov.u32 t, %tid.x;
        shr.u32 wg, t, 7;
        and.b32 t, t, 127;
        mad.lo.u32 place, wg, {(splits - 1) * sent_bytes(tiles, block_n, splits)}, shared;
        mad.lo.u32 place, t, 16, place;"""


@gluon.constexpr_function
def send(tiles, block_n, splits):
    """$1 which part of a tile this program did: write the sums of the others' slices into their shared memory."""
    size = sent_bytes(tiles, block_n, splits)
    text = f"""{{
        .reg .b32 t, wg, place, to;
        .reg .pred own, met;
        {thread_place(tiles, block_n, splits)}"""
    for other in range(splits):
        # Of the places of `other` for the parts that are not itself, this part's.
        text += f"""
        setp.eq.u32 own, $1, {other};
        @own bra NEXT{other}_${{:uid}};
        setp.gt.u32 met, $1, {other};
        selp.b32 to, {size}, 0, met;
        mul.lo.u32 t, $1, {size};
        sub.u32 to, t, to;
        add.u32 to, to, place;
        mapa.shared::cluster.u32 to, to, {other};"""
        for piece in pieces_of(other, tiles, block_n, splits):
            start = accumulator(piece, tiles, block_n)
            values = ", ".join(f"acc{start + i}" for i in range(4))
            at = PIECE_BYTES * (piece - first_piece(other, tiles, block_n, splits))
            text += f"\nst.shared::cluster.v4.b32 [to+{at}], {{{values}}};"
        text += f"\nNEXT{other}_${{:uid}}:"
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def add_up(tiles, block_n, splits):
    """$1 which part of the tile this program did: add the others' sums of its slices; integers, so any order gives the same bits."""
    size, at_once = sent_bytes(tiles, block_n, splits), loads_in_flight(tiles, block_n)
    text = f"""{{
        .reg .b32 t, wg, place, v<{4 * at_once}>;
        .reg .pred own;
        {thread_place(tiles, block_n, splits)}"""
    for part in range(splits):
        text += f"\nsetp.ne.u32 own, $1, {part};\n@own bra SKIP{part}_${{:uid}};"
        first = first_piece(part, tiles, block_n, splits)
        places = [(sender * size + PIECE_BYTES * (piece - first), piece)
                  for sender in range(splits - 1) for piece in pieces_of(part, tiles, block_n, splits)]
        for start in range(0, len(places), at_once):
            text += add_pieces(places[start : start + at_once], tiles, block_n)
        text += f"\nSKIP{part}_${{:uid}}:"
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def sums_bytes(tiles, block_n, splits):
    """Bytes that the other parts' sums take."""
    return CONSUMERS * (splits - 1) * sent_bytes(tiles, block_n, splits)
