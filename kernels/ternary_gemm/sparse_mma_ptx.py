"""The PTX of the `mma.sp` GEMM's main loop: what a thread does at the kernel's start, at a tile's start, and in a stage.

Gluon has no sparse product, so these blocks are text, with registers of their own names that are declared once at the kernel's entry.
Warp i multiplies 16 · tiles_n weight rows (part i % warps_n of the block) by 8 · tiles_t tokens (part i / warps_n).

A stage covers 128 columns: activations [block_t, 128] in rows of 128 bytes, their 16-byte chunks swizzled by the row's lowest three bits,
and behind them the packed words of the block (layout fragment24), 512 bytes for 16 rows. Both come by `cp.async`.

A warp goes through a stage row tile by row tile, each in two steps of 64 columns. It holds the activations of both steps for the whole
stage, and the words of two row tiles: of the one at hand and of the next, which is loaded while this one is multiplied. Activations of the
next stage are loaded in its last row tile, each step's behind its last use. So every load is needed by products of the same stage, or
stands at its end: the compiler has no reason to move it.
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.sparse_mma_tile import STAGE_COLUMNS

BLOCK_BYTES = 2048
"""Bytes of one block of 64 × 128 weights."""
TILE_BYTES = 512
"""Bytes of 16 × 128 weights: one warp's part of a block."""
CODES = "0xC0C0C0C0"
"""Where a shifted word of 2-bit codes holds four of them, each in the highest bits of its byte."""
DONE = "mov.b32 $0, 0;"
"""Every block returns a zero that nobody reads."""


@gluon.constexpr_function
def shared_bytes(tile, stages):
    """Bytes of the ring of stages and, behind it, of what the epilogue exchanges."""
    return tile.stage_bytes * stages + tile.exchange_bytes


@gluon.constexpr_function
def barrier_at(tile, stages):
    """Where the barrier between stages lies, in the line behind ring and exchange, whose first word is for parts to meet."""
    return shared_bytes(tile, stages) + 16


@gluon.constexpr_function
def declare(tile):
    """Registers that live through the kernel, and the thread's places in a stage."""
    return f"""
        .reg .b32 acc<{tile.accumulators}>;
        .reg .b32 token<{8 * tile.tiles_t}>;
        .reg .b32 word<8>, frag<4>;
        .reg .b64 from_x, further, from_w<{tile.word_copies}>;
        .reg .b32 to_x, to_w, column, rows, read_x, read_w, phase;
        mov.b32 phase, 0;
        {{
        .reg .b32 t, u, v;
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
        shr.u32 read_x, t, 3;
        xor.b32 read_x, read_x, u;
        shl.b32 read_x, read_x, 4;
        mad.lo.u32 read_x, u, {STAGE_COLUMNS}, read_x;
        div.u32 u, v, {tile.warps_n};
        mad.lo.u32 read_x, u, {8 * tile.tiles_t * STAGE_COLUMNS}, read_x;
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

    Points the copies there. A token behind the last is not read and gives zeros; a row block behind the last is the last one again, and
    what it gives is not stored.
    """
    text = f"""{{
        .reg .b32 t, row, last, at;
        .reg .b64 start, skipped;
        mov.u32 t, %tid.x;
        shr.u32 row, t, 3;
        add.u32 row, row, $3;
        sub.u32 rows, $4, row;
        mul.wide.u32 from_x, row, $2;
        cvt.u64.u32 start, column;
        add.u64 from_x, from_x, start;
        add.u64 from_x, from_x, $1;
        mul.wide.u32 skipped, $9, {STAGE_COLUMNS};
        add.u64 from_x, from_x, skipped;
        mul.wide.u32 further, $2, {tile.threads // 8};"""
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
    """Start the copies of a stage into a slot where `more` is not zero; columns from `left` on are zeros. One group in any case.

    Of the last words and tokens, threads behind them copy none.
    """
    words, tokens = STAGE_COLUMNS * tile.block_t + 32 * tile.block_n, STAGE_COLUMNS * tile.block_t
    text = f"""
        {{
        .reg .b32 to, filled, bytes;
        .reg .b64 from;
        .reg .pred wanted, some, inside;
        mov.u32 to, global_smem;
        mad.lo.u32 to, {slot}, {tile.stage_bytes}, to;
        setp.lt.s32 inside, column, {left};
        selp.b32 filled, 16, 0, inside;
        setp.ne.b32 wanted, {more}, 0;
        add.u32 bytes, to, to_w;"""
    for i in range(tile.word_copies):
        place, whole = 16 * tile.threads * i, tile.threads * (i + 1) <= 2 * tile.block_n
        text += "" if whole else f"\nsetp.lt.and.u32 some, to_w, {words - place}, wanted;"
        text += f"""
        @{"wanted" if whole else "some"} cp.async.cg.shared.global [bytes+{place}], [from_w{i}], 16;
        add.u64 from_w{i}, from_w{i}, {BLOCK_BYTES};"""
    text += "\nadd.u32 to, to, to_x;\nmov.b64 from, from_x;"
    for i in range(tile.token_copies):
        row, whole = tile.threads // 8 * i, tile.threads * (i + 1) <= 8 * tile.block_t
        text += "" if whole else f"\nsetp.lt.and.u32 wanted, to_x, {tokens - STAGE_COLUMNS * row}, wanted;"
        text += f"""
        setp.gt.s32 inside, rows, {row};
        selp.b32 bytes, filled, 0, inside;
        @wanted cp.async.cg.shared.global [to+{STAGE_COLUMNS * row}], [from], 16, bytes;
        add.u64 from, from, further;"""
    return text + f"\nadd.u64 from_x, from_x, {STAGE_COLUMNS};\ncp.async.commit_group;\n}}"


@gluon.constexpr_function
def fill(tile):
    """$1 slot, $2 whether there is something to copy, $3 columns left."""
    return copy(tile, "$1", "$2", "$3") + "\n" + DONE


@gluon.constexpr_function
def load_tokens(tile, step, at):
    """The fragments of a step for all of the warp's tokens from the stage that starts at `at`."""
    text = f"xor.b32 t, read_x, {64 * step};\nadd.u32 t, t, {at};" if step else f"add.u32 t, {at}, read_x;"
    for j in range(tile.tiles_t):
        first = 4 * (step * tile.tiles_t + j)
        names = ", ".join(f"token{first + i}" for i in range(4))
        text += f"\nldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{names}}}, [t+{8 * STAGE_COLUMNS * j}];"
    return text


@gluon.constexpr_function
def load_words(m):
    """Row tile m's words of the stage whose words start at `w`."""
    names = ", ".join(f"word{4 * (m % 2) + i}" for i in range(4))
    return f"\nld.shared.v4.b32 {{{names}}}, [w+{TILE_BYTES * m}];"


@gluon.constexpr_function
def arrive(tile, stages):
    """Say that this warp is done with a stage, and that its copies of the next one but one have come: its first thread does, of which
    `to_w` holds a multiple of 512. Needs t and a predicate `chosen`."""
    return f"""
        cp.async.wait_group {stages - 3};
        bar.warp.sync 0xFFFFFFFF;
        and.b32 t, to_w, 511;
        setp.eq.u32 chosen, t, 0;
        mov.u32 t, global_smem;
        @chosen mbarrier.arrive.shared.b64 _, [t+{barrier_at(tile, stages)}];"""


@gluon.constexpr_function
def wait(tile, stages):
    """Until every warp has said so. Needs t and a predicate `chosen`."""
    return f"""
        mov.u32 t, global_smem;
        AGAIN_${{:uid}}:
        mbarrier.test_wait.parity.shared.b64 chosen, [t+{barrier_at(tile, stages)}], phase;
        @!chosen bra AGAIN_${{:uid}};
        xor.b32 phase, phase, 1;"""


@gluon.constexpr_function
def prime(tile, stages):
    """Wait for the first stage, in slot 0, load what its first row tile multiplies, and arrive at its barrier."""
    return f"""{{
        .reg .b32 t, w, base;
        .reg .pred chosen;
        mov.u32 t, %tid.x;
        mov.u32 base, global_smem;
        setp.eq.u32 chosen, t, 0;
        bar.sync 0;
        @chosen mbarrier.init.shared.b64 [base+{barrier_at(tile, stages)}], {tile.threads // 32};
        cp.async.wait_group {stages - 2};
        bar.sync 0;
        add.u32 w, base, read_w;
        {load_tokens(tile, 0, "base")}
        {load_tokens(tile, 1, "base")}
        {load_words(0)}
        {arrive(tile, stages)}
        {DONE}
        }}"""


@gluon.constexpr_function
def products(tile, m, step):
    """Unpack row tile m's values of a step and multiply them by all of the warp's tokens."""
    word = 4 * (m % 2) + 2 * step
    text = f"\nand.b32 frag0, word{word}, {CODES};"
    for j in range(1, 4):
        text += f"\nshl.b32 t, word{word}, {2 * j};\nand.b32 frag{j}, t, {CODES};"
    for j in range(tile.tiles_t):
        registers = ", ".join(f"acc{4 * (m * tile.tiles_t + j) + i}" for i in range(4))
        tokens = ", ".join(f"token{4 * (step * tile.tiles_t + j) + i}" for i in range(4))
        text += f"""
        mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32
            {{{registers}}}, {{frag0, frag1, frag2, frag3}}, {{{tokens}}}, {{{registers}}}, word{word + 1}, 0x0;"""
    return text


@gluon.constexpr_function
def stage(tile, stages):
    """$1 this stage's slot, $2 the next one's, $3 the slot to fill, $4 whether there is something to fill it with, $5 columns left then.

    Half-way a warp waits until every warp is done with the stage before, whose slot is filled again, and has the next one's copies. It
    has said so of itself half a stage earlier: warps that share a scheduler take turns on the tensor cores, and one may lead.
    """
    last, middle = tile.tiles_n - 1, tile.tiles_n // 2
    text = f"""{{
        .reg .b32 t, w, base;
        .reg .pred chosen;
        mov.u32 base, global_smem;
        mad.lo.u32 w, $1, {tile.stage_bytes}, base;
        add.u32 w, w, read_w;"""
    for m in range(tile.tiles_n):
        text += wait(tile, stages) if m == middle else ""
        if m == last:
            text += f"\nmad.lo.u32 base, $2, {tile.stage_bytes}, base;\nadd.u32 w, base, read_w;"
        following = 0 if m == last else m + 1
        text += load_words(following) if (following - m) % 2 else ""
        text += products(tile, m, 0) + (load_tokens(tile, 0, "base") if m == last else "")
        text += products(tile, m, 1) + (load_tokens(tile, 1, "base") if m == last else "")
        text += "" if (following - m) % 2 else load_words(following)
        text += copy(tile, "$3", "$4", "$5") if m == middle else ""
    return text + arrive(tile, stages) + f"\n{DONE}\n}}"
