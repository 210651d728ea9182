"""The PTX of the decode GEMM: weights through a ring of each warp's own, products from registers, activations into shared memory.

Gluon has no product with packed weights in registers, so these blocks are text; loops stay in Gluon. Accumulators and addresses live in PTX
registers of their own names, declared once at the kernel's entry. Warp w of a program takes the rows of its place w % WM and, along
in_features, every WK-th block of 128 columns from w / WM on. Every lane copies its 16 bytes of a block asynchronously and later reads just
these, so a warp waits for nobody. (Loads straight into registers were compiled first: ptxas gives all loads of the loop one scoreboard,
and a wait for the oldest becomes a wait for the newest.) Shared memory: header, ring, activations; the sums come over the last two.
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm import decode_narrow

COLUMNS = 128
"""in_features of one step of a warp: one block of the packed weight."""
BLOCK_BYTES = 2048
TILE_BYTES = 512
"""Bytes of 16 rows × 128 columns: 16 bytes a lane."""
HEADER = 1024
"""Bytes before the activations: per token its absmax (as bits), at 256 its inverse, at 512 its scale; at 768 the split-K flag."""
ROW_PADDING = 16
"""Bytes behind an activation row: eight rows of 16 bytes then lie in different banks."""
DONE = "mov.b32 $0, 0;"
"""Every block returns a zero that nobody reads, unless it says what it returns."""


@gluon.constexpr_function
def log2(value):
    """The exponent of a power of two."""
    return value.bit_length() - 1


@gluon.constexpr_function
def pieces(tiles, narrow):
    """Copies of 16 bytes a lane in a step of a warp. narrow: 1.5 bits a weight, four tiles side by side (`kernels.fragments_narrow`)."""
    return 3 * tiles // 4 if narrow else tiles


@gluon.constexpr_function
def block_bytes(narrow):
    """Bytes of 64 rows × 128 columns."""
    return 3 * BLOCK_BYTES // 4 if narrow else BLOCK_BYTES


@gluon.constexpr_function
def ring_bytes(tiles, warps, depth, narrow=False):
    """Shared memory of all warps' rings."""
    return warps * depth * pieces(tiles, narrow) * TILE_BYTES


@gluon.constexpr_function
def declare(tiles, tokens8, row_classes):
    """Registers: accumulators, this lane's rows of activations and place in the ring, steps left, where the weights are, absmax, and
    scale and bias of the rows that this thread finishes."""
    return f"""
        .reg .b32 acc<{4 * tiles * tokens8}>;
        .reg .b32 xrow<{tokens8}>;
        .reg .f32 rscale<{row_classes}>, rbias<{row_classes}>;
        .reg .b32 left, slot, ring, amax;
        .reg .b64 next;
        {DONE}"""


@gluon.constexpr_function
def load_step(slot, ahead, tiles, warps_k, narrow):
    """Copy the blocks `ahead` steps behind `next` to a slot of the ring, where this warp has so many left; one group, empty or not."""
    text = f"\nsetp.gt.s32 more, left, {ahead};"
    for m in range(pieces(tiles, narrow)):
        source = ahead * warps_k * block_bytes(narrow) + m * TILE_BYTES
        text += f"\n@more cp.async.cg.shared.global.L2::128B [{slot}+{m * TILE_BYTES}], [next+{source}], 16;"
    return text + "\ncp.async.commit_group;"


@gluon.constexpr_function
def prime(tiles, depth, warps_m, warps_k, narrow=False):
    """$1 weights, $2 row tile, $3 blocks of 64 rows, $4 blocks along in_features, $5 this program's first block, $6 its end (of the last
    row tile, where it does several: they lie one behind the other).

    Points `next` at this warp's first block, `slot` at the first place of its ring. Rows behind the last are the last again, never stored.
    """
    text = f"""{{
        .reg .b32 warp, lane, row, t, at;
        mov.u32 lane, %tid.x;
        shr.u32 warp, lane, 5;
        and.b32 lane, lane, 31;
        mov.u32 ring, global_smem;
        mad.lo.u32 ring, warp, {depth * pieces(tiles, narrow) * TILE_BYTES}, ring;
        mad.lo.u32 ring, lane, 16, ring;
        add.u32 ring, ring, {HEADER};
        mov.b32 slot, ring;
        and.b32 t, warp, {warps_m - 1};
        shr.u32 warp, warp, {log2(warps_m)};
        mul.lo.u32 row, $2, {warps_m};
        add.u32 row, row, t;
        mul.lo.u32 row, row, {tiles};
        shl.b32 t, $3, 2;
        sub.u32 t, t, {tiles};
        min.u32 row, row, t;
        add.u32 warp, warp, $5;
        sub.u32 left, $6, warp;
        add.u32 left, left, {warps_k - 1};
        shr.s32 left, left, {log2(warps_k)};
        shr.u32 at, row, 2;
        mad.lo.u32 at, at, $4, warp;
        mad.wide.u32 next, at, {block_bytes(narrow)}, $1;
        and.b32 row, row, 3;
        mad.wide.u32 next, row, {TILE_BYTES}, next;
        mad.wide.u32 next, lane, 16, next;"""
    return text + f"\nmov.b32 amax, 0;\n{DONE}\n}}"


@gluon.constexpr_function
def clear(tiles, tokens8):
    """A row tile begins: accumulators are zero."""
    return "".join(f"mov.b32 acc{i}, 0;\n" for i in range(4 * tiles * tokens8)) + DONE


@gluon.constexpr_function
def preload(first, last, tiles, warps_k, narrow=False):
    """Starts the copies of steps first … last - 1 (`slot` still points at the ring's first place)."""
    text = "{\n.reg .pred more;\n.reg .b32 t;"
    for step in range(first, last):
        text += f"\nadd.u32 t, slot, {step * pieces(tiles, narrow) * TILE_BYTES};" + load_step("t", step, tiles, warps_k, narrow)
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def aim(tokens8, warps_m, base):
    """$1 tokens, $2 bytes of an activation row in shared memory, $3 buffer: each lane's row of every eight tokens, as ldmatrix wants it."""
    text = f"""{{
        .reg .b32 warp, lane, last, row, at;
        mov.u32 lane, %tid.x;
        shr.u32 warp, lane, {5 + log2(warps_m)};
        and.b32 lane, lane, 31;
        shr.u32 at, lane, 3;
        shl.b32 at, at, 4;
        shl.b32 warp, warp, {log2(COLUMNS)};
        add.u32 at, at, warp;
        add.u32 at, at, $3;
        mov.u32 warp, global_smem;
        add.u32 at, at, warp;
        and.b32 lane, lane, 7;
        sub.u32 last, $1, 1;"""
    for j in range(tokens8):
        text += f"""
        add.u32 row, lane, {8 * j};
        min.u32 row, row, last;
        mul.lo.u32 row, row, $2;
        add.u32 xrow{j}, row, at;
        add.u32 xrow{j}, xrow{j}, {base};"""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def multiply(half, tiles, tokens8, sparse, narrow):
    """64 columns of a step: its words unpacked to 64 times the weights, then every eight tokens times every 16 rows.

    Sparse: one product of 64 columns. Dense: two of 32; b0 … b3 hold the activations of both.
    """
    text, parts = "", 1 if sparse else 2
    for m in range(tiles):
        if narrow:
            text += decode_narrow.unpack(half, m)
        for part in range(0 if narrow else parts):
            for i in range(4):
                at = f"f{4 * (parts * m + part) + i}"
                text += f"\nshl.b32 {at}, word{4 * m + 2 * half + part}, {2 * i};\nand.b32 {at}, {at}, 0xC0C0C0C0;"
    for j in range(tokens8):
        text += f"\nldmatrix.sync.aligned.m8n8.x4.shared.b16 {{b0, b1, b2, b3}}, [xrow{j}+{64 * half}];"
        for m in range(tiles):
            acc = ", ".join(f"acc{4 * (m * tokens8 + j) + i}" for i in range(4))
            for part in range(parts):
                fragments = ", ".join(f"f{4 * (parts * m + part) + i}" for i in range(4))
                if sparse:
                    name = "mma.sp" if narrow else "mma.sp::ordered_metadata"
                    metadata = 4 * half + m if narrow else 4 * m + 2 * half + 1
                    text += (f"\n{name}.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 {{{acc}}}, {{{fragments}}}, "
                             f"{{b0, b1, b2, b3}}, {{{acc}}}, word{metadata}, 0;")
                else:
                    text += (f"\nmma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {{{acc}}}, {{{fragments}}}, "
                             f"{{b{2 * part}, b{2 * part + 1}}}, {{{acc}}};")
    return text


@gluon.constexpr_function
def step(tiles, tokens8, depth, warps_k, sparse, narrow=False):
    """One block of 128 columns of every warp that has one left; its place in the ring is filled again, `depth` steps ahead."""
    size = pieces(tiles, narrow) * TILE_BYTES
    text = f"""{{{decode_narrow.declare() if narrow else ""}
        .reg .b32 word<{4 * tiles}>;
        .reg .b32 f<{4 * tiles * (1 if sparse else 2)}>;
        .reg .b32 b<4>;
        .reg .b32 t;
        .reg .pred more, none;
        cp.async.wait_group {depth - 1};
        setp.le.s32 none, left, 0;
        @none bra.uni NONE_${{:uid}};"""
    for m in range(pieces(tiles, narrow)):
        words = ", ".join(f"word{4 * m + i}" for i in range(4))
        text += f"\nld.shared.v4.b32 {{{words}}}, [slot+{m * TILE_BYTES}];"
    text += "".join(multiply(half, tiles, tokens8, sparse, narrow) for half in range(2))
    text += "".join(f"\nadd.u32 xrow{j}, xrow{j}, {warps_k * COLUMNS};" for j in range(tokens8))
    return text + f"""
    NONE_${{:uid}}:{load_step("slot", depth, tiles, warps_k, narrow)}
        add.s64 next, next, {warps_k * block_bytes(narrow)};
        sub.s32 left, left, 1;
        add.u32 slot, slot, {size};
        sub.u32 t, slot, ring;
        setp.ge.u32 more, t, {depth * size};
        selp.b32 slot, ring, slot, more;
        {DONE}
    }}"""


@gluon.constexpr_function
def copy_columns(unroll, threads, rows):
    """Columns that a block of copies takes of each of `rows` tokens."""
    return 16 * unroll * threads // rows


@gluon.constexpr_function
def copy_in(unroll, threads, rows, base):
    """`unroll` asynchronous copies of 16 activations a thread, of `rows` tokens at once.

    $1 x int8, $2 bytes of its rows, $3 tokens, $4 which rows, $5 which columns, $6 buffer, $7 bytes of a row there, $8 first column,
    $9 columns. What lies behind these is not written: it meets weights that are zero, or none.
    """
    across = threads // rows
    text = f"""{{
        .reg .b32 row, column, t, at;
        .reg .b64 source;
        .reg .pred here, inside;
        mov.u32 t, %tid.x;
        shr.u32 row, t, {log2(across)};
        and.b32 column, t, {across - 1};
        mad.lo.u32 row, $4, {rows}, row;
        mad.lo.u32 column, $5, {across * unroll}, column;
        shl.b32 column, column, 4;
        setp.lt.u32 here, row, $3;
        mov.u32 at, global_smem;
        mad.lo.u32 at, row, $7, at;
        add.u32 at, at, column;
        add.u32 at, at, $6;
        add.u32 t, column, $8;
        mad.lo.u32 t, row, $2, t;
        cvt.u64.u32 source, t;
        add.s64 source, source, $1;"""
    for u in range(unroll):
        ahead = 16 * across * u
        text += f"""
        add.u32 t, column, {ahead};
        setp.lt.and.u32 inside, t, $9, here;
        @inside cp.async.cg.shared.global [at+{base + ahead}], [source+{ahead}], 16;"""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def close():
    """The copies so far become a group."""
    return f"cp.async.commit_group;\n{DONE}"


@gluon.constexpr_function
def arrived(pending):
    """All but the last `pending` groups of every thread are there, and nobody reads the other buffer of activations any more."""
    return f"cp.async.wait_group {pending};\nbar.sync 0;\n{DONE}"


@gluon.constexpr_function
def barrier():
    """All threads of the program."""
    return f"bar.sync 0;\n{DONE}"


@gluon.constexpr_function
def follow():
    """Lets the next launch begin, as far as it does not depend on this one (sm_90 and up)."""
    return f"griddepcontrol.launch_dependents;\n{DONE}"


@gluon.constexpr_function
def depend():
    """What the launches before have written is there (sm_90 and up)."""
    return f"griddepcontrol.wait;\n{DONE}"
