"""The PTX with which the parts of a split tile meet: the programs of a cluster, each of which multiplied it over other columns, add up
their sums.

Each completes some of the tile's units: slices of tokens, or (64 tokens) a slice of one row block a warpgroup. It gets the others' sums of
these by `st.async` into a place of its own in its shared memory, with a barrier that counts their bytes; integers, so any order gives the
same bits. Neither fences nor barriers of the cluster stand in the way (a pair of those took 1.3 µs where this takes less:
docs/kernels-sparse.md).
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.sparse_wgmma_ptx import CONSUMERS, DONE, SLICE, shared_offsets

PIECE_BYTES = 2048
"""Bytes of a piece of the sums: four of each of a warpgroup's threads, a column group of 8 tokens in one row block."""


@gluon.constexpr_function
def ready():
    """By every warp of a cluster, once its program's barriers are set up."""
    return f"barrier.cluster.arrive.relaxed.aligned;\n{DONE}"


@gluon.constexpr_function
def all_ready():
    """By every warp, once: the barriers of all programs of the cluster are set up."""
    return f"barrier.cluster.wait.aligned;\n{DONE}"


@gluon.constexpr_function
def apart(tiles, block_t):
    """Into how many units row blocks come apart, of a slice of tokens: tiles of 64 tokens have two slices only, for up to eight parts."""
    return tiles if block_t <= 64 else 1


@gluon.constexpr_function
def units(tiles, block_t):
    """Units of a tile: unit s · apart + m is slice s of row block m, or of all."""
    return block_t // SLICE * apart(tiles, block_t)


@gluon.constexpr_function
def first_unit(part, tiles, block_t, splits):
    """The first of the units that a part completes; they end where the next part's begin."""
    return part * units(tiles, block_t) // splits


@gluon.constexpr_function
def owned_units(part, tiles, block_t, splits):
    """How many units a part completes."""
    return first_unit(part + 1, tiles, block_t, splits) - first_unit(part, tiles, block_t, splits)


@gluon.constexpr_function
def sent_bytes(tiles, block_t, splits):
    """Bytes of the place for one other part's sums of one warpgroup: those of the most units that a part completes."""
    return -(-units(tiles, block_t) // splits) * unit_pieces(tiles, block_t) * PIECE_BYTES


@gluon.constexpr_function
def unit_pieces(tiles, block_t):
    """Pieces of a unit."""
    return SLICE // 8 * tiles // apart(tiles, block_t)


@gluon.constexpr_function
def meeting_offsets(tiles, block_t, stages, splits):
    """Byte offsets in shared memory of the sums that other parts send, of their barriers (one a warpgroup), and the end."""
    end = shared_offsets(tiles, block_t, stages)[5]
    if splits == 1:
        return end, end, end
    sums = -(-end // 128) * 128
    barriers = sums + CONSUMERS * (splits - 1) * sent_bytes(tiles, block_t, splits)
    return sums, barriers, barriers + 8 * CONSUMERS


@gluon.constexpr_function
def expect(tiles, block_t, stages, splits):
    """At the kernel's start, $1 which part of its tile this program does: set up the barriers for what the others will send."""
    barriers = meeting_offsets(tiles, block_t, stages, splits)[1]
    text = """{
        .reg .b32 t, bytes;
        .reg .pred one;
        mov.u32 t, %tid.x;
        mov.b32 bytes, 0;"""
    for part in range(splits):
        size = owned_units(part, tiles, block_t, splits) * unit_pieces(tiles, block_t) * PIECE_BYTES * (splits - 1)
        text += f"\nsetp.eq.u32 one, $1, {part};\nselp.b32 bytes, {size}, bytes, one;"
    text += "\nsetp.eq.u32 one, t, 0;"
    for wg in range(CONSUMERS):
        text += f"""
        @one mbarrier.init.shared::cta.b64 [global_smem+{barriers + 8 * wg}], 1;
        @one mbarrier.arrive.expect_tx.shared::cta.b64 _, [global_smem+{barriers + 8 * wg}], bytes;"""
    return text + f"\nfence.mbarrier_init.release.cluster;\n{DONE}\n}}"


@gluon.constexpr_function
def merge(tiles, block_t, stages, splits):
    """$1 which part of the tile this program did: send the sums of the others' units, wait for those of its own, add them."""
    sums, barriers, _ = meeting_offsets(tiles, block_t, stages, splits)
    size = sent_bytes(tiles, block_t, splits)
    text = f"""{{
        .reg .b32 t, wg, place, bar, peer, to, v<{4 * loads_in_flight(tiles, block_t)}>;
        .reg .pred own, met;
        mov.u32 t, %tid.x;
        shr.u32 wg, t, 7;
        and.b32 t, t, 127;
        mad.lo.u32 place, wg, {(splits - 1) * size}, shared;
        mad.lo.u32 place, t, 16, place;
        mad.lo.u32 bar, wg, 8, shared;"""
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
        mapa.shared::cluster.u32 to, to, {other};
        mapa.shared::cluster.u32 peer, bar, {other};"""
        for piece in pieces_of(other, tiles, block_t, splits):
            start = accumulator(piece, tiles, block_t)
            at = sums + PIECE_BYTES * (piece - first_piece(other, tiles, block_t, splits))
            values = ", ".join(f"acc{start + i}" for i in range(4))
            text += f"\nst.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [to+{at}], {{{values}}}, [peer+{barriers}];"
        text += f"\nNEXT{other}_${{:uid}}:"
    text += f"""
    WAIT_${{:uid}}:
        mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 met, [bar+{barriers}], 0;
        @!met bra WAIT_${{:uid}};"""
    for part in range(splits):
        text += f"\nsetp.ne.u32 own, $1, {part};\n@own bra SKIP{part}_${{:uid}};"
        places = [(sender, piece) for sender in range(splits - 1) for piece in pieces_of(part, tiles, block_t, splits)]
        merged = loads_in_flight(tiles, block_t)
        for first in range(0, len(places), merged):
            some = [(sums + sender * size + PIECE_BYTES * (piece - first_piece(part, tiles, block_t, splits)), piece)
                    for sender, piece in places[first : first + merged]]
            text += add_pieces(some, tiles, block_t)
        text += f"\nSKIP{part}_${{:uid}}:"
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def first_piece(part, tiles, block_t, splits):
    """The first piece of the units that a part completes: pieces go by unit, column group and row block."""
    return first_unit(part, tiles, block_t, splits) * unit_pieces(tiles, block_t)


@gluon.constexpr_function
def pieces_of(part, tiles, block_t, splits):
    """The pieces of the units that a part completes."""
    return range(first_piece(part, tiles, block_t, splits), first_piece(part + 1, tiles, block_t, splits))


@gluon.constexpr_function
def accumulator(piece, tiles, block_t):
    """The first of the four accumulators of a piece."""
    if apart(tiles, block_t) == 1:
        return piece % tiles * block_t // 2 + 4 * (piece // tiles)
    groups = SLICE // 8
    unit, group = piece // groups, piece % groups
    return unit % tiles * block_t // 2 + 4 * (unit // tiles * groups + group)


@gluon.constexpr_function
def loads_in_flight(tiles, block_t):
    """Pieces that a thread loads before it adds them: what registers the accumulators leave."""
    return {64: 16, 128: 8}.get(tiles * block_t // 2, 8 if tiles * block_t < 256 else 2)


@gluon.constexpr_function
def add_pieces(places, tiles, block_t):
    """Load the pieces at `places` (offset, piece) and add them."""
    text = ""
    for index in range(len(places)):
        values = ", ".join(f"v{4 * index + i}" for i in range(4))
        text += f"\nld.shared.v4.b32 {{{values}}}, [place+{places[index][0]}];"
    for index in range(len(places)):
        start = accumulator(places[index][1], tiles, block_t)
        for i in range(4):
            text += f"\nadd.s32 acc{start + i}, acc{start + i}, v{4 * index + i};"
    return text
