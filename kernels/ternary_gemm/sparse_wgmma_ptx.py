"""The PTX of the Hopper GEMMs' main loop, sparse and dense: what a consumer thread does at a tile's start and in a stage.

Gluon has no sparse product, and none with packed weights in registers, so these blocks are text. Accumulators and fragments live in PTX
registers of their own names, declared once at the kernel's entry: a product that is in flight must not pass through the compiler. Both
consumer warpgroups run the same text (registers belong to threads); they differ by `%tid.x`, of which bit 7 is the warpgroup.

A stage covers 128 columns of each of `tiles` row blocks of 64. Weights come straight from device memory, 16 bytes a thread and block
(layout fragment24, or fragment where they are dense), loaded one stage ahead into the registers that the stage has just unpacked.
"""

from __future__ import annotations

from triton.experimental import gluon

STAGE_COLUMNS = 128
BLOCK_BYTES = 2048
"""Bytes of one block of 64 × 128 weights."""
ROW_BYTES = 128
"""Bytes of a staged output row: 64 values of 16 bits, in the 128-byte swizzle."""
CONSUMERS = 2
DONE = "mov.b32 $0, 0;"
"""Every block returns a zero that nobody reads."""


@gluon.constexpr_function
def shared_offsets(block_t, stages):
    """Byte offsets in shared memory of the output staging (a buffer per warpgroup), the full and the empty barriers, and the end.

    The stages of activations come first, from `global_smem`.
    """
    staging = stages * block_t * STAGE_COLUMNS
    full = staging + CONSUMERS * block_t * ROW_BYTES
    return staging, full, full + 8 * stages, full + 16 * stages


@gluon.constexpr_function
def declare(tiles, block_t):
    """Registers: accumulators, two alternating sets of fragments and metadata, the next stage's words and their addresses."""
    return f"""
        .reg .b32 acc<{tiles * block_t // 2}>;
        .reg .b32 frag<8>;
        .reg .b32 meta<2>;
        .reg .b32 word<{4 * tiles}>;
        .reg .b64 next<{tiles}>;
        {DONE}"""


@gluon.constexpr_function
def delay(clocks):
    """The second warpgroup starts `clocks` later: each one's epilogue then runs under the other's products."""
    return f"""{{
        .reg .b32 start, now;
        .reg .pred second, early;
        mov.u32 now, %tid.x;
        setp.ge.u32 second, now, 128;
        mov.u32 start, %clock;
    SPIN_${{:uid}}:
        mov.u32 now, %clock;
        sub.u32 now, now, start;
        setp.lt.and.u32 early, now, {clocks}, second;
        @early bra SPIN_${{:uid}};
        {DONE}
    }}"""


@gluon.constexpr_function
def point(tiles):
    """$1 weights, $2 first row block of the tile, $3 row blocks there are, $4 blocks along in_features.

    Points `next` at the tile's first blocks; a row block behind the last is the last one again, and what it gives is not stored.
    """
    text = f"""{{
        .reg .b32 t, block, last, at;
        mov.u32 t, %tid.x;
        shr.u32 block, t, 7;
        mad.lo.u32 block, block, {tiles}, $2;
        and.b32 t, t, 127;
        sub.u32 last, $3, 1;
        """
    for m in range(tiles):
        text += f"""
        add.u32 at, block, {m};
        min.u32 at, at, last;
        mul.lo.u32 at, at, $4;
        mad.wide.u32 next{m}, at, {BLOCK_BYTES}, $1;
        mad.wide.u32 next{m}, t, 16, next{m};"""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def load_words(m):
    """Load row block m's words for the stage that `next` points to, and point behind it."""
    words = ", ".join(f"word{4 * m + i}" for i in range(4))
    return f"""
        ld.global.nc.L1::no_allocate.v4.b32 {{{words}}}, [next{m}];
        add.s64 next{m}, next{m}, {BLOCK_BYTES};"""


@gluon.constexpr_function
def prime(tiles, block_t):
    """The first stage's words, and a value for every accumulator: a product in flight may not be the first to define one (C7515)."""
    loads = "".join(load_words(m) for m in range(tiles))
    return loads + "".join(f"mov.b32 acc{i}, 0;\n" for i in range(tiles * block_t // 2)) + DONE


@gluon.constexpr_function
def release(stage, empty):
    """Lane 0 of every warp hands the stage back to the producer, unless it is negative."""
    return f"""
        {{
        .reg .b32 lane, bar;
        .reg .pred first;
        mov.u32 lane, %tid.x;
        and.b32 lane, lane, 31;
        setp.eq.u32 first, lane, 0;
        setp.ge.and.s32 first, {stage}, 0, first;
        mov.u32 bar, global_smem;
        shl.b32 lane, {stage}, 3;
        add.u32 bar, bar, lane;
        @first mbarrier.arrive.release.cta.shared::cta.b64 _, [bar+{empty}];
        }}"""


@gluon.constexpr_function
def product(index, tiles, block_t, sparse):
    """One of a stage's products: unpack, load ahead behind the last use of the words, multiply, leave it in flight.

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
    if step == count - 1:
        text += load_words(m)
    registers = ", ".join(f"acc{m * accumulators + i}" for i in range(accumulators))
    fragments = ", ".join(f"frag{4 * side + j}" for j in range(4))
    name = f"sp.sync.aligned.m64n{block_t}k64" if sparse else f"sync.aligned.m64n{block_t}k32"
    return text + f"""
        add.u64 to, at, {(4 if sparse else 2) * step};
        wgmma.fence.sync.aligned;
        wgmma.mma_async.{name}.s32.s8.s8
            {{{registers}}},
            {{{fragments}}}, to, {f"meta{side}, 0, " if sparse else ""}{"always" if step else "more"};
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 1;"""


@gluon.constexpr_function
def stage(tiles, block_t, full, empty, sparse):
    """$1 stage, $2 its parity, $3 the stage before (or -1), $4 zero in a tile's first stage. One product in flight at every point."""
    # The descriptor: 128-byte swizzle, 1,024 bytes between groups of eight rows; a column is a byte, counted in sixteens.
    text = f"""{{
        .reg .b32 t, base, bar;
        .reg .b64 at, to;
        .reg .pred ready, more, always;
        mov.u32 base, global_smem;
        shl.b32 t, $1, 3;
        add.u32 bar, base, t;
    WAIT_${{:uid}}:
        mbarrier.try_wait.parity.shared::cta.b64 ready, [bar+{full}], $2;
        @!ready bra WAIT_${{:uid}};
        mad.lo.u32 t, $1, {block_t * STAGE_COLUMNS}, base;
        shr.u32 t, t, 4;
        and.b32 t, t, 0x3FFF;
        cvt.u64.u32 at, t;
        add.u64 at, at, {0x4000004000010000};
        setp.ne.b32 more, $4, 0;
        setp.eq.b32 always, 0, 0;"""
    for index in range((2 if sparse else 4) * tiles):
        text += product(index, tiles, block_t, sparse)
        text += release("$3", empty) if index == 0 else ""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def drain(empty):
    """$1 the last stage: wait for every product, hand the stage back."""
    return "wgmma.wait_group.sync.aligned 0;" + release("$1", empty) + "\n" + DONE
