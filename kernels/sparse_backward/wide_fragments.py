"""2:4 ternary weights in the order in which Hopper's sparse tensor cores take bf16 operands from registers, with their scale.

Layout **fragment24-bf16**, version 1: blocks of 64 rows × 64 columns, stored [rows/64][columns/64][128 threads][4 words]. A thread
holds, for each of the block's two steps of 32 columns, one word of values and one of metadata: its share of
`wgmma.mma_async.sp.m64nNk32` (PTX ISA).
With w = t / 32, g = (t % 32) / 4, q = t % 4 and 16 kept values per row and step:

* values: register j, half e is row 16w + g + 8(j & 1), kept value 2q + e + 8(j >> 1). Its two's-complement 2-bit code stands in bits
  16e + 14 − 2j. Bits 0 … 7 and 16 … 23 are the low and the high byte of the step's scale in bf16: one scale per 32 columns.
* metadata: logical columns 16(q & 1) … + 15, of row 16w + g in the low half and of row 16w + g + 8 in the high one: four bits per group of
  four, as in layout fragment24.

Made from fragment24 (`kernels.fragments`), whose steps of 64 columns hold the same kept values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.errors import ShapeError
from kernels.kernel import CompileUnit

STEP = 32
"""Columns of an instruction, and of a scale."""
BLOCK = 1024
"""Threads' shares of a step that a program makes."""


@triton.jit
def widen_kernel(narrow, wide, w_scale, bounds, shares, column_blocks, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """wide: int32 [shares, 2], a value and a metadata word for each step of each thread; narrow: the same weight in layout fragment24.

    column_blocks: of wide, twice narrow's. w_scale: of the split that a step's columns lie in; bounds: int64, first column of every split.
    """
    share = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = share < shares
    step, thread, block = share % 2, share // 2 % 128, share // 256
    quad = thread % 4
    # A wide block is one step of a narrow one, whose words lie two by two.
    base = narrow + (block // 2).to(tl.int64) * 512 + 2 * (block % 2) + 4 * (thread - quad)
    low = tl.load(base + 4 * (quad // 2), mask=inside, other=0)
    high = tl.load(base + 4 * (quad // 2) + 8, mask=inside, other=0)
    value = tl.zeros([BLOCK], tl.int32)
    for j in tl.static_range(4):
        for e in tl.static_range(2):
            place = 8 * (2 * (quad % 2) + e) + 6 - 2 * (2 * step + j % 2)
            value |= (((high if j >= 2 else low) >> place) & 3) << (16 * e + 14 - 2 * j)
    upper = tl.load(base + 8 * step + 1, mask=inside, other=0)
    lower = tl.load(base + 8 * step + 5, mask=inside, other=0)
    shift = 16 * (quad % 2)
    meta = ((upper >> shift) & 0xFFFF) | (((lower >> shift) & 0xFFFF) << 16)
    column = block % column_blocks * 64 + step * 32
    scale = tl.zeros([BLOCK], tl.float32) + tl.load(w_scale)
    for split in tl.static_range(1, SPLITS):
        scale = tl.where(column >= tl.load(bounds + split), tl.load(w_scale + split), scale)
    bits = scale.to(tl.int32, bitcast=True)
    bits = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF)
    pair = wide + share.to(tl.int64) * 2
    tl.store(pair, value | (bits & 0xFF) | ((bits & 0xFF00) << 8), mask=inside)
    tl.store(pair + 1, meta, mask=inside)


def wide_shape(rows: int, columns: int) -> tuple[int, int, int, int]:
    """The shape of the int32 blocks of a weight [rows, columns]: columns are padded to whole blocks of fragment24, which are 128 wide."""
    return -(-rows // 64), 2 * -(-columns // 128), 128, 4


def launch_widen(narrow: torch.Tensor, wide: torch.Tensor, w_scale: torch.Tensor, bounds: torch.Tensor) -> None:
    """Write a weight in layout fragment24 in layout fragment24-bf16 with the scales of its columns. One launch, no synchronization.

    narrow: int32 [row blocks, column blocks, 128, 4]; wide: int32 [row blocks, 2 · column blocks, 128, 4]; both contiguous. w_scale:
    float32 [S]; bounds: int64 [S + 1], first column of each split, multiples of 32. Raises ShapeError for what does not fit.
    """
    shape = (narrow.shape[0], 2 * narrow.shape[1], *narrow.shape[2:])
    if any(t.dtype != torch.int32 or not t.is_contiguous() for t in (narrow, wide)) or tuple(wide.shape) != shape:
        raise ShapeError(f"wide is {wide.dtype} {list(wide.shape)} for narrow {narrow.dtype} {list(narrow.shape)}; contiguous int32 "
                         f"{list(shape)} is needed")
    shares = wide.numel() // 2
    if shares:
        widen_kernel[(triton.cdiv(shares, BLOCK),)](narrow, wide, w_scale, bounds, shares, shape[1], SPLITS=w_scale.shape[0], BLOCK=BLOCK,
                                                    num_warps=4)  # fmt: skip


def unpack_wide(wide: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The float32 weight [rows, columns] again, by plain steps on its device: for checks."""
    words = wide.view(*wide.shape[:2], 4, 8, 4, 2, 2).long() & 0xFFFFFFFF  # blocks, warp, g, q, step, kind
    value, meta = words[..., 0], words[..., 1]
    scale = ((value & 0xFF) | (value >> 8 & 0xFF00)).to(torch.int32).bitwise_left_shift(16).view(torch.float32)
    dense = torch.zeros((*wide.shape[:2], 4, 2, 8, 2, STEP // 4, 4), device=wide.device)  # blocks, warp, row / 8, g, step, group, place
    for quad in range(4):
        for j in range(4):
            for e in range(2):
                kept, below = 2 * quad + e + 8 * (j >> 1), j & 1
                code = (value[:, :, :, :, quad] >> (16 * e + 14 - 2 * j)) & 3
                place = (meta[:, :, :, :, kept // 8] >> (16 * below + 4 * (kept % 8 // 2) + 2 * e)) & 3
                target = dense[:, :, :, below, :, :, kept // 2]
                target.scatter_add_(-1, place[..., None], ((code - 4 * (code >> 1)) * scale[:, :, :, :, quad])[..., None])
    whole = dense.flatten(-3).flatten(2, 4)
    return whole.transpose(1, 2).reshape(wide.shape[0] * 64, -1)[:rows, :columns]


def compile_unit(splits: int) -> CompileUnit:
    """The kernel as it is launched."""
    constants = {"SPLITS": splits, "BLOCK": BLOCK}
    pointers = {"narrow": "*i32", "wide": "*i32", "w_scale": "*fp32", "bounds": "*i64"}
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in widen_kernel.arg_names}
    return CompileUnit(widen_kernel, signature, constants, tuple(pointers), {"num_warps": 4})
