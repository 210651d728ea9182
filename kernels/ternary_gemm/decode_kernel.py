"""The decode kernel in Gluon: a program per row tiles, tokens and share of in_features, its weights on their way before anything else."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from kernels.ternary_gemm import decode_wgmma as wg
from kernels.ternary_gemm.decode_cluster import gather, keep, meet, rank, turns
from kernels.ternary_gemm.decode_ptx import (
    HEADER,
    aim,
    arrived,
    barrier,
    clear,
    close,
    copy_columns,
    copy_in,
    declare,
    depend,
    follow,
    preload,
    prime,
    ring_bytes,
    step,
)
from kernels.ternary_gemm.decode_quantize import absmax, publish, quantize, scales, turn_columns
from kernels.ternary_gemm.decode_sums import arrive, bring_scales, classes, collect, combine, elements, row_constants, spill, sum_bytes

UNROLL = gl.constexpr(4)
"""Copies of activations that a thread has on their way at once."""


@gluon.jit
def _asm(text: gl.constexpr, constraints: gl.constexpr, operands):
    return gl.inline_asm_elementwise(text, constraints, operands, dtype=gl.int32, is_pure=False, pack=1)


@gluon.constexpr_function
def places(tiles, tokens8, warps_m, warps_k, depth, rounds, narrow=False):
    """Where activations and sums begin in shared memory: sums lie over ring and activations, unless a next row tile needs these."""
    ring = HEADER + ring_bytes(tiles, warps_m * warps_k, depth, narrow)
    return (ring, HEADER) if rounds == 1 else (ring + sum_bytes(tiles, warps_m, warps_k, tokens8), ring)


@gluon.constexpr_function
def _place(index, *sizes):
    return places(*sizes)[index]


@gluon.constexpr_function
def buffer_layout(cluster):
    """Of shared memory, a copy of its own in every program of a cluster."""
    return gl.SwizzledSharedLayout(1, 1, 1, [0], cga_layout=[[0]] * (cluster.bit_length() - 1))


@gluon.constexpr_function
def header_layout(warps, cluster):
    """Of the registers that clear the header."""
    return gl.BlockedLayout([1], [32], [warps], [0], cga_layout=[[0]] * (cluster.bit_length() - 1))


@gluon.constexpr_function
def early(depth):
    """Steps on their way before the activations are asked for: these come behind them, but not behind all that the ring can hold."""
    return depth - depth // 3


@gluon.jit
def _preload(tokens, FIRST: gl.constexpr, LAST: gl.constexpr, TILES: gl.constexpr, WARPS_K: gl.constexpr, WGMMA: gl.constexpr,
             NARROW: gl.constexpr):
    """Weights of steps FIRST … LAST - 1 into the ring."""
    if WGMMA:
        _asm(wg.preload(FIRST, LAST, TILES, WARPS_K), "=r,r,~{memory}", [tokens])
    else:
        _asm(preload(FIRST, LAST, TILES, WARPS_K, NARROW), "=r,r,~{memory}", [tokens])


@gluon.jit
def _arrived(tokens, PENDING: gl.constexpr, WGMMA: gl.constexpr):
    """All but the last PENDING groups of copies are there, for everyone."""
    if WGMMA:
        _asm(wg.arrived(PENDING), "=r,r,~{memory}", [tokens])
    else:
        _asm(arrived(PENDING), "=r,r,~{memory}", [tokens])


@gluon.jit
def _steps(steps, tokens, row_bytes, buffer, TILES: gl.constexpr, TOKENS8: gl.constexpr, DEPTH: gl.constexpr, WARPS_M: gl.constexpr,
           WARPS_K: gl.constexpr, SPARSE: gl.constexpr, BASE: gl.constexpr, WGMMA: gl.constexpr, NARROW: gl.constexpr):
    """All steps of a chunk, whose activations lie in `buffer`."""
    if WGMMA:
        _asm(wg.aim(TOKENS8, WARPS_M, BASE), "=r,r,~{memory}", [buffer])
    else:
        _asm(aim(TOKENS8, WARPS_M, BASE), "=r,r,r,r,~{memory}", [tokens, row_bytes, buffer])
    for _ in range(steps):
        if WGMMA:
            _asm(wg.step(TILES, TOKENS8, DEPTH, WARPS_K, SPARSE), "=r,r,~{memory}", [tokens])
        else:
            _asm(step(TILES, TOKENS8, DEPTH, WARPS_K, SPARSE, NARROW), "=r,r,~{memory}", [tokens])


@gluon.jit
def _copy(x, x_stride, tokens, buffer, row_bytes, first, columns, THREADS: gl.constexpr, ROWS: gl.constexpr, BASE: gl.constexpr,
          TOKENS8: gl.constexpr, WGMMA: gl.constexpr):
    """A chunk of int8 activations into a buffer."""
    TURN: gl.constexpr = copy_columns(UNROLL, THREADS, ROWS)
    for r in range((tokens + ROWS - 1) // ROWS):
        for c in range((columns + TURN - 1) // TURN):
            if WGMMA:
                _asm(wg.copy_in(UNROLL, THREADS, ROWS, BASE, TOKENS8), "=r,l,r,r,r,r,r,r,r,~{memory}",
                     [x, x_stride, tokens, r, c, buffer, first, columns])
            else:
                _asm(copy_in(UNROLL, THREADS, ROWS, BASE), "=r,l,r,r,r,r,r,r,r,r,~{memory}",
                     [x, x_stride, tokens, r, c, buffer, row_bytes, first, columns])


@gluon.jit
def _quantize(x, x_stride, tokens, in_features, row_bytes, first, limit, columns, THREADS: gl.constexpr, ROWS: gl.constexpr,
              KIND: gl.constexpr, BASE: gl.constexpr, PIECES: gl.constexpr):
    """All of these tokens' absmax, then the codes of this program's share of the columns."""
    TURN: gl.constexpr = turn_columns(PIECES, THREADS, ROWS)
    for r in range((tokens + ROWS - 1) // ROWS):
        for c in range((in_features + TURN - 1) // TURN):
            _asm(absmax(PIECES, THREADS, ROWS, KIND), "=r,l,r,r,r,r,r,~{memory}", [x, x_stride, tokens, r, c, in_features])
        _asm(publish(THREADS, ROWS), "=r,r,r,~{memory}", [tokens, r])
    _asm(barrier(), "=r,r,~{memory}", [tokens])
    _asm(scales(), "=r,r,~{memory}", [tokens])
    _asm(barrier(), "=r,r,~{memory}", [tokens])
    for r in range((tokens + ROWS - 1) // ROWS):
        for c in range((columns + TURN - 1) // TURN):
            _asm(quantize(PIECES, THREADS, ROWS, KIND, BASE), "=r,l,r,r,r,r,r,r,r,r,~{memory}",
                 [x, x_stride, tokens, r, c, row_bytes, first, limit, columns])


@gluon.jit
def _sum(outputs, meet_at, TILES: gl.constexpr, TOKENS8: gl.constexpr, WARPS_M: gl.constexpr, WARPS_K: gl.constexpr, ROWS: gl.constexpr,
         SPLITS: gl.constexpr, CLUSTER: gl.constexpr, OUT: gl.constexpr, BIAS: gl.constexpr, AT: gl.constexpr, FOLLOW: gl.constexpr,
         WGMMA: gl.constexpr):
    """Behind a row tile's last step: over the warps, over the programs that share its in_features, and to the output.

    FOLLOW: the next launch may begin.
    """
    THREADS: gl.constexpr = 32 * WARPS_M * WARPS_K
    TILE: gl.constexpr = 16 * TILES * WARPS_M
    if FOLLOW:
        _asm(follow(), "=r,r,~{memory}", [meet_at])
    _asm(barrier(), "=r,r,~{memory}", [meet_at])
    for j in gl.static_range(TOKENS8):
        _asm(spill(j, TILES, TOKENS8, WARPS_M, WARPS_K, AT, WGMMA), "=r,r,~{memory}", [meet_at])
        _asm(barrier(), "=r,r,~{memory}", [meet_at])
        for e in gl.static_range(((1 if ROWS == 1 else 8) * TILE + THREADS - 1) // THREADS):
            if CLUSTER > 1:
                _asm(keep(j, e, TILES, TOKENS8, WARPS_M, WARPS_K, AT), "=r,r,~{memory}", [meet_at])
            else:
                _asm(combine(j, e, TILES, WARPS_M, WARPS_K, OUT, BIAS, SPLITS > 1, AT), "=r,r,r,r,l,l,~{memory}", outputs)
    if CLUSTER > 1:
        _asm(meet(), "=r,r,~{memory}", [meet_at])
        for i in gl.static_range(turns(CLUSTER, TILES, WARPS_M, WARPS_K, 1 if ROWS == 1 else 8 * TOKENS8)):
            operands = outputs[:4] + [meet_at]  # noqa: RUF005 (Gluon knows no starred lists)
            _asm(gather(i, CLUSTER, TILES, TOKENS8, WARPS_M, WARPS_K, OUT, BIAS, AT), "=r,r,r,r,l,r,~{memory}", operands)
        _asm(meet(), "=r,r,~{memory}", [meet_at])


@gluon.jit(do_not_specialize=["tokens", "out_features", "in_features", "x_stride", "row_blocks", "blocks", "share", "chunks", "steps",
                              "row_tiles", "group"])
def decode_gemm(x_ptr, x_scale_ptr, w_ptr, row_scale_ptr, bias_ptr, y_ptr, sums_ptr, counter_ptr,
                tokens, out_features, in_features, x_stride, row_blocks, blocks, share, chunks, steps, row_tiles, group,
                TILES: gl.constexpr, TOKENS8: gl.constexpr, DEPTH: gl.constexpr, WARPS_M: gl.constexpr, WARPS_K: gl.constexpr,
                ROWS: gl.constexpr, GROUPS: gl.constexpr, ROUNDS: gl.constexpr, SPLITS: gl.constexpr, CLUSTER: gl.constexpr,
                SHARED: gl.constexpr, CHUNKED: gl.constexpr, PENDING: gl.constexpr, SPARSE: gl.constexpr, NARROW: gl.constexpr,
                FUSED: gl.constexpr, BIAS: gl.constexpr, OUT: gl.constexpr, PDL: gl.constexpr, EAGER: gl.constexpr, PIECES: gl.constexpr,
                WGMMA: gl.constexpr):
    """y[tokens, out_features]: ROUNDS row tiles and a group of tokens (program 0) from one share of in_features (program 1, or the rank in
    a cluster of CLUSTER programs).

    x: int8 rows, x_stride bytes apart, with x_scale float32 [tokens]; or FUSED ("bf16", "f16", "f32"): rows of that type, x_stride
    elements apart, quantized here. w: blocks in fragment order, row_blocks × blocks of them. row_scale: float32, w_scale / 64 per row.
    sums: int32 [tokens, out_features] and a counter per row tile and group, zero before and after (SPLITS > 1). share: blocks of a program.
    chunks, steps: of activations, and of every warp in a chunk. group: tokens of each of the GROUPS; the last may be smaller. ROWS: tokens
    copied (or quantized) at once, 1 for a single one. SHARED: KiB. CHUNKED: whether there are several chunks, and PENDING: groups of copies
    that may be on their way when one begins. PIECES: eight activations each, that a thread quantizes at once. Others: see `DecodeConfig`.
    """
    THREADS: gl.constexpr = 32 * WARPS_M * WARPS_K
    BASE: gl.constexpr = _place(0, TILES, TOKENS8, WARPS_M, WARPS_K, DEPTH, ROUNDS, NARROW)
    AT: gl.constexpr = _place(1, TILES, TOKENS8, WARPS_M, WARPS_K, DEPTH, ROUNDS, NARROW)
    EARLY: gl.constexpr = early(DEPTH)
    _asm(declare(TILES, TOKENS8, classes(TILES, WARPS_M, WARPS_K)), "=r,r", [tokens])
    if PDL and EAGER:
        _asm(follow(), "=r,r,~{memory}", [tokens])
    row_tile = gl.program_id(0) // GROUPS * ROUNDS
    rounds = gl.minimum(ROUNDS, row_tiles - row_tile)
    member = _asm(rank(), "=r,r", [tokens]) if CLUSTER > 1 else gl.program_id(1)
    first = member * share
    end = gl.minimum(first + share, blocks)
    weights = [w_ptr.to(gl.int64, bitcast=True), row_tile, row_blocks, blocks, first, end + (rounds - 1) * share]
    if WGMMA:
        _asm(wg.declare(TILES), "=r,r", [tokens])
        _asm(wg.prime(TILES, DEPTH, WARPS_M, WARPS_K), "=r,l,r,r,r,r,r,~{memory}", weights)
    else:
        _asm(prime(TILES, DEPTH, WARPS_M, WARPS_K, NARROW), "=r,l,r,r,r,r,r,~{memory}", weights)
    _preload(tokens, 0, EARLY, TILES, WARPS_K, WGMMA, NARROW)
    row_scale, bias = row_scale_ptr.to(gl.int64, bitcast=True), bias_ptr.to(gl.int64, bitcast=True)
    constants = [row_tile, out_features, row_scale, bias, member]
    if OUT != "s32" and ROUNDS == 1:
        _asm(row_constants(TILES, WARPS_M, WARPS_K, BIAS, CLUSTER > 1), "=r,r,r,l,l,r,~{memory}", constants)
    # One buffer, so that it starts at `global_smem`. The first half of its header, the absmax of every token, has to start from zero; the
    # other, their scales, is not written here: scales of int8 tokens are brought below with no barrier between.
    shared = gl.allocate_shared_memory(gl.int32, [2 * SHARED, 128], buffer_layout(CLUSTER))
    shared.index(0).store(gl.zeros([128], gl.int32, header_layout(WARPS_M * WARPS_K, CLUSTER)))
    columns = steps * (WARPS_K * 128)
    row_bytes = columns + 16
    limit = gl.minimum(end * 128, (in_features + 15) // 16 * 16)
    token = gl.program_id(0) % GROUPS * group
    tokens = gl.minimum(group, tokens - token)
    x = (x_ptr + token * x_stride).to(gl.int64, bitcast=True)
    y, sums = (y_ptr + token * out_features).to(gl.int64, bitcast=True), (sums_ptr + token * out_features).to(gl.int64, bitcast=True)
    if PDL:
        _asm(depend(), "=r,r,~{memory}", [tokens])
    # Of one buffer of activations, where there are two.
    size = columns * (8 * TOKENS8) if WGMMA else tokens * row_bytes
    if FUSED is not None:
        _preload(tokens, EARLY, DEPTH, TILES, WARPS_K, WGMMA, NARROW)
        _asm(barrier(), "=r,r,~{memory}", [tokens])
        _quantize(x, x_stride, tokens, in_features, row_bytes, first * 128, limit, columns, THREADS, ROWS, FUSED, BASE,
                  PIECES)
        _asm(barrier(), "=r,r,~{memory}", [tokens])
    else:
        _copy(x, x_stride, tokens, 0, row_bytes, first * 128, gl.minimum(columns, limit - first * 128), THREADS, ROWS, BASE, TOKENS8, WGMMA)
        _asm(close(), "=r,r,~{memory}", [tokens])
        _preload(tokens, EARLY, DEPTH, TILES, WARPS_K, WGMMA, NARROW)
        if OUT != "s32":
            _asm(bring_scales(), "=r,l,r,~{memory}", [(x_scale_ptr + token).to(gl.int64, bitcast=True), tokens])
        _arrived(tokens, DEPTH - EARLY, WGMMA)
    if CHUNKED:
        _asm(clear(TILES, TOKENS8), "=r,r,~{memory}", [tokens])
        for chunk in range(chunks):
            buffer = (chunk & 1) * size
            if chunk > 0:
                _arrived(tokens, PENDING, WGMMA)
            if chunk + 1 < chunks:
                # A part of the next step's group: when the chunk ends, its other steps' groups are younger.
                start = first * 128 + (chunk + 1) * columns
                _copy(x, x_stride, tokens, size - buffer, row_bytes, start, gl.minimum(columns, limit - start), THREADS, ROWS, BASE,
                      TOKENS8, WGMMA)
            _steps(steps, tokens, row_bytes, buffer, TILES, TOKENS8, DEPTH, WARPS_M, WARPS_K, SPARSE, BASE, WGMMA, NARROW)
        _sum([row_tile, tokens, out_features, y, sums], member, TILES, TOKENS8, WARPS_M, WARPS_K, ROWS, SPLITS, CLUSTER, OUT, BIAS, AT,
             PDL and not EAGER, WGMMA)
    else:
        for turn in range(rounds if ROUNDS > 1 else 1):
            if OUT != "s32" and ROUNDS > 1:
                constants = [row_tile + turn, out_features, row_scale, bias, member]
                _asm(row_constants(TILES, WARPS_M, WARPS_K, BIAS, CLUSTER > 1), "=r,r,r,l,l,r,~{memory}", constants)
            _asm(clear(TILES, TOKENS8), "=r,r,~{memory}", [tokens])
            _steps(steps, tokens, row_bytes, 0, TILES, TOKENS8, DEPTH, WARPS_M, WARPS_K, SPARSE, BASE, WGMMA, NARROW)
            _sum([row_tile + turn, tokens, out_features, y, sums], member, TILES, TOKENS8, WARPS_M, WARPS_K, ROWS, SPLITS, CLUSTER, OUT,
                 BIAS, AT, PDL and not EAGER and ROUNDS == 1, WGMMA)
    if SPLITS > 1:
        outputs = [row_tile, tokens, out_features, y, sums]
        TILE: gl.constexpr = 16 * TILES * WARPS_M
        counter = (counter_ptr + gl.program_id(0) % GROUPS * row_tiles).to(gl.int64, bitcast=True)
        count = _asm(arrive(SPLITS), "=r,l,r,r,~{memory}", [counter, row_tile, tokens * TILE])
        TURN: gl.constexpr = elements(TILE, 1 if ROWS == 1 else 8 * TOKENS8, THREADS)
        for start in range(0, count, TURN * THREADS):
            operands = outputs + [start]  # noqa: RUF005 (as above)
            _asm(collect(TURN, TILES, WARPS_M, WARPS_K, OUT, BIAS), "=r,r,r,r,l,l,r,~{memory}", operands)
