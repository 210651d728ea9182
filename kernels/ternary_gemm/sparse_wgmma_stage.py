"""The PTX of the Hopper GEMMs' main loop: a consumer's way through the ring, unpacking, and products.

Kinds of product: "sparse" and "dense" ones of int8, and "wide" ones, sparse in bf16. Both consumer warpgroups run the same text (registers
belong to threads); they differ by `%tid.x`, of which bit 7 is the warpgroup.

A stage covers 128 columns (wide: 64) of each of `tiles` row blocks of 64. Packed weights lie in the stage as in device memory, 16 bytes a
thread and block, and are loaded one stage ahead into the registers just unpacked.
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.sparse_wgmma_ptx import (
    BLOCK_BYTES,
    CONSUMERS,
    DESCRIPTOR,
    DONE,
    STAGE_COLUMNS,
    shared_offsets,
)


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
        mov.u32 peer, %cluster_ctarank;
        xor.b32 peer, peer, 1;
        {DONE}
    }}"""


@gluon.constexpr_function
def release(empty, pair, slot="left"):
    """Lane 0 of every warp hands a stage back to the producers, if there is one (`mine` counts lanes in sixteens)."""
    remote = f"""
        add.u32 bar, bar, {empty};
        mapa.shared::cluster.u32 bar, bar, peer;
        @first mbarrier.arrive.shared::cluster.b64 _, [bar];"""
    return f"""
        {{
        .reg .b32 lane, bar;
        .reg .pred first;
        and.b32 lane, mine, {31 * 16};
        setp.eq.u32 first, lane, 0;
        setp.ge.and.s32 first, {slot}, 0, first;
        mad.lo.u32 bar, {slot}, 8, shared;
        @first mbarrier.arrive.release.cta.shared::cta.b64 _, [bar+{empty}];
        {remote if pair > 1 else ""}
        }}"""


@gluon.constexpr_function
def load_words(m):
    """Load row block m's words from `place`."""
    words = ", ".join(f"word{4 * m + i}" for i in range(4))
    return f"\nld.shared.v4.b32 {{{words}}}, [place+{m * BLOCK_BYTES}];"


@gluon.constexpr_function
def products(kind):
    """Products of one row block of a stage: 64 columns of int8 each where the weight is sparse, 32 where it is dense; 32 of bf16 (wide)."""
    return 4 if kind == "dense" else 2


@gluon.constexpr_function
def unpack(m, step, side, kind):
    """The fragments of one product of row block m, into set `side`.

    A code of two bits, its sign and its magnitude, becomes 64 times the weight in a byte; or ± the scale in bf16, where a values word
    holds 16 codes in the upper bytes of its halves and the scale in the lower ones.
    """
    word = 4 * m + (step if kind == "dense" else 2 * step)
    text = f"\nprmt.b32 scale, word{word}, 0, 0x4420;" if kind == "wide" else ""
    for j in range(4):
        fragment = f"frag{4 * side + j}"
        text += f"\nshl.b32 t, word{word}, {2 * j};"
        if kind == "wide":
            text += f"""
        and.b32 sign, t, 0x80008000;
        shr.u32 t, t, 14;
        and.b32 t, t, 0x00010001;
        mad.lo.u32 {fragment}, t, scale, sign;"""
        else:
            text += f"\nand.b32 {fragment}, t, 0xC0C0C0C0;"
    # A permutation that changes nothing: behind a plain mov, ptxas takes the operand for redefined by the load and serializes (C7513).
    return text + (f"\nprmt.b32 meta{side}, word{word + 1}, word{word + 1}, 0x3210;" if kind != "dense" else "")


@gluon.constexpr_function
def multiply(m, step, side, block_t, kind):
    """That product with the stage's activations, of which `desc` is the descriptor; `more` is false where an accumulator starts from
    zero."""
    accumulators = block_t // 2
    registers = ", ".join(f"acc{m * accumulators + i}" for i in range(accumulators))
    fragments = ", ".join(f"frag{4 * side + j}" for j in range(4))
    name = {"sparse": f"sp.sync.aligned.m64n{block_t}k64.s32.s8.s8", "dense": f"sync.aligned.m64n{block_t}k32.s32.s8.s8",
            "wide": f"sp.sync.aligned.m64n{block_t}k32.f32.bf16.bf16"}[kind]
    return f"""
        add.u64 operand, desc, {(2 if kind == "dense" else 4) * step};
        wgmma.mma_async.{name}
            {{{registers}}},
            {{{fragments}}}, operand, {"" if kind == "dense" else f"meta{side}, 0, "}{"always" if step else "more"}{
        ", 1, 1, 0" if kind == "wide" else ""};"""


@gluon.constexpr_function
def product(index, block_t, kind):
    """One of a stage's products: unpack, load the next stage's words behind the last use of these, multiply, leave it in flight.

    The fragments that a product overwrites were last read by the one before the one in flight.
    """
    count = products(kind)
    m, step = index // count, index % count
    text = unpack(m, step, index % 2, kind) + (load_words(m) if step == count - 1 else "")
    return text + "\nwgmma.fence.sync.aligned;" + multiply(m, step, index % 2, block_t, kind) + "\nwgmma.commit_group.sync.aligned;"


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
def open_stage(first, left):
    """more: whether accumulators are added to (`first` zero: they start anew). next: whether there is a next stage (`left` zero: no), and
    place its words; full: whether it need not be waited for."""
    return f"""
        setp.ne.b32 more, {first}, 0;
        setp.ne.b32 next, {left}, 0;
        setp.eq.b32 always, 0, 0;
        selp.b32 place, later, words, next;
        not.pred full, next;
        or.pred full, full, ready;"""


@gluon.constexpr_function
def await_next(full, label):
    """Wait for the next stage, unless there is none or it was seen full. In a tile's last stage words are read from this one once more,
    unused: behind a predicate ptxas would serialize the products (C7513)."""
    return f"""
        @full bra GO{label}_${{:uid}};
        mad.lo.u32 t, ahead, 8, shared;
    WAIT{label}_${{:uid}}:
        mbarrier.try_wait.parity.shared::cta.b64 ready, [t+{full}], parity;
        @!ready bra WAIT{label}_${{:uid}};
    GO{label}_${{:uid}}:"""


@gluon.constexpr_function
def advance(tiles, block_t, stages):
    """To the next stage; whether the one behind it is full is asked a stage before it must be."""
    return f"""
        mov.b32 left, slot;
        mov.b32 slot, ahead;
        mov.b32 phase, parity;
        mov.b32 words, later;
        {look_ahead(tiles, block_t, stages)}"""


SCOPE = """{
        .reg .b32 t, place, gone, scale, sign;
        .reg .b64 operand;
        .reg .pred more, always, wrap, next, full, single;"""


@gluon.constexpr_function
def stage(tiles, block_t, stages, pair, kind):
    """A stage product by product, one in flight at every point: $1 zero in a tile's first one, $2 how many follow.

    A row block's words for the next stage are loaded behind their last use in this one: the products keep the port to shared memory so busy
    that such a load takes several of them. The wait for the next stage stands as late as the first load allows; with several row blocks
    first, for ptxas serializes the products (C7513) where a branch stands between the first two.
    """
    _, _, _, full, empty, _ = shared_offsets(tiles, block_t, stages)
    last = products(kind) * tiles - 1
    text = SCOPE + open_stage("$1", "$2")
    for index in range(last + 1):
        text += await_next(full, "") if index == (0 if tiles > 1 else last) else ""
        text += product(index, block_t, kind)
        text += advance(tiles, block_t, stages) if index == last else ""
        text += "\nwgmma.wait_group.sync.aligned 1;"
        text += release(empty, pair) if index == 0 else ""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def grouped_stage(tiles, block_t, stages, pair, kind):
    """A stage row block by row block: $1 zero in a tile's first one, $2 how many follow. The products of a row block go together, and those
    of the row block before are waited for behind them."""
    _, _, _, full, empty, _ = shared_offsets(tiles, block_t, stages)
    text, count = SCOPE + open_stage("$1", "$2"), products(kind)
    for m in range(tiles):
        sets = [count * (m % (2 + tiles % 2)) + step for step in range(count)]
        text += await_next(full, "") if m == 0 else ""
        text += "".join([unpack(m, step, sets[step], kind) for step in range(count)]) + load_words(m)
        text += "\nwgmma.fence.sync.aligned;" + "".join([multiply(m, step, sets[step], block_t, kind) for step in range(count)])
        text += "\nwgmma.commit_group.sync.aligned;"
        text += advance(tiles, block_t, stages) if m == tiles - 1 else ""
        text += "\nwgmma.wait_group.sync.aligned 1;"
        text += release(empty, pair) if m == 0 else ""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def short_stage(side, block_t, stages, pair, kind):
    """A stage whose products go together; those of the stage before are waited for behind them."""
    _, _, _, full, empty, _ = shared_offsets(1, block_t, stages)
    count = products(kind)
    sets = [count * side + step for step in range(count)]
    text = "".join([unpack(0, step, sets[step], kind) for step in range(count)]) + await_next(full, side) + load_words(0)
    text += "\nwgmma.fence.sync.aligned;" + "".join([multiply(0, step, sets[step], block_t, kind) for step in range(count)])
    return text + f"""
        wgmma.commit_group.sync.aligned;
        mov.b32 gone, left;
        {advance(1, block_t, stages)}
        wgmma.wait_group.sync.aligned 1;
        {release(empty, pair, "gone")}"""


@gluon.constexpr_function
def one_stage(block_t, stages, pair, kind):
    """The first of an odd number of short stages: $1 how many follow."""
    return SCOPE + open_stage("0", "$1") + short_stage(1, block_t, stages, pair, kind) + f"\n{DONE}\n}}"


@gluon.constexpr_function
def two_stages(block_t, stages, pair, kind):
    """Two short stages, with a set of fragments each: $1 zero in a tile's first ones, $2 how many follow them."""
    text = SCOPE + open_stage("$1", "1") + short_stage(0, block_t, stages, pair, kind)
    return text + open_stage("1", "$2") + short_stage(1, block_t, stages, pair, kind) + f"\n{DONE}\n}}"


@gluon.constexpr_function
def odd():
    """Whether $1 is odd: were this the compiler's own arithmetic, it would write the loop and the epilogue once for either case."""
    return "and.b32 $0, $1, 1;"


@gluon.constexpr_function
def drain(empty, pair):
    """Wait for every product, hand the last stage back."""
    return "wgmma.wait_group.sync.aligned 0;" + release(empty, pair) + f"\nmov.b32 left, -1;\n{DONE}"
