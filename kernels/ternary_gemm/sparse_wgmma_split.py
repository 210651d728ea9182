"""The PTX with which the parts of a split tile meet: the programs that multiplied it over different columns add up their sums."""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.sparse_wgmma_ptx import CONSUMERS, DONE, SLICE

PIECE_BYTES = 2048
"""Bytes of a piece of the sums: four of each of a warpgroup's threads, a column group of 8 tokens in one row block."""


@gluon.constexpr_function
def merge(tiles, block_t, splits):
    """$1 partial sums, $2 arrivals, $3 split tile, $4 which part of it this program did.

    The parts of a tile meet in device memory: each program writes its sums but those of its own slices of tokens, waits until all have,
    and adds the others' to its own (integers: any order gives the same bits). All programs of a launch run at once (cooperative launch).
    Arrivals are counted on and on, a 64-bit counter per tile and warpgroup.
    """
    text = f"""{{
        .reg .b32 t, wg, slot, low, high;
        .reg .b64 own_sums, theirs, counter, seen, all;
        .reg .pred first, own, early;
        .reg .b32 v<{4 * loads_in_flight(tiles, block_t)}>;
        mov.u32 t, %tid.x;
        shr.u32 wg, t, 7;
        and.b32 t, t, 127;
        mad.lo.u32 slot, $3, {CONSUMERS}, wg;
        mad.wide.u32 counter, slot, 8, $2;
        mad.wide.u32 theirs, slot, {splits * part_bytes(tiles, block_t)}, $1;
        mad.wide.u32 theirs, t, 16, theirs;
        mad.wide.u32 own_sums, $4, {part_bytes(tiles, block_t)}, theirs;
        mul.lo.u32 low, $4, {block_t // SLICE};
        add.u32 high, low, {block_t // SLICE};
        div.u32 low, low, {splits};
        div.u32 high, high, {splits};
        setp.eq.u32 first, t, 0;
        add.u32 slot, wg, 8;"""
    return text + publish(tiles, block_t) + meet(splits) + collect(tiles, block_t, splits) + f"\n{DONE}\n}}"


@gluon.constexpr_function
def part_bytes(tiles, block_t):
    """Bytes of one part's sums of one warpgroup."""
    return tiles * block_t // 8 * PIECE_BYTES


@gluon.constexpr_function
def loads_in_flight(tiles, block_t):
    """Pieces that a thread loads before it adds them: what registers the accumulators leave."""
    return {64: 16, 128: 8}.get(tiles * block_t // 2, 8 if tiles * block_t < 256 else 2)


@gluon.constexpr_function
def accumulator(piece, tiles, block_t):
    """The first of the four accumulators of a piece: pieces go by column group, then by row block."""
    return piece % tiles * block_t // 2 + 4 * (piece // tiles)


@gluon.constexpr_function
def owned(part):
    """Sets own: whether this program completes that slice of the tokens, of [low, high)."""
    return f"\nsetp.le.u32 own, low, {part};\nsetp.gt.and.u32 own, high, {part}, own;"


@gluon.constexpr_function
def publish(tiles, block_t):
    """Write this part's sums of the slices that other programs complete."""
    text = ""
    for piece in range(tiles * block_t // 8):
        start = accumulator(piece, tiles, block_t)
        values = ", ".join(f"acc{start + i}" for i in range(4))
        text += owned(piece // tiles // (SLICE // 8)) + f"\n@!own st.global.v4.b32 [own_sums+{PIECE_BYTES * piece}], {{{values}}};"
    return text


@gluon.constexpr_function
def meet(splits):
    """Wait until this warpgroup has written and the same warpgroup of every other part has."""
    return f"""
        fence.acq_rel.gpu;
        bar.sync slot, 128;
        @!first bra GO_${{:uid}};
        atom.acq_rel.gpu.global.add.u64 seen, [counter], 1;
        div.u64 all, seen, {splits};
        mad.lo.u64 all, all, {splits}, {splits};
    SPIN_${{:uid}}:
        ld.acquire.gpu.global.u64 seen, [counter];
        setp.lt.u64 early, seen, all;
        @early bra SPIN_${{:uid}};
    GO_${{:uid}}:
        bar.sync slot, 128;
        fence.acq_rel.gpu;"""


@gluon.constexpr_function
def collect(tiles, block_t, splits):
    """Add the other parts' sums of the slices that this program completes."""
    count, text = tiles * SLICE // 8, ""
    for part in range(block_t // SLICE):
        text += owned(part) + f"\n@!own bra SKIP{part}_${{:uid}};"
        places = [(other, count * part + i) for other in range(splits) for i in range(count)]
        merged = loads_in_flight(tiles, block_t)
        for first in range(0, len(places), merged):
            text += add_pieces(places[first : first + merged], tiles, block_t)
        text += f"\nSKIP{part}_${{:uid}}:"
    return text


@gluon.constexpr_function
def add_pieces(places, tiles, block_t):
    """Load the pieces at `places` (part, piece), zeros where the part is this program's own, and add them."""
    text = ""
    for index in range(len(places)):
        other, piece, at = places[index][0], places[index][1], 4 * index
        text += f"\nsetp.ne.u32 early, $4, {other};"
        text += "".join(f"\nmov.b32 v{at + i}, 0;" for i in range(4))
        text += f"\n@early ld.relaxed.gpu.global.v4.b32 {{v{at}, v{at + 1}, v{at + 2}, v{at + 3}}}, "
        text += f"[theirs+{other * part_bytes(tiles, block_t) + PIECE_BYTES * piece}];"
    for index in range(len(places)):
        start = accumulator(places[index][1], tiles, block_t)
        for i in range(4):
            text += f"\nadd.s32 acc{start + i}, acc{start + i}, v{4 * index + i};"
    return text
