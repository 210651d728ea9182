"""The persistent GEMM on `mma.sp.m16n8k64` in Gluon: every warp multiplies, copies run stages ahead and over the ends of tiles.

Yᵀ tiles of block_n weight rows × block_t tokens. Tiles run with the weight rows fastest, so that programs at work share their tokens and
the packed weight stays in the L2; a weight that does not fit there runs in bands of rows.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from kernels.ternary_gemm.sparse_mma_epilogue import epilogue, plain_epilogue
from kernels.ternary_gemm.sparse_mma_parts import collect, deposit
from kernels.ternary_gemm.sparse_mma_ptx import declare, fill, point, prime, shared_bytes, stage, zero


@gluon.constexpr_function
def _size(name, tile):
    return getattr(tile, name)


@gluon.jit
def _place(tile, row_tiles, token_tiles, band):
    """Row and token tile of a tile: bands of row tiles one after the other, in a band the rows fastest."""
    first = tile // (band * token_tiles) * band
    height = gl.minimum(band, row_tiles - first)
    within = tile - first * token_tiles
    return first + within % height, within // height


@gluon.jit
def _first(work, steps, SPLITS: gl.constexpr):
    """First step of a part; the next part's is behind its last."""
    return work % SPLITS * steps // SPLITS


@gluon.jit
def _behind(work, steps, SPLITS: gl.constexpr):
    return (work % SPLITS + 1) * steps // SPLITS


@gluon.jit
def _point(x_ptr, w_ptr, work, works, row_tiles, token_tiles, band, row_blocks, steps, tokens, x_stride, TILE: gl.constexpr,
           SPLITS: gl.constexpr):
    """Copies start at the part's first stage; behind the last part nothing is copied, wherever they point."""
    BLOCKS: gl.constexpr = _size("block_n", TILE) // 64
    row, token = _place(gl.minimum(work, works - 1) // SPLITS, row_tiles, token_tiles, band)
    gl.inline_asm_elementwise(point(TILE), "=r,l,r,r,r,l,r,r,r,r",
                              [x_ptr.to(gl.int64, bitcast=True), x_stride, token * _size("block_t", TILE), tokens,
                               w_ptr.to(gl.int64, bitcast=True), row * BLOCKS, row_blocks, steps, _first(work, steps, SPLITS)],
                              dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _meet(sums_ptr, counts_ptr, work, TILE: gl.constexpr, STAGES: gl.constexpr, SPLITS: gl.constexpr):
    """Whether this part is its tile's last; its accumulators are then the sums of all parts."""
    sums, counts = sums_ptr.to(gl.int64, bitcast=True), counts_ptr.to(gl.int64, bitcast=True)
    tile = work // SPLITS
    before = gl.inline_asm_elementwise(deposit(TILE, STAGES), "=r,r,r,l,l,~{memory}", [work, tile, sums, counts], dtype=gl.int32,
                                       is_pure=False, pack=1)
    last = before == SPLITS - 1
    if last:
        gl.inline_asm_elementwise(zero(TILE), "=r,r", [work], dtype=gl.int32, is_pure=False, pack=1)
        for part in range(SPLITS):
            gl.inline_asm_elementwise(collect(TILE), "=r,r,r,l,l,~{memory}", [tile * SPLITS + part, tile, sums, counts], dtype=gl.int32,
                                      is_pure=False, pack=1)
    return last


@gluon.jit
def _store(x_scale_ptr, row_scale_ptr, bias_ptr, y_ptr, row, token, tokens, out_features, TILE: gl.constexpr, STAGES: gl.constexpr,
           OUT: gl.constexpr, WIDE: gl.constexpr):
    """A tile's epilogue."""
    operands = [row * _size("block_n", TILE), token * _size("block_t", TILE), tokens, out_features,
                x_scale_ptr.to(gl.int64, bitcast=True), row_scale_ptr.to(gl.int64, bitcast=True), bias_ptr.to(gl.int64, bitcast=True),
                y_ptr.to(gl.int64, bitcast=True)]
    text: gl.constexpr = epilogue(TILE, OUT, STAGES) if WIDE else plain_epilogue(TILE, OUT)
    gl.inline_asm_elementwise(text, "=r,r,r,r,r,l,l,l,l,~{memory}", operands, dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit(do_not_specialize=("steps", "works", "row_tiles", "token_tiles", "band", "row_blocks", "tokens", "out_features", "x_stride",
                              "x_width"))
def sparse_mma_gemm(x_ptr, w_ptr, x_scale_ptr, row_scale_ptr, bias_ptr, y_ptr, sums_ptr, counts_ptr, steps, works, row_tiles, token_tiles,
                    band, row_blocks, tokens, out_features, x_stride, x_width, TILE: gl.constexpr, STAGES: gl.constexpr,
                    SPLITS: gl.constexpr, OUT: gl.constexpr, WIDE: gl.constexpr):
    """y[tokens, out_features] from int8 x [tokens, x_width] in rows of x_stride bytes (both multiples of 16) and fragment24 weights.

    steps: blocks of 128 in_features, at least SPLITS. works: tiles of the output, in SPLITS parts each along in_features. row_tiles,
    token_tiles: along out_features and along tokens. band: row tiles that follow each other before the tokens move on. row_blocks: blocks
    of 64 rows packed. row_scale, bias: float32 per output row, readable to the end of the last tile; row_scale holds w_scale / 64.
    sums: int32 for every part's accumulators, counts: an int32 zero for every tile, which stays zero (both unused for one part).
    OUT: bf16, f16, f32 or s32. WIDE: 16-byte stores (out_features a multiple of 8, OUT of 16 bits).
    """
    gl.inline_asm_elementwise(declare(TILE), "=r,r", [steps], dtype=gl.int32, is_pure=False, pack=1)
    # The blocks address the ring from the start of shared memory, and a line behind it. Without this store the compiler would drop the
    # allocation.
    LINES: gl.constexpr = shared_bytes(TILE, STAGES) // 64
    LAST: gl.constexpr = gl.BlockedLayout([1, 4], [8, 4], [gl.num_warps(), 1], [1, 0])
    ring = gl.allocate_shared_memory(gl.int32, [LINES + 1, 4, 4], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    ring.index(LINES).store(gl.full([4, 4], 0, gl.int32, layout=LAST))

    ahead = gl.program_id(0)
    ahead_step = _first(ahead, steps, SPLITS)
    ahead_end = _behind(ahead, steps, SPLITS)
    _point(x_ptr, w_ptr, ahead, works, row_tiles, token_tiles, band, row_blocks, steps, tokens, x_stride, TILE, SPLITS)
    for slot in range(STAGES - 1):
        if ahead_step == ahead_end:
            ahead += gl.num_programs(0)
            ahead_step = _first(ahead, steps, SPLITS)
            ahead_end = _behind(ahead, steps, SPLITS)
            _point(x_ptr, w_ptr, ahead, works, row_tiles, token_tiles, band, row_blocks, steps, tokens, x_stride, TILE, SPLITS)
        gl.inline_asm_elementwise(fill(TILE), "=r,r,r,r,~{memory}", [slot, (ahead < works).to(gl.int32), x_width - ahead_step * 128],
                                  dtype=gl.int32, is_pure=False, pack=1)
        ahead_step += 1
    gl.inline_asm_elementwise(prime(TILE, STAGES), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)

    at = 0
    before = STAGES - 1
    for work in range(gl.program_id(0), works, gl.num_programs(0)):
        for _ in range(_first(work, steps, SPLITS), _behind(work, steps, SPLITS)):
            if ahead_step == ahead_end:
                ahead += gl.num_programs(0)
                ahead_step = _first(ahead, steps, SPLITS)
                ahead_end = _behind(ahead, steps, SPLITS)
                _point(x_ptr, w_ptr, ahead, works, row_tiles, token_tiles, band, row_blocks, steps, tokens, x_stride, TILE, SPLITS)
            following = gl.where(at == STAGES - 1, 0, at + 1)
            gl.inline_asm_elementwise(stage(TILE, STAGES), "=r,r,r,r,r,r,~{memory}",
                                      [at, following, before, (ahead < works).to(gl.int32), x_width - ahead_step * 128],
                                      dtype=gl.int32, is_pure=False, pack=1)
            ahead_step += 1
            before = at
            at = following
        row, token = _place(work // SPLITS, row_tiles, token_tiles, band)
        whole = True
        if SPLITS > 1:
            whole = _meet(sums_ptr, counts_ptr, work, TILE, STAGES, SPLITS)
        if whole:
            _store(x_scale_ptr, row_scale_ptr, bias_ptr, y_ptr, row, token, tokens, out_features, TILE, STAGES, OUT, WIDE)
        gl.inline_asm_elementwise(zero(TILE), "=r,r", [steps], dtype=gl.int32, is_pure=False, pack=1)
