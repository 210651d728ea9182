"""The PTX of the decode GEMM's main loop by warpgroups (sm_90): the same ring and weights, activations read by the tensor cores themselves.

For many tokens `mma` and `ldmatrix` are what takes time: here a warpgroup multiplies 64 rows by all tokens of the program at once, from
registers and from activations in shared memory. These lie in blocks of 128 columns: 128 bytes a token, eight tokens a kibibyte, in the
128-byte swizzle. The layouts of weights are those of a warpgroup: warp q of it holds rows 16q … of every block of 64.
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.decode_ptx import BLOCK_BYTES, DONE, HEADER, TILE_BYTES, log2
from kernels.ternary_gemm.sparse_wgmma_ptx import DESCRIPTOR

GROUP_BYTES = 1024
"""Bytes of eight tokens of a block of 128 columns."""


@gluon.constexpr_function
def whole(tokens8):
    """Tokens of a product, in eights: what the instruction offers for eight-bit integers."""
    return tokens8 if tokens8 < 5 else tokens8 + tokens8 % 2


@gluon.constexpr_function
def declare(tiles):
    """Registers besides those of every decode kernel: the weights of each row block, and the activations at hand as a descriptor."""
    return f".reg .b64 from<{tiles}>, desc;\n{DONE}"


@gluon.constexpr_function
def prime(tiles, depth, warps_m, warps_k):
    """$1 weights, $2 row tile, $3 blocks of 64 rows, $4 blocks along in_features, $5 this program's first block, $6 its end.

    Points `from` at this thread's words of its warpgroup's first blocks, `slot` at the first place of its ring. Row blocks behind the last
    are the last again, never stored.
    """
    text = f"""{{
        .reg .b32 warp, lane, block, first, t;
        mov.u32 lane, %tid.x;
        shr.u32 warp, lane, 5;
        and.b32 lane, lane, 31;
        mov.u32 ring, global_smem;
        mad.lo.u32 ring, warp, {depth * tiles * TILE_BYTES}, ring;
        mad.lo.u32 ring, lane, 16, ring;
        add.u32 ring, ring, {HEADER};
        mov.b32 slot, ring;
        mov.u32 lane, %tid.x;
        and.b32 lane, lane, 127;
        and.b32 t, warp, {warps_m - 1};
        shr.u32 t, t, 2;
        shr.u32 warp, warp, {log2(warps_m)};
        mad.lo.u32 first, $2, {warps_m // 4}, t;
        mul.lo.u32 first, first, {tiles};
        add.u32 warp, warp, $5;
        sub.u32 left, $6, warp;
        add.u32 left, left, {warps_k - 1};
        shr.s32 left, left, {log2(warps_k)};
        sub.u32 t, $3, 1;"""
    for m in range(tiles):
        text += f"""
        add.u32 block, first, {m};
        min.u32 block, block, t;
        mad.lo.u32 block, block, $4, warp;
        mad.wide.u32 from{m}, block, {BLOCK_BYTES}, $1;
        mad.wide.u32 from{m}, lane, 16, from{m};"""
    return text + f"\nmov.b32 amax, 0;\n{DONE}\n}}"


@gluon.constexpr_function
def load_step(slot, ahead, tiles, warps_k):
    """Copy the blocks `ahead` steps behind `from` to a slot of the ring, where this warp has so many left; one group, empty or not."""
    text = f"\nsetp.gt.s32 more, left, {ahead};"
    for m in range(tiles):
        text += f"\n@more cp.async.cg.shared.global.L2::128B [{slot}+{m * TILE_BYTES}], [from{m}+{ahead * warps_k * BLOCK_BYTES}], 16;"
    return text + "\ncp.async.commit_group;"


@gluon.constexpr_function
def preload(first, last, tiles, warps_k):
    """Starts the copies of steps first … last - 1 (`slot` still points at the ring's first place)."""
    text = "{\n.reg .pred more;\n.reg .b32 t;"
    for step in range(first, last):
        text += f"\nadd.u32 t, slot, {step * tiles * TILE_BYTES};" + load_step("t", step, tiles, warps_k)
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def copy_in(unroll, threads, rows, base, tokens8):
    """`unroll` asynchronous copies of 16 activations a thread, of `rows` tokens at once, to where the products look for them.

    $1 x int8, $2 bytes of its rows, $3 tokens, $4 which rows, $5 which columns, $6 buffer, $7 first column, $8 columns. What lies behind
    these is not written: it meets weights that are zero, or none, or tokens that are none.
    """
    across = threads // rows
    text = f"""{{
        .reg .b32 row, column, t, at, to;
        .reg .b64 source;
        .reg .pred here, inside;
        mov.u32 t, %tid.x;
        shr.u32 row, t, {log2(across)};
        and.b32 column, t, {across - 1};
        mad.lo.u32 row, $4, {rows}, row;
        mad.lo.u32 column, $5, {across * unroll}, column;
        setp.lt.u32 here, row, $3;
        mov.u32 at, global_smem;
        mad.lo.u32 at, row, 128, at;
        add.u32 at, at, $6;
        shl.b32 t, column, 4;
        add.u32 t, t, $7;
        mad.lo.u32 t, row, $2, t;
        cvt.u64.u32 source, t;
        add.s64 source, source, $1;
        and.b32 row, row, 7;"""
    for u in range(unroll):
        text += f"""
        shl.b32 t, column, 4;
        setp.lt.and.u32 inside, t, $8, here;
        and.b32 t, column, 7;
        xor.b32 t, t, row;
        shr.u32 to, column, 3;
        mad.lo.u32 to, to, {tokens8 * GROUP_BYTES}, at;
        mad.lo.u32 to, t, 16, to;
        @inside cp.async.cg.shared.global [to+{base}], [source+{16 * across * u}], 16;
        add.u32 column, column, {across};"""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def arrived(pending):
    """As `decode_ptx.arrived`; the tensor cores, too, find what has been copied."""
    return f"cp.async.wait_group {pending};\nfence.proxy.async.shared::cta;\nbar.sync 0;\n{DONE}"


@gluon.constexpr_function
def aim(tokens8, warps_m, base):
    """$1 buffer: this warpgroup's first block of the activations in it."""
    return f"""{{
        .reg .b32 warp, at;
        mov.u32 warp, %tid.x;
        shr.u32 warp, warp, {5 + log2(warps_m)};
        mov.u32 at, global_smem;
        add.u32 at, at, $1;
        mad.lo.u32 at, warp, {tokens8 * GROUP_BYTES}, at;
        add.u32 at, at, {base};
        shr.u32 at, at, 4;
        and.b32 at, at, 0x3FFF;
        cvt.u64.u32 desc, at;
        add.u64 desc, desc, {DESCRIPTOR};
        {DONE}
    }}"""


@gluon.constexpr_function
def unpack(tiles, sparse):
    """All words of a step as 64 times the weights: four registers for each product."""
    text, count = "", 2 if sparse else 4
    for index in range(count * tiles):
        word = 4 * (index // count) + index % count * (4 // count)
        for i in range(4):
            text += f"\nshl.b32 f{4 * index + i}, word{word}, {2 * i};\nand.b32 f{4 * index + i}, f{4 * index + i}, 0xC0C0C0C0;"
    return text


@gluon.constexpr_function
def product(index, tokens8, sparse):
    """One product: 64 columns (dense: 32) of a row block times all tokens."""
    count = 2 if sparse else 4
    m, place = index // count, index % count
    registers = ", ".join(f"acc{4 * m * tokens8 + i}" for i in range(4 * tokens8))
    fragments = ", ".join(f"f{4 * index + i}" for i in range(4))
    metadata = f"word{4 * m + 2 * place + 1}, 0, " if sparse else ""
    name = f"sp.sync.aligned.m64n{8 * tokens8}k64" if sparse else f"sync.aligned.m64n{8 * tokens8}k32"
    return f"""
        add.u64 to, desc, {8 // count * place};
        wgmma.mma_async.{name}.s32.s8.s8 {{{registers}}}, {{{fragments}}}, to, {metadata}always;"""


@gluon.constexpr_function
def step(tiles, tokens8, depth, warps_k, sparse):
    """One block of 128 columns of every warpgroup that has one left; its place in the ring is filled again, `depth` steps ahead."""
    count = (2 if sparse else 4) * tiles
    text = f"""{{
        .reg .b32 word<{4 * tiles}>;
        .reg .b32 f<{4 * count}>;
        .reg .b32 t;
        .reg .b64 to;
        .reg .pred more, none, always;
        cp.async.wait_group {depth - 1};
        setp.le.s32 none, left, 0;
        setp.eq.b32 always, 0, 0;
        @none bra.uni NONE_${{:uid}};"""
    for m in range(tiles):
        words = ", ".join(f"word{4 * m + i}" for i in range(4))
        text += f"\nld.shared.v4.b32 {{{words}}}, [slot+{m * TILE_BYTES}];"
    text += unpack(tiles, sparse) + "\nwgmma.fence.sync.aligned;"
    text += "".join(product(index, tokens8, sparse) for index in range(count))
    text += f"""
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
    NONE_${{:uid}}:{load_step("slot", depth, tiles, warps_k)}
        add.u64 desc, desc, {warps_k * tokens8 * GROUP_BYTES // 16};"""
    text += "".join(f"\nadd.s64 from{m}, from{m}, {warps_k * BLOCK_BYTES};" for m in range(tiles))
    return text + f"""
        sub.s32 left, left, 1;
        add.u32 slot, slot, {tiles * TILE_BYTES};
        sub.u32 t, slot, ring;
        setp.ge.u32 more, t, {depth * tiles * TILE_BYTES};
        selp.b32 slot, ring, slot, more;
        {DONE}
    }}"""


@gluon.constexpr_function
def buffer_bytes(tokens8, blocks):
    """Shared memory for so many blocks of 128 columns."""
    return blocks * tokens8 * GROUP_BYTES
