"""The PTX of the Hopper GEMMs' producer: activations by TMA and packed weights by bulk copies into the ring of stages.

Four warps share the copies: straight-line code of about 60 instructions a stage, in place of one warp's loops over the lanes that copy.
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.sparse_wgmma_ptx import BLOCK_BYTES, CONSUMERS, DONE, STAGE_COLUMNS, X_DESCRIPTOR, copies, shared_offsets


@gluon.constexpr_function
def share(tiles, block_t, stages, pair):
    """The producer's start: its first warp has the activations, the others take the row blocks of the weights in turns."""
    weights = shared_offsets(tiles, block_t, stages)[0]
    text = f"""{{
        .reg .b32 t;
        .reg .pred other;
        mov.u32 shared, global_smem;
        mov.u32 t, %tid.x;
        shr.u32 t, t, 5;
        setp.eq.u32 lead, t, {4 * CONSUMERS};
        setp.ne.u32 other, t, {4 * CONSUMERS};
        sub.u32 block, t, {4 * CONSUMERS + 1};
        mad.lo.u32 to, block, {BLOCK_BYTES}, shared;
        add.u32 to, to, {weights};
        mov.b64 map, {X_DESCRIPTOR};
        cvta.param.u64 map, map;
        mov.u32 half, %cluster_ctarank;
        mul.lo.u32 half, half, {block_t // pair};"""
    for i in range(copies(tiles)):
        text += f"\nsetp.lt.and.s32 has{i}, block, {CONSUMERS * tiles - 3 * i}, other;"
    return text + f"\nor.pred works, lead, has0;\n{DONE}\n}}"


@gluon.constexpr_function
def point(tiles):
    """The producer's: $1 packed weights, $2 first row block of the tile, $3 row blocks there are, $4 column blocks, $5 the first of them.

    A row block behind the last is the last one again, and what it gives is not stored.
    """
    text = """{
        .reg .b32 row, last;
        sub.u32 last, $3, 1;"""
    for i in range(copies(tiles)):
        text += f"""
        add.u32 row, block, $2;
        add.u32 row, row, {3 * i};
        min.u32 row, row, last;
        mad.lo.u32 row, row, $4, $5;
        mad.wide.u32 from{i}, row, {BLOCK_BYTES}, $1;"""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def bring_activations(pair):
    """One thread's copy of the stage's activations, or of this program's half of them to both of a pair."""
    name = "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
    if pair == 1:
        return f"@one {name} [place], [map, {{$4, $3}}], [bar];"
    return f"""
        mad.lo.u32 place, half, {STAGE_COLUMNS}, place;
        add.u32 token, half, $3;
        @one {name}.multicast::cluster [place], [map, {{$4, token}}], [bar], 3;"""


@gluon.constexpr_function
def fill(tiles, block_t, stages, pair):
    """The producer's: $1 stage, $2 its parity, $3 first token, $4 first column.

    Waits until the stage is empty (of a pair: in both programs); one thread a warp copies, the activations by TMA (of a pair: half of them,
    to both), the weights in blocks of 2 KiB. A warp that has nothing to copy does not wait: nothing would keep it from falling two turns of
    the ring behind, where parities repeat.
    """
    _, _, _, full, empty, _ = shared_offsets(tiles, block_t, stages)
    size = block_t * STAGE_COLUMNS + CONSUMERS * tiles * BLOCK_BYTES
    text = f"""{{
        .reg .b32 bar, place, token;
        .reg .pred free, one, all;
        @!works bra END_${{:uid}};
        mad.lo.u32 bar, $1, 8, shared;
    WAIT_${{:uid}}:
        mbarrier.try_wait.parity.shared::cta.b64 free, [bar+{empty}], $2;
        @!free bra WAIT_${{:uid}};
        elect.sync _|all, -1;
        and.pred one, all, lead;
        mad.lo.u32 place, $1, {block_t * STAGE_COLUMNS}, shared;
        @one mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar+{full}], {size};
        add.u32 bar, bar, {full};
        {bring_activations(pair)}
        mad.lo.u32 place, $1, {CONSUMERS * tiles * BLOCK_BYTES}, to;"""
    for i in range(copies(tiles)):
        at = f"[place+{3 * i * BLOCK_BYTES}], [from{i}], {BLOCK_BYTES}, [bar]"
        text += f"""
        and.pred one, all, has{i};
        @one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes {at};
        add.s64 from{i}, from{i}, {BLOCK_BYTES};"""
    return text + f"\nEND_${{:uid}}:\n{DONE}\n}}"
