"""The PTX of the Hopper GEMM of two int8 operands: shared memory, registers, the start of a launch, and the producer.

Both operands come by TMA into shared memory and are multiplied from there. A stage holds 128 bytes of each row of an output tile: first its
rows' operand (operand B of the instruction), then its columns' (operand A), both in the 128-byte swizzle.
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.sparse_wgmma_ptx import CONSUMERS, DONE, ROW_BYTES, SLICE, SLICES, STAGE_COLUMNS

LEFT_DESCRIPTOR, RIGHT_DESCRIPTOR, OUT_DESCRIPTOR = "int8_gemm_param_0", "int8_gemm_param_5", "int8_gemm_param_10"
"""The TMA descriptors among the kernel's parameters, each of which makes five. A test reads their names."""
BOX = 128
"""Columns of the output whose operand one copy brings."""
BLOCK = 64 * STAGE_COLUMNS
"""Bytes of operand A of one instruction's 64 columns in a stage."""


@gluon.constexpr_function
def stage_bytes(tiles, block_n):
    """Bytes of a stage: both operands."""
    return (block_n + BOX * tiles) * STAGE_COLUMNS


@gluon.constexpr_function
def ring_offsets(tiles, block_n, stages):
    """Byte offsets in shared memory of the output staging, the scales, the full and the empty barriers, and the end. Stages come first."""
    staging = stages * stage_bytes(tiles, block_n)
    scales = staging + CONSUMERS * SLICES * SLICE * ROW_BYTES
    full = scales + CONSUMERS * 4 * block_n
    return staging, scales, full, full + 8 * stages, full + 16 * stages


@gluon.constexpr_function
def declare(tiles, block_n):
    """Registers: accumulators, and the ring as a consumer or the producer sees it.

    shared: shared memory. mine: the consumer's thread, in sixteens, as `release` reads it. slot, phase: the stage at hand and its parity;
    ready: whether it was seen full; rows and columns: descriptors of its operands; beside: what lies between the two. left: the stage
    before, not handed back yet (or -1). turn: slices of the output staged so far. peer: the other program of a pair. lead: the producer's
    warp that copies; half: the first row of a tile that this program of a pair brings; rowmap, columnmap: where the TMA descriptors are.
    """
    return f"""
        .reg .b32 acc<{tiles * block_n // 2}>;
        .reg .b32 shared, mine, slot, phase, left, turn, peer, half;
        .reg .b64 rows, columns, beside, rowmap, columnmap;
        .reg .pred ready, lead;
        {DONE}"""


@gluon.constexpr_function
def begin(tiles, block_n, stages, pair, wide):
    """At the kernel's start: let the next launch begin, ask for the TMA descriptors, set up all barriers but the first (one arrival for a
    full stage, eight of each program of a pair for an empty one)."""
    full = ring_offsets(tiles, block_n, stages)[2]
    text = """{
        .reg .b32 t;
        .reg .b64 map;
        .reg .pred one;
        griddepcontrol.launch_dependents;
        mov.u32 t, %tid.x;
        setp.eq.u32 one, t, 0;"""
    for i in range(1, 2 * stages):
        text += f"\n@one mbarrier.init.shared::cta.b64 [global_smem+{full + 8 * i}], {1 if i < stages else 4 * CONSUMERS * pair};"
    text += "\nfence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;"
    names = (LEFT_DESCRIPTOR, RIGHT_DESCRIPTOR, OUT_DESCRIPTOR) if wide else (LEFT_DESCRIPTOR, RIGHT_DESCRIPTOR)
    for i in range(len(names)):
        text += f"""
        setp.eq.u32 one, t, {32 + 32 * i};
        mov.b64 map, {names[i]};
        cvta.param.u64 map, map;
        @one prefetch.tensormap [map];"""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def share(block_n, pair):
    """The producer's start: its first warp copies."""
    return f"""{{
        .reg .b32 t;
        mov.u32 shared, global_smem;
        mov.u32 t, %tid.x;
        shr.u32 t, t, 5;
        setp.eq.u32 lead, t, {4 * CONSUMERS};
        mov.b64 rowmap, {LEFT_DESCRIPTOR};
        cvta.param.u64 rowmap, rowmap;
        mov.b64 columnmap, {RIGHT_DESCRIPTOR};
        cvta.param.u64 columnmap, columnmap;
        mov.u32 half, %cluster_ctarank;
        mul.lo.u32 half, half, {block_n // pair};
        {DONE}
    }}"""


COPY = "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"


@gluon.constexpr_function
def row_box(block_n, pair):
    """Rows of the output whose operand one copy brings: the most, of what a program of a pair brings, that a power of two divides."""
    share = block_n // pair
    return share & -share


@gluon.constexpr_function
def bring_rows(block_n, pair):
    """One thread's copies of the rows' operand to `place`; of a pair that shares ($6 one): this program's half, to both."""
    box = row_box(block_n, pair)
    text = "" if pair == 1 else """
        setp.ne.and.b32 both, $6, 0, one;
        setp.eq.and.b32 alone, $6, 0, one;"""
    for i in range(block_n // box):
        text += f"""
        add.u32 at, place, {i * box * STAGE_COLUMNS};
        add.u32 row, $3, {i * box};
        @{"one" if pair == 1 else "alone"} {COPY} [at], [rowmap, {{$5, row}}], [bar];"""
    for i in range(block_n // box // pair if pair > 1 else 0):
        text += f"""
        mad.lo.u32 at, half, {STAGE_COLUMNS}, place;
        add.u32 at, at, {i * box * STAGE_COLUMNS};
        add.u32 row, half, $3;
        add.u32 row, row, {i * box};
        @both {COPY}.multicast::cluster [at], [rowmap, {{$5, row}}], [bar], 3;"""
    return text


@gluon.constexpr_function
def fill(tiles, block_n, stages, pair):
    """The producer's: $1 stage, $2 its parity, $3 first row of the tile, $4 its first column, $5 first byte of the rows that are summed
    over, $6 whether a pair shares its rows.

    Waits until the stage is empty (of a pair: in both programs); one thread copies.
    """
    _, _, full, empty, _ = ring_offsets(tiles, block_n, stages)
    text = f"""{{
        .reg .b32 bar, place, at, row;
        .reg .pred free, one, both, alone;
        @!lead bra END_${{:uid}};
        mad.lo.u32 bar, $1, 8, shared;
    WAIT_${{:uid}}:
        mbarrier.try_wait.parity.shared::cta.b64 free, [bar+{empty}], $2;
        @!free bra WAIT_${{:uid}};
        elect.sync _|one, -1;
        mad.lo.u32 place, $1, {stage_bytes(tiles, block_n)}, shared;
        @one mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar+{full}], {stage_bytes(tiles, block_n)};
        add.u32 bar, bar, {full};
        {bring_rows(block_n, pair)}"""
    for i in range(tiles):
        text += f"""
        add.u32 at, place, {(block_n + BOX * i) * STAGE_COLUMNS};
        add.u32 row, $4, {BOX * i};
        @one {COPY} [at], [columnmap, {{$5, row}}], [bar];"""
    return text + f"\nEND_${{:uid}}:\n{DONE}\n}}"
