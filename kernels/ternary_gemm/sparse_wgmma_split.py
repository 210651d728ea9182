"""The PTX with which the parts of a split tile meet: the programs that multiplied it over different columns add up their sums."""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.sparse_wgmma_ptx import CONSUMERS, DONE, SLICE


@gluon.constexpr_function
def merge(tiles, block_t, splits):
    """$1 partial sums, $2 arrivals, $3 split tile, $4 which part of it this program did.

    The parts of a tile meet in device memory: each program writes its sums but those of its own slices of tokens, waits until all have,
    and adds the others' to its own (integers: any order gives the same bits). All programs of a launch run at once (cooperative launch).
    Arrivals are counted on and on, a 64-bit counter per tile and warpgroup.
    """
    groups, per_slice = block_t // 8, SLICE // 8
    merged = {64: 16, 128: 8}.get(tiles * block_t // 2, 8 if tiles * block_t < 256 else 2)  # loads in flight: what registers are left
    text = f"""{{
        .reg .b32 t, wg, slot, low, high;
        .reg .b64 own_sums, theirs, counter, seen, all;
        .reg .pred first, own, early;
        .reg .b32 v<{4 * merged}>;
        mov.u32 t, %tid.x;
        shr.u32 wg, t, 7;
        and.b32 t, t, 127;
        mad.lo.u32 slot, $3, {CONSUMERS}, wg;
        mad.wide.u32 counter, slot, 8, $2;
        mad.wide.u32 theirs, slot, {splits * tiles * groups * 2048}, $1;
        mad.wide.u32 theirs, t, 16, theirs;
        mad.wide.u32 own_sums, $4, {tiles * groups * 2048}, theirs;
        mul.lo.u32 low, $4, {groups // per_slice};
        add.u32 high, low, {groups // per_slice};
        div.u32 low, low, {splits};
        div.u32 high, high, {splits};
        setp.eq.u32 first, t, 0;
        add.u32 slot, wg, 8;"""
    for index in range(groups * tiles):
        values = ", ".join(f"acc{index % tiles * block_t // 2 + 4 * (index // tiles) + i}" for i in range(4))
        text += owned(index // tiles // per_slice) + f"\n@!own st.global.v4.b32 [own_sums+{2048 * index}], {{{values}}};"
    text += f"""
        fence.acq_rel.gpu;
        bar.sync slot, 128;
        @!first bra GO_${{:uid}};
        atom.acq_rel.gpu.global.add.u64 seen, [counter], 1;
        div.u64 all, seen, {splits};
        mad.lo.u64 all, all, {splits}, {splits};
    SPIN_${{:uid}}:
        ld.acquire.gpu.global.u64 seen, [counter];
        setp.lt.u64 early, seen, all;
        @early bra SPIN_${{:uid}};
    GO_${{:uid}}:
        bar.sync slot, 128;
        fence.acq_rel.gpu;"""
    for part in range(groups // per_slice):
        text += owned(part) + f"\n@!own bra SKIP{part}_${{:uid}};"
        blocks = [index for index in range(groups * tiles) if index // tiles // per_slice == part]
        pieces = [other * len(blocks) + i for other in range(splits) for i in range(len(blocks))]
        for first in range(0, len(pieces), merged):
            for piece in pieces[first : first + merged]:
                at = 4 * (piece - first)
                place = piece // len(blocks) * tiles * groups * 2048 + 2048 * blocks[piece % len(blocks)]
                text += f"\nsetp.ne.u32 early, $4, {piece // len(blocks)};"
                text += "".join(f"\nmov.b32 v{at + i}, 0;" for i in range(4))
                text += f"\n@early ld.relaxed.gpu.global.v4.b32 {{v{at}, v{at + 1}, v{at + 2}, v{at + 3}}}, [theirs+{place}];"
            for piece in pieces[first : first + merged]:
                block = blocks[piece % len(blocks)]
                for i in range(4):
                    sum_ = f"acc{block % tiles * block_t // 2 + 4 * (block // tiles) + i}"
                    text += f"\nadd.s32 {sum_}, {sum_}, v{4 * (piece - first) + i};"
        text += f"\nSKIP{part}_${{:uid}}:"
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def owned(part):
    """Sets own: whether this program completes that slice of the tokens, of [low, high)."""
    return f"\nsetp.le.u32 own, low, {part};\nsetp.gt.and.u32 own, high, {part}, own;"
