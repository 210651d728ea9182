"""The PTX with which programs that share a row tile's in_features meet in the shared memory of their cluster (sm_90 and up).

Each leaves the sums of its warps in its own shared memory; behind one barrier of the cluster everyone adds up a part of the tile from all.
No workspace, no counters, no atomic operation; integers, so any order gives the same bits.
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.decode_ptx import DONE
from kernels.ternary_gemm.decode_sums import REGISTERS, finish, place, sum_bytes, warp_sum


@gluon.constexpr_function
def kept_bytes(tiles, warps_m, tokens8):
    """Shared memory for the sums that a program leaves to its cluster."""
    return 8 * tokens8 * 16 * tiles * warps_m * 4


@gluon.constexpr_function
def rank():
    """This program's number in its cluster."""
    return "mov.u32 $0, %cluster_ctarank;"


@gluon.constexpr_function
def keep(j, e, tiles, tokens8, warps_m, warps_k, base):
    """The sum of the thread's element e of tokens 8j … over the warps, to where the cluster finds it."""
    rows = 16 * tiles * warps_m
    offset = base + sum_bytes(tiles, warps_m, warps_k, tokens8) + 8 * j * rows * 4
    return "{" + warp_sum(j, e, tiles, warps_m, warps_k, base) + f"""
        mad.lo.u32 v, token, {rows}, row;
        shl.b32 v, v, 2;
        mov.u32 t, global_smem;
        add.u32 v, v, t;
        @here st.shared.b32 [v+{offset}], sum;
        {DONE}
    }}"""


@gluon.constexpr_function
def meet():
    """All threads of the cluster: behind it, each may read what any has left in shared memory before."""
    return f"barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n{DONE}"


@gluon.constexpr_function
def turns(splits, tiles, warps_m, warps_k, tokens):
    """Elements of a row tile that each thread of a cluster finishes."""
    share = 32 * warps_m * warps_k * splits
    return (16 * tiles * warps_m * tokens + share - 1) // share


@gluon.constexpr_function
def gather(i, splits, tiles, tokens8, warps_m, warps_k, kind, bias, base):
    """Adds the cluster's sums of the thread's element i, and finishes it.

    $1 … $4 as in `combine`, $5 this program's number in the cluster. Programs take turns of as many elements as they have threads, so that
    a thread's elements are all of one row (`classes` has to divide the programs).
    """
    rows, threads = 16 * tiles * warps_m, 32 * warps_m * warps_k
    text = f"""{{{REGISTERS}
        .reg .b32 first, part<{splits}>, from<{splits}>;
        mad.lo.u32 first, $5, {threads}, {i * splits * threads};{place(0, rows, "first")}
        setp.lt.u32 here, token, $2;
        mad.lo.u32 v, token, {rows}, row;
        shl.b32 v, v, 2;
        mov.u32 t, global_smem;
        add.u32 v, v, t;
        add.u32 v, v, {base + sum_bytes(tiles, warps_m, warps_k, tokens8)};
        mov.b32 sum, 0;
        mad.lo.u32 row, $1, {rows}, row;
        setp.lt.and.u32 here, row, $3, here;
        mad.lo.u32 at, token, $3, row;"""
    for other in range(splits):
        text += f"""
        mov.b32 part{other}, 0;
        mapa.shared::cluster.u32 from{other}, v, {other};
        @here ld.shared::cluster.b32 part{other}, [from{other}];"""
    text += "".join(f"\nadd.u32 sum, sum, part{other};" for other in range(splits))
    return text + finish(kind, bias, 0) + f"\n{DONE}\n}}"
