"""The PTX by which the parts of a tile meet, where in_features are cut: integers, so that any order gives the same bits.

Every part leaves its accumulators in a place of its own and counts itself; the last to come adds all of them up for the epilogue.
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.sparse_mma_ptx import DONE, shared_bytes


@gluon.constexpr_function
def _places(tile):
    """Opens the block: counter of the tile, at the thread's place in a part, first thread."""
    return f"""{{
        .reg .b32 t, line, old, o<4>;
        .reg .b64 counter, at;
        .reg .pred first;
        mov.u32 t, %tid.x;
        setp.eq.u32 first, t, 0;
        mad.wide.u32 counter, $2, 4, $4;
        mul.wide.u32 at, $1, {4 * tile.accumulators * tile.threads};
        mad.wide.u32 at, t, 16, at;
        add.u64 at, at, $3;"""


@gluon.constexpr_function
def deposit(tile, stages):
    """$1 part, counted over all tiles, $2 tile, $3 sums, $4 counters. Gives how many parts of the tile came before this one."""
    text = _places(tile)
    for i in range(tile.accumulators // 4):
        names = ", ".join(f"acc{4 * i + j}" for j in range(4))
        text += f"\nst.global.v4.b32 [at+{16 * tile.threads * i}], {{{names}}};"
    # The barrier puts every thread's stores before the count that publishes them, and the count before what any thread reads.
    return text + f"""
        mov.u32 line, global_smem;
        bar.sync 0;
        @first atom.add.acq_rel.gpu.global.u32 old, [counter], 1;
        @first st.shared.b32 [line+{shared_bytes(tile, stages)}], old;
        bar.sync 0;
        ld.shared.b32 $0, [line+{shared_bytes(tile, stages)}];
        }}"""


@gluon.constexpr_function
def collect(tile):
    """Add a part to the accumulators and set the counter back to zero. Operands as for `deposit`."""
    text = _places(tile)
    for i in range(tile.accumulators // 4):
        text += f"\nld.global.cg.v4.b32 {{o0, o1, o2, o3}}, [at+{16 * tile.threads * i}];"
        for j in range(4):
            text += f"\nadd.s32 acc{4 * i + j}, acc{4 * i + j}, o{j};"
    return text + f"\nmov.b32 t, 0;\n@first st.global.b32 [counter], t;\n{DONE}\n}}"
