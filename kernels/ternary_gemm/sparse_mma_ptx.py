"""The PTX of the `mma.sp` GEMM's main loop: what a thread does at the kernel's start, at a tile's start, and in a stage.

Gluon has no sparse product, so these blocks are text, with registers of their own names that are declared once at the kernel's entry.
Warp i multiplies 16 · tiles_n weight rows (part i % warps_n of the block) by 8 · tiles_t tokens (part i / warps_n).

A stage covers 128 columns: activations [block_t, 128] in rows of 128 bytes, their 16-byte chunks swizzled by the row's lowest three bits,
and behind them the packed words of the block (layout fragment24), 512 bytes for 16 rows. Both come by `cp.async`. A stage is two steps of
64 columns. What a step multiplies is loaded from shared memory during the step before: activations of step 1 in step 0; activations of
step 0 and all words of the next stage in step 1, each word's register right behind its last use.
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.sparse_mma_tile import STAGE_COLUMNS

BLOCK_BYTES = 2048
"""Bytes of one block of 64 × 128 weights."""
TILE_BYTES = 512
"""Bytes of 16 × 128 weights: one warp's part of a block."""
AHEAD = 2
"""Row tiles that are multiplied between a load and the first product that waits for it."""
DONE = "mov.b32 $0, 0;"
"""Every block returns a zero that nobody reads."""


@gluon.constexpr_function
def shared_bytes(tile, stages):
    """Bytes of the ring of stages."""
    return tile.stage_bytes * stages


@gluon.constexpr_function
def declare(tile):
    """Registers that live through the kernel, and the thread's places in a stage. $1: not negative, which the compiler does not know."""
    return f"""
        .reg .b32 acc<{tile.accumulators}>;
        .reg .b32 token<{8 * tile.tiles_t}>;
        .reg .b32 word<{4 * tile.tiles_n}>;
        .reg .b32 frag<4>;
        .reg .b64 from_x<{tile.token_copies}>;
        .reg .b64 from_w<{tile.word_copies}>;
        .reg .b32 size<{tile.token_copies}>;
        .reg .b32 to_x, to_w, column, read0, read1, read_w, nothing, mask;
        {{
        .reg .b32 t, u, v;
        shr.u32 nothing, $1, 31;
        mov.b32 mask, 0xC0C0C0C0;
        mov.u32 t, %tid.x;
        and.b32 u, t, 7;
        shl.b32 column, u, 4;
        shr.u32 v, t, 3;
        and.b32 to_x, v, 7;
        xor.b32 to_x, to_x, u;
        shl.b32 to_x, to_x, 4;
        mad.lo.u32 to_x, v, {STAGE_COLUMNS}, to_x;
        shl.b32 to_w, t, 4;
        add.u32 to_w, to_w, {STAGE_COLUMNS * tile.block_t};
        shr.u32 v, t, 5;
        and.b32 t, t, 31;
        shr.u32 read0, t, 3;
        xor.b32 read0, read0, u;
        shl.b32 read0, read0, 4;
        mad.lo.u32 read0, u, {STAGE_COLUMNS}, read0;
        div.u32 u, v, {tile.warps_n};
        mad.lo.u32 read0, u, {8 * tile.tiles_t * STAGE_COLUMNS}, read0;
        xor.b32 read1, read0, 64;
        rem.u32 u, v, {tile.warps_n};
        mul.lo.u32 read_w, u, {TILE_BYTES * tile.tiles_n};
        mad.lo.u32 read_w, t, 16, read_w;
        add.u32 read_w, read_w, {STAGE_COLUMNS * tile.block_t};
        }}
        {zero(tile)}"""


@gluon.constexpr_function
def zero(tile):
    """Accumulators for the next tile."""
    return "".join(f"mov.b32 acc{i}, 0;\n" for i in range(tile.accumulators)) + DONE


@gluon.constexpr_function
def point(tile):
    """$1 activations, $2 bytes of their rows, $3 first token of the tile, $4 tokens, $5 weights, $6 first row block, $7 row blocks there
    are, $8 blocks along the columns, $9 the one to start with.

    Points the copies there. A token behind the last reads nothing and gives zeros; a row block behind the last is the last one again, and
    what it gives is not stored.
    """
    text = f"""{{
        .reg .b32 t, row, last, at;
        .reg .b64 start, skipped;
        .reg .pred inside;
        mov.u32 t, %tid.x;
        sub.u32 last, $4, 1;
        shr.u32 row, t, 3;
        add.u32 row, row, $3;
        cvt.u64.u32 start, column;
        add.u64 start, start, $1;
        mul.wide.u32 skipped, $9, {STAGE_COLUMNS};
        add.u64 start, start, skipped;"""
    for i in range(tile.token_copies):
        text += f"""
        add.u32 at, row, {tile.threads // 8 * i};
        setp.lt.u32 inside, at, $4;
        selp.b32 size{i}, 16, 0, inside;
        min.u32 at, at, last;
        mul.wide.u32 from_x{i}, at, $2;
        add.u64 from_x{i}, from_x{i}, start;"""
    text += f"""
        sub.u32 last, $7, 1;
        and.b32 row, t, 127;
        mul.wide.u32 start, row, 16;
        add.u64 start, start, $5;
        mul.wide.u32 skipped, $9, {BLOCK_BYTES};
        add.u64 start, start, skipped;
        shr.u32 row, t, 7;
        add.u32 row, row, $6;"""
    for i in range(tile.word_copies):
        text += f"""
        add.u32 at, row, {tile.threads // 128 * i};
        min.u32 at, at, last;
        mul.lo.u32 at, at, $8;
        mul.wide.u32 from_w{i}, at, {BLOCK_BYTES};
        add.u64 from_w{i}, from_w{i}, start;"""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def copy(tile, slot, more, left):
    """Start the copies of a stage into a slot where `more` is not zero; columns from `left` on are zeros. One group in any case."""
    text = f"""
        {{
        .reg .b32 to, filled, bytes;
        .reg .pred wanted, inside;
        mov.u32 to, global_smem;
        mad.lo.u32 to, {slot}, {tile.stage_bytes}, to;
        setp.lt.s32 inside, column, {left};
        selp.b32 filled, 16, 0, inside;
        setp.ne.b32 wanted, {more}, 0;
        add.u32 bytes, to, to_w;"""
    for i in range(tile.word_copies):
        text += f"""
        @wanted cp.async.cg.shared.global [bytes+{16 * tile.threads * i}], [from_w{i}], 16;
        add.u64 from_w{i}, from_w{i}, {BLOCK_BYTES};"""
    text += "\nadd.u32 to, to, to_x;"
    if 8 * tile.block_t < tile.threads:
        text += f"\nsetp.lt.and.u32 wanted, to_x, {STAGE_COLUMNS * tile.block_t}, wanted;"
    for i in range(tile.token_copies):
        text += f"""
        and.b32 bytes, filled, size{i};
        @wanted cp.async.cg.shared.global [to+{tile.threads // 8 * STAGE_COLUMNS * i}], [from_x{i}], 16, bytes;
        add.u64 from_x{i}, from_x{i}, {STAGE_COLUMNS};"""
    return text + "\ncp.async.commit_group;\n}"


@gluon.constexpr_function
def fill(tile):
    """$1 slot, $2 whether there is something to copy, $3 columns left."""
    return copy(tile, "$1", "$2", "$3") + "\n" + DONE


@gluon.constexpr_function
def load_tokens(tile, step, at):
    """The fragments of a step for all of the warp's tokens from the stage that starts at `at`."""
    text = f"add.u32 t, {at}, read{step};"
    for j in range(tile.tiles_t):
        first = 4 * (step * tile.tiles_t + j)
        names = ", ".join(f"token{first + i}" for i in range(4))
        text += f"\nldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{names}}}, [t+{8 * STAGE_COLUMNS * j}];"
    return text


@gluon.constexpr_function
def load_words(m):
    """Row tile m's words of the stage whose words start at `w`."""
    names = ", ".join(f"word{4 * m + i}" for i in range(4))
    return f"\nld.shared.v4.b32 {{{names}}}, [w+{TILE_BYTES * m}];"


@gluon.constexpr_function
def prime(tile, stages):
    """Wait for the first stage, in slot 0, and load what its first step multiplies."""
    return f"""{{
        .reg .b32 t, w, base;
        cp.async.wait_group {stages - 2};
        bar.sync 0;
        mov.u32 base, global_smem;
        add.u32 w, base, read_w;
        {load_tokens(tile, 0, "base")}""" + "".join(load_words(m) for m in range(tile.tiles_n)) + f"\n{DONE}\n}}"


@gluon.constexpr_function
def behind(names):
    """What is unpacked from here on waits for loaded registers. Without this the compiler moves a load whose first use is in the next
    stage behind all products, and a barrier with it: its latency would then stand between the stages."""
    return "".join(f"\nand.b32 t, {name}, nothing;\nxor.b32 mask, mask, t;" for name in names)


@gluon.constexpr_function
def products(tile, m, step):
    """Unpack row tile m's values of a step and multiply them by all of the warp's tokens."""
    value, metadata = f"word{4 * m + 2 * step}", f"word{4 * m + 2 * step + 1}"
    text = f"\nand.b32 frag0, {value}, mask;"
    for j in range(1, 4):
        text += f"\nshl.b32 t, {value}, {2 * j};\nand.b32 frag{j}, t, mask;"
    for j in range(tile.tiles_t):
        registers = ", ".join(f"acc{4 * (m * tile.tiles_t + j) + i}" for i in range(4))
        tokens = ", ".join(f"token{4 * (step * tile.tiles_t + j) + i}" for i in range(4))
        text += f"""
        mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32
            {{{registers}}}, {{frag0, frag1, frag2, frag3}}, {{{tokens}}}, {{{registers}}}, {metadata}, 0x0;"""
    return text


@gluon.constexpr_function
def stage(tile, stages):
    """$1 this stage's slot, $2 the next one's, $3 the slot to fill, $4 whether there is something to fill it with, $5 columns left then.

    The barrier says two things: the next stage has arrived, and every warp has read the one before this, whose slot is filled again.
    """
    first = [[f"token{4 * (step * tile.tiles_t + j)}" for j in range(tile.tiles_t)] for step in range(2)]
    text = f"""{{
        .reg .b32 t, w, base;
        mov.u32 base, global_smem;
        {products(tile, 0, 0)}
        cp.async.wait_group {stages - 3};
        bar.sync 0;
        mad.lo.u32 w, $1, {tile.stage_bytes}, base;
        {load_tokens(tile, 1, "w")}"""
    for m in range(1, tile.tiles_n):
        text += (behind(first[1]) if m == AHEAD + 1 else "") + products(tile, m, 0)
    text += f"""
        mad.lo.u32 w, $2, {tile.stage_bytes}, base;
        {load_tokens(tile, 0, "w")}
        add.u32 w, w, read_w;"""
    for m in range(tile.tiles_n):
        text += behind(first[0]) if m == AHEAD else ""
        text += behind([f"word{4 * (m - AHEAD)}"]) if m >= AHEAD else ""
        text += products(tile, m, 1) + load_words(m)
        text += copy(tile, "$3", "$4", "$5") if m == tile.tiles_n // 2 else ""
    return text + f"\n{DONE}\n}}"
