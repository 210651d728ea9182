"""The PTX of the Hopper GEMMs' main loop, sparse and dense: the producer's copies of weights, a consumer's start of a tile and its stages.

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
    """Registers: accumulators, two alternating sets of fragments and metadata, a stage's words; the ring as a consumer sees it.

    shared, mine: shared memory, and the thread's words of stage 0. slot, phase: the stage at hand and its parity; desc and words: its
    activations and the thread's words; left: the stage before, not handed back yet (or -1). ahead, parity, later: the next stage, its
    parity and the thread's words of it; ready: whether it was seen full. turn: slices of the output staged so far. from: the
    producer's place in the weights.
    """
    return f"""
        .reg .b32 acc<{tiles * block_t // 2}>;
        .reg .b32 frag<8>;
        .reg .b32 meta<2>;
        .reg .b32 word<{4 * tiles}>;
        .reg .b32 shared, mine, slot, phase, words, left, ahead, parity, later, turn;
        .reg .b64 desc, from;
        .reg .pred ready;
        {DONE}"""


@gluon.constexpr_function
def point():
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
    """A value for every accumulator: a product in flight may not be the first to define one (C7515). And the ring's first stage."""
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
        mov.b32 slot, 0;
        mov.b32 phase, 0;
        mov.b32 left, -1;
        mov.b32 turn, 0;
        {DONE}
    }}"""


@gluon.constexpr_function
def release(empty):
    """Lane 0 of every warp hands the stage before back to the producer, if there is one (`mine` counts lanes in sixteens)."""
    return f"""
        {{
        .reg .b32 lane, bar;
        .reg .pred first;
        and.b32 lane, mine, {31 * 16};
        setp.eq.u32 first, lane, 0;
        setp.ge.and.s32 first, left, 0, first;
        mad.lo.u32 bar, left, 8, shared;
        @first mbarrier.arrive.release.cta.shared::cta.b64 _, [bar+{empty}];
        }}"""


@gluon.constexpr_function
def load_words(m):
    """Load row block m's words from `place`."""
    words = ", ".join(f"word{4 * m + i}" for i in range(4))
    return f"\nld.shared.v4.b32 {{{words}}}, [place+{m * BLOCK_BYTES}];"


@gluon.constexpr_function
def product(index, block_t, sparse):
    """One of a stage's products: unpack, load the next stage's words behind the last use of these, multiply, leave it in flight.

    A row block takes two products of 64 columns where it is sparse, four of 32 where it is dense. The fragments that a product overwrites
    were last read by the one before the one in flight. `desc` describes the stage's activations; `more` is false where an accumulator
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
        add.u64 to, desc, {(4 if sparse else 2) * step};
        wgmma.fence.sync.aligned;
        wgmma.mma_async.{name}.s32.s8.s8
            {{{registers}}},
            {{{fragments}}}, to, {f"meta{side}, 0, " if sparse else ""}{"always" if step else "more"};
        wgmma.commit_group.sync.aligned;"""


@gluon.constexpr_function
def look_ahead(tiles, block_t, stages):
    """desc of `slot`; then ahead, parity, later and ready of the stage behind it."""
    full = shared_offsets(tiles, block_t, stages)[3]
    return f"""
        mad.lo.u32 t, slot, {block_t * STAGE_COLUMNS}, shared;
        shr.u32 t, t, 4;
        and.b32 t, t, 0x3FFF;
        cvt.u64.u32 desc, t;
        add.u64 desc, desc, {DESCRIPTOR};
        add.u32 ahead, slot, 1;
        setp.eq.u32 wrap, ahead, {stages};
        selp.b32 ahead, 0, ahead, wrap;
        selp.b32 t, 1, 0, wrap;
        xor.b32 parity, phase, t;
        mad.lo.u32 later, ahead, {CONSUMERS * tiles * BLOCK_BYTES}, mine;
        mad.lo.u32 t, ahead, 8, shared;
        mbarrier.test_wait.parity.shared::cta.b64 ready, [t+{full}], parity;"""


@gluon.constexpr_function
def enter(tiles, block_t, stages):
    """Wait for a tile's first stage and load its words."""
    full = shared_offsets(tiles, block_t, stages)[3]
    return f"""{{
        .reg .b32 t, place;
        .reg .pred wrap;
        mad.lo.u32 t, slot, 8, shared;
    WAIT_${{:uid}}:
        mbarrier.try_wait.parity.shared::cta.b64 ready, [t+{full}], phase;
        @!ready bra WAIT_${{:uid}};
        mad.lo.u32 words, slot, {CONSUMERS * tiles * BLOCK_BYTES}, mine;
        mov.b32 place, words;
        {"".join(load_words(m) for m in range(tiles))}
        {look_ahead(tiles, block_t, stages)}
        {DONE}
    }}"""


@gluon.constexpr_function
def stage(tiles, block_t, stages, sparse):
    """$1 zero in a tile's first stage, $2 zero in its last. One product in flight at every point.

    A row block's words for the next stage are loaded behind their last use in this one: the products keep the port to shared memory so busy
    that such a load takes several of them. Whether the next stage is full is asked a stage before it must be.
    """
    _, _, _, full, empty, _ = shared_offsets(tiles, block_t, stages)
    steps = 2 if sparse else 4
    text = """{
        .reg .b32 t, place;
        .reg .b64 to;
        .reg .pred more, always, wrap, next, full;
        setp.ne.b32 more, $1, 0;
        setp.ne.b32 next, $2, 0;
        setp.eq.b32 always, 0, 0;
        selp.b32 place, later, words, next;
        not.pred full, next;
        or.pred full, full, ready;"""
    for index in range(steps * tiles):
        # As late as the first load allows; with several row blocks, ptxas serializes the products (C7513) where a branch stands between
        # the first two. In the last stage the loads read this stage once more, unused: behind a predicate they would do the same.
        if index == (0 if tiles > 1 else steps - 1):
            text += f"""
        @full bra GO_${{:uid}};
        mad.lo.u32 t, ahead, 8, shared;
    WAIT_${{:uid}}:
        mbarrier.try_wait.parity.shared::cta.b64 ready, [t+{full}], parity;
        @!ready bra WAIT_${{:uid}};
    GO_${{:uid}}:"""
        text += product(index, block_t, sparse)
        if index == steps * tiles - 1:
            text += f"""
        mov.b32 left, slot;
        mov.b32 slot, ahead;
        mov.b32 phase, parity;
        mov.b32 words, later;
        {look_ahead(tiles, block_t, stages)}"""
        text += "\nwgmma.wait_group.sync.aligned 1;"
        text += release(empty) if index == 0 else ""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def drain(empty):
    """Wait for every product, hand the last stage back."""
    return "wgmma.wait_group.sync.aligned 0;" + release(empty) + f"\nmov.b32 left, -1;\n{DONE}"
