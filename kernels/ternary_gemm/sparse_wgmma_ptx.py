"""What the PTX of the Hopper GEMMs shares: shared memory, registers, and the start of a launch.

Gluon has no sparse product, and none with packed weights in registers, so the main loop is text. Accumulators and fragments live in PTX
registers of their own names, declared once at the kernel's entry: a product that is in flight must not pass through the compiler.
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
X_DESCRIPTOR, Y_DESCRIPTOR = "sparse_gemm_param_0", "sparse_gemm_param_5"
"""The TMA descriptors among the kernel's parameters; that of the activations makes five. A test reads their names."""
DONE = "mov.b32 $0, 0;"
"""Every block returns a zero that nobody reads."""


@gluon.constexpr_function
def scale_bytes(tiles, block_t):
    """Bytes of one warpgroup's scales in shared memory: a tile's token scales, then its row scales, then its biases, float32."""
    return 4 * block_t + 2 * 4 * 64 * tiles


@gluon.constexpr_function
def shared_offsets(tiles, block_t, stages):
    """Byte offsets in shared memory of the packed weights, the output staging, the scales, the full and the empty barriers, and the end.

    The stages of activations come first, from `global_smem`; behind the end lies what `sparse_wgmma_split` needs, in the same allocation.
    """
    weights = stages * block_t * STAGE_COLUMNS
    staging = weights + stages * CONSUMERS * tiles * BLOCK_BYTES
    scales = staging + CONSUMERS * SLICES * SLICE * ROW_BYTES
    full = scales + CONSUMERS * scale_bytes(tiles, block_t)
    return weights, staging, scales, full, full + 8 * stages, full + 16 * stages


@gluon.constexpr_function
def copies(tiles):
    """Row blocks of a tile that one of the producer's three other warps has at most."""
    return -(-CONSUMERS * tiles // 3)


@gluon.constexpr_function
def is_short(tiles, block_t):
    """Whether a stage's products are so few and short that waiting for each of them shows (H200, 2026-11-22: 128 × 64 took 0.147 µs a
    stage and takes 0.136, 128 × 128 0.203 and 0.190; 128 × 256 is 7 % slower so)."""
    return tiles == 1 and block_t <= 128


@gluon.constexpr_function
def is_grouped(tiles, block_t):
    """Whether the products of a row block go together, several row blocks a stage: products of 64 tokens are too short to be waited for one
    by one."""
    return tiles > 1 and block_t <= 64


@gluon.constexpr_function
def fragment_sets(tiles, block_t):
    """Sets of fragments: two products in flight, or two groups of up to four (of an odd number of row blocks three: a stage's first
    overwrites what was read two before)."""
    if is_grouped(tiles, block_t):
        return 4 * (2 + tiles % 2)
    return 8 if is_short(tiles, block_t) else 2


@gluon.constexpr_function
def declare(tiles, block_t):
    """Registers: accumulators, alternating sets of fragments and metadata (of a product, a row block or a short stage), a stage's words;
    the ring as a consumer sees it.

    shared, mine: shared memory, and the thread's words of stage 0. slot, phase: the stage at hand and its parity; desc and words: its
    activations and the thread's words; left: the stage before, not handed back yet (or -1). ahead, parity, later: the next stage, its
    parity and the thread's words of it; ready: whether it was seen full. turn: slices of the output staged so far.

    Of the producer, four warps: lead is the one that brings the activations, by descriptor map. The others have the row blocks of weights
    block, block + 3, … of the tile, as many as has says: at from in device memory, from `to` on in stage 0. works: it has any to copy. Of
    a pair of programs, which share their activations: half, the first token that this one brings; peer, the other one.
    """
    return f"""
        .reg .b32 acc<{tiles * block_t // 2}>;
        .reg .b32 frag<{4 * fragment_sets(tiles, block_t)}>;
        .reg .b32 meta<{fragment_sets(tiles, block_t)}>;
        .reg .b32 word<{4 * tiles}>;
        .reg .b32 shared, mine, slot, phase, words, left, ahead, parity, later, turn, block, to, half, peer;
        .reg .b64 desc, map, from<{copies(tiles)}>;
        .reg .pred ready, lead, works, has<{copies(tiles)}>;
        {DONE}"""


@gluon.constexpr_function
def begin(tiles, block_t, stages, pair, wide):
    """At the kernel's start: let the next launch begin, ask for the TMA descriptors, set up all barriers but the first (one arrival for a
    full stage, eight of each program for an empty one)."""
    full = shared_offsets(tiles, block_t, stages)[3]
    text = """{
        .reg .b32 t;
        .reg .pred one;
        griddepcontrol.launch_dependents;
        mov.u32 t, %tid.x;
        setp.eq.u32 one, t, 0;"""
    for i in range(1, 2 * stages):
        text += f"\n@one mbarrier.init.shared::cta.b64 [global_smem+{full + 8 * i}], {1 if i < stages else 4 * CONSUMERS * pair};"
    text += "\nfence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;"
    for name in (X_DESCRIPTOR, Y_DESCRIPTOR) if wide else (X_DESCRIPTOR,):
        text += f"""
        setp.eq.u32 one, t, {32 if name == X_DESCRIPTOR else 64};
        mov.b64 map, {name};
        cvta.param.u64 map, map;
        @one prefetch.tensormap [map];"""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def depend(early=False):
    """Wait for the launches before this one: from here on what they wrote may be read, and what they read overwritten. early: only the
    producer's warp that brings the activations waits; those that bring the weights do not."""
    return f"{'@lead ' if early else ''}griddepcontrol.wait;\n{DONE}"


@gluon.constexpr_function
def rank():
    """Which program of its cluster this is."""
    return "mov.u32 $0, %cluster_ctarank;"
