"""The PTX of the Hopper GEMMs' main loop, sparse and dense: what a consumer thread does at a tile's start and in a stage.

Gluon has no sparse product, and none with packed weights in registers, so these blocks are text. Accumulators and fragments live in PTX
registers of their own names, declared once at the kernel's entry: a product that is in flight must not pass through the compiler. Both
consumer warpgroups run the same text (registers belong to threads); they differ by `%tid.x`, of which bit 7 is the warpgroup.

A stage covers 128 columns of each of `tiles` row blocks of 64. Packed weights lie in the stage as in device memory, 16 bytes a thread and
block (layout fragment24, or fragment where they are dense), and are loaded one stage ahead into the registers just unpacked.
"""

from __future__ import annotations

from triton.experimental import gluon

STAGE_COLUMNS = 128
BLOCK_BYTES = 2048
"""Bytes of one block of 64 × 128 weights."""
ROW_BYTES = 128
"""Bytes of a staged output row: 64 values of 16 bits, in the 128-byte swizzle."""
SLICE, SLICES = 32, 4
"""Tokens of a staged slice of the output, and buffers for one a warpgroup."""
CONSUMERS = 2
DESCRIPTOR = 0x4000004000010000
"""Of activations in shared memory, address 0: 128-byte swizzle, 1,024 bytes between groups of eight rows, columns counted in sixteens."""
DONE = "mov.b32 $0, 0;"
"""Every block returns a zero that nobody reads."""


@gluon.constexpr_function
def scale_bytes(tiles, block_t):
    """Bytes of one warpgroup's scales in shared memory: a tile's token scales, then its row scales, then its biases, float32."""
    return 4 * block_t + 2 * 4 * 64 * tiles


@gluon.constexpr_function
def shared_offsets(tiles, block_t, stages):
    """Byte offsets in shared memory of the packed weights, the output staging, the scales, the full and the empty barriers, and the end.

    The stages of activations come first, from `global_smem`; one allocation, in buffers of a stage of activations, holds all but barriers.
    """
    weights = stages * block_t * STAGE_COLUMNS
    staging = weights + stages * CONSUMERS * tiles * BLOCK_BYTES
    scales = staging + CONSUMERS * SLICES * SLICE * ROW_BYTES
    full = shared_buffers(tiles, block_t, stages) * block_t * STAGE_COLUMNS
    return weights, staging, scales, full, full + 8 * stages, full + 16 * stages


@gluon.constexpr_function
def shared_buffers(tiles, block_t, stages):
    """Buffers of block_t × 128 bytes: the stages' activations, and what else lies behind them."""
    behind = CONSUMERS * (stages * tiles * BLOCK_BYTES + SLICES * SLICE * ROW_BYTES + scale_bytes(tiles, block_t))
    return stages + -(-behind // (block_t * STAGE_COLUMNS))


@gluon.constexpr_function
def declare(tiles, block_t):
    """Registers: accumulators, two alternating sets of fragments and metadata, a stage's words; addresses."""
    return f"""
        .reg .b32 acc<{tiles * block_t // 2}>;
        .reg .b32 frag<8>;
        .reg .b32 meta<2>;
        .reg .b32 word<{4 * tiles}>;
        .reg .b32 shared, mine;
        .reg .b64 from;
        {DONE}"""


@gluon.constexpr_function
def point(tiles):
    """The producer's: $1 packed weights, $2 first row block of the tile, $3 row blocks there are, $4 column blocks, $5 the first of them.

    Lane i points `from` at row block i. A row block behind the last is the last one again, and what it gives is not stored.
    """
    return f"""{{
        .reg .b32 lane, block, last;
        mov.u32 lane, %tid.x;
        and.b32 lane, lane, 31;
        add.u32 block, lane, $2;
        sub.u32 last, $3, 1;
        min.u32 block, block, last;
        mad.lo.u32 block, block, $4, $5;
        mad.wide.u32 from, block, {BLOCK_BYTES}, $1;
        {DONE}
    }}"""


@gluon.constexpr_function
def bring_weights(tiles, weights, full):
    """The producer's: $1 stage. The tile's lanes copy a block of 2 KiB each, and point behind it."""
    return f"""{{
        .reg .b32 lane, bar, to;
        .reg .pred mine;
        mov.u32 lane, %tid.x;
        and.b32 lane, lane, 31;
        setp.lt.u32 mine, lane, {CONSUMERS * tiles};
        mov.u32 bar, global_smem;
        mad.lo.u32 to, $1, {CONSUMERS * tiles * BLOCK_BYTES}, bar;
        mad.lo.u32 to, lane, {BLOCK_BYTES}, to;
        mad.lo.u32 bar, $1, 8, bar;
        @mine cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [to+{weights}], [from], {BLOCK_BYTES}, [bar+{full}];
        add.s64 from, from, {BLOCK_BYTES};
        {DONE}
    }}"""


@gluon.constexpr_function
def prime(tiles, block_t, stages):
    """A value for every accumulator: a product in flight may not be the first to define one (C7515). And the addresses that every stage
    needs: `shared` memory, and in it `mine`, the thread's words of stage 0 (reading %tid again in the loop would cost it dear)."""
    weights = shared_offsets(tiles, block_t, stages)[0]
    return "".join(f"mov.b32 acc{i}, 0;\n" for i in range(tiles * block_t // 2)) + f"""{{
        .reg .b32 t, wg;
        mov.u32 shared, global_smem;
        mov.u32 t, %tid.x;
        shr.u32 wg, t, 7;
        and.b32 t, t, 127;
        mad.lo.u32 mine, wg, {tiles * BLOCK_BYTES}, shared;
        mad.lo.u32 mine, t, 16, mine;
        add.u32 mine, mine, {weights};
        {DONE}
    }}"""


@gluon.constexpr_function
def release(stage, empty):
    """Lane 0 of every warp hands the stage back to the producer, unless it is negative (`mine` counts lanes in sixteens)."""
    return f"""
        {{
        .reg .b32 lane, bar;
        .reg .pred first;
        and.b32 lane, mine, {31 * 16};
        setp.eq.u32 first, lane, 0;
        setp.ge.and.s32 first, {stage}, 0, first;
        mad.lo.u32 bar, {stage}, 8, shared;
        @first mbarrier.arrive.release.cta.shared::cta.b64 _, [bar+{empty}];
        }}"""


@gluon.constexpr_function
def load_words(m):
    """Load row block m's words of the stage that `place` points to."""
    words = ", ".join(f"word{4 * m + i}" for i in range(4))
    return f"\nld.shared.v4.b32 {{{words}}}, [place+{m * BLOCK_BYTES}];"


@gluon.constexpr_function
def product(index, tiles, block_t, sparse):
    """One of a stage's products: unpack, load the next stage's words behind the last use of these, multiply, leave it in flight.

    A row block takes two products of 64 columns where it is sparse, four of 32 where it is dense. The fragments that a product overwrites
    were last read by the one before the one in flight. `at` describes the stage's activations; `more` is false where an accumulator
    starts from zero.
    """
    count, accumulators, side = (2 if sparse else 4), block_t // 2, index % 2
    m, step = index // count, index % count
    word = 4 * m + (2 * step if sparse else step)
    text = ""
    for j in range(4):
        text += f"""
        shl.b32 t, word{word}, {2 * j};
        and.b32 frag{4 * side + j}, t, 0xC0C0C0C0;"""
    if sparse:
        # A permutation that changes nothing: behind a plain mov, ptxas takes the operand for redefined by the load and serializes (C7513).
        text += f"\nprmt.b32 meta{side}, word{word + 1}, word{word + 1}, 0x3210;"
    text += load_words(m) if step == count - 1 else ""
    registers = ", ".join(f"acc{m * accumulators + i}" for i in range(accumulators))
    fragments = ", ".join(f"frag{4 * side + j}" for j in range(4))
    name = f"sp.sync.aligned.m64n{block_t}k64" if sparse else f"sync.aligned.m64n{block_t}k32"
    return text + f"""
        add.u64 to, at, {(4 if sparse else 2) * step};
        wgmma.fence.sync.aligned;
        wgmma.mma_async.{name}.s32.s8.s8
            {{{registers}}},
            {{{fragments}}}, to, {f"meta{side}, 0, " if sparse else ""}{"always" if step else "more"};
        wgmma.commit_group.sync.aligned;"""


@gluon.constexpr_function
def wait_full(tiles, block_t, stages):
    """Wait for the stage in register `now` with the parity in `phase`, and point `place` at the thread's words of it."""
    full = shared_offsets(tiles, block_t, stages)[3]
    return f"""
        mad.lo.u32 bar, now, 8, shared;
    WAIT_${{:uid}}:
        mbarrier.try_wait.parity.shared::cta.b64 ready, [bar+{full}], phase;
        @!ready bra WAIT_${{:uid}};
        mad.lo.u32 place, now, {CONSUMERS * tiles * BLOCK_BYTES}, mine;"""


@gluon.constexpr_function
def enter(tiles, block_t, stages):
    """$1 a tile's first stage, $2 its parity: wait for it and load its words."""
    return f"""{{
        .reg .b32 bar, now, phase, place;
        .reg .pred ready;
        mov.b32 now, $1;
        mov.b32 phase, $2;
        {wait_full(tiles, block_t, stages)}
        {"".join(load_words(m) for m in range(tiles))}
        {DONE}
    }}"""


@gluon.constexpr_function
def stage(tiles, block_t, stages, sparse):
    """$1 stage, $2 its parity, $3 the stage before (or -1), $4 zero in a tile's first stage, $5 zero in its last.

    One product in flight at every point. A row block's words for the next stage are loaded behind their last use in this one: the products
    keep the port to shared memory so busy that such a load takes several of them.
    """
    empty = shared_offsets(tiles, block_t, stages)[4]
    text = f"""{{
        .reg .b32 t, bar, now, phase, place;
        .reg .b64 at, to;
        .reg .pred ready, more, always, wrap, next;
        setp.ne.b32 more, $4, 0;
        setp.ne.b32 next, $5, 0;
        setp.eq.b32 always, 0, 0;
        mov.b32 phase, $2;
        mad.lo.u32 t, $1, {block_t * STAGE_COLUMNS}, shared;
        shr.u32 t, t, 4;
        and.b32 t, t, 0x3FFF;
        cvt.u64.u32 at, t;
        add.u64 at, at, {DESCRIPTOR};
        mad.lo.u32 place, $1, {CONSUMERS * tiles * BLOCK_BYTES}, mine;"""
    # In the last stage the loads read this stage once more, unused: behind a predicate, ptxas serializes the products (C7513); so it does
    # where this wait stands behind the first product of several row blocks.
    count = 2 if sparse else 4
    for index in range(count * tiles):
        if index == (0 if tiles > 1 else count - 1):
            text += f"""
        @!next bra LAST_${{:uid}};
        add.u32 now, $1, 1;
        setp.eq.u32 wrap, now, {stages};
        selp.b32 now, 0, now, wrap;
        @wrap xor.b32 phase, phase, 1;
        {wait_full(tiles, block_t, stages)}
    LAST_${{:uid}}:"""
        text += product(index, tiles, block_t, sparse) + "\nwgmma.wait_group.sync.aligned 1;"
        text += release("$3", empty) if index == 0 else ""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def drain(empty):
    """$1 the last stage: wait for every product, hand the stage back."""
    return "wgmma.wait_group.sync.aligned 0;" + release("$1", empty) + "\n" + DONE
