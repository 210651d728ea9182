"""Ternary weights in the order in which the tensor cores of Hopper take them from registers, at 2 bits a weight.

Layout **fragment24**, version 1, for sparse tensor cores: values and metadata together. The weight [N, K] (2:4 along K; a lifted one has
its lifted width) is padded with zeros to multiples of 64 rows and 128 columns and cut into blocks of 64 × 128, stored
[N/64][K/128][128 threads][4 words of 32 bits]. Thread t of a warpgroup holds, for each of the block's two steps of 64 columns, one word of
values and one of metadata: its whole share of `wgmma.mma_async.sp.m64nNk64` for 8-bit types, and of four `mma.sp.m16n8k64`, one a warp
(PTX ISA, sparse matrix fragments).

With w = t / 32, g = (t % 32) / 4, q = t % 4 and 32 kept values per row and step:

* values: register j of the instruction, byte b is row 16w + g + 8(j & 1), kept value 4q + b + 16(j >> 1). Its two's-complement 2-bit
  code stands in bits 8b + 6 − 2j, so that `(word << 2j) & 0xC0C0C0C0` is register j with 64 times the weights.
* metadata: row 16w + g + 8(q & 1), logical columns 32(q >> 1) … + 31: four bits per group of four, lowest group lowest, the two
  kept positions, lower first and lower bits. Groups with fewer than two non-zeros keep a zero beside them.

Layout **fragment**, version 1, for dense ones: the same blocks and threads; word s of a thread holds its values of columns 32s … 32s + 31,
in the same places with columns for kept values: the share of `wgmma.mma_async.m64nNk32`. Zeros are values like any other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels.errors import PackError, ShapeError, SparsityError

LAYOUT, DENSE_LAYOUT, VERSION = "fragment24", "fragment", 1
ROWS, COLUMNS, STEP = 64, 128, 64
"""Rows and columns of a block, and columns of one instruction."""
THREADS, WORDS = 128, 4
_CHUNK = 1 << 24


def block_shape(out_features: int, in_features: int) -> tuple[int, int, int, int]:
    """The shape of the packed int32 tensor for a 2:4 weight [out_features, in_features]."""
    return (-(-out_features // ROWS), -(-in_features // COLUMNS), THREADS, WORDS)


def pack_fragments(w_ternary: torch.Tensor) -> torch.Tensor:
    """int32 `block_shape` of an int8 weight [N, K] of −1, 0, +1 with at most 2 non-zeros in every 4 along K, on its device.

    Raises ShapeError for another type, shape or value, SparsityError for a fuller group.
    """
    return pack_blocks(w_ternary, 4, _pack_rows, (THREADS, WORDS))


def pack_dense_fragments(w_ternary: torch.Tensor) -> torch.Tensor:
    """int32 `block_shape` of an int8 weight [N, K] of −1, 0, +1 in the dense layout. Raises ShapeError for another type, shape or value."""
    return pack_blocks(w_ternary, 1, _pack_dense_rows, (THREADS, WORDS))


def pack_blocks(
    w_ternary: torch.Tensor, multiple: int, pack_rows: Callable[[torch.Tensor], torch.Tensor], block: tuple[int, ...]
) -> torch.Tensor:
    """int32 [N/64, K/128, *block]: whole blocks of rows at a time through `pack_rows`, which bounds the memory of the intermediates.

    Raises ShapeError for anything but an int8 weight [N, a multiple of `multiple`] of −1, 0 and +1.
    """
    if w_ternary.dim() != 2 or w_ternary.dtype != torch.int8 or w_ternary.shape[1] % multiple:
        raise ShapeError(f"w_ternary is {w_ternary.dtype} {list(w_ternary.shape)}; int8 [out_features, a multiple of {multiple}] is needed")
    if bool(((w_ternary < -1) | (w_ternary > 1)).any()):
        raise ShapeError("w_ternary holds values other than -1, 0 and +1")
    rows, columns = w_ternary.shape
    out = torch.empty((*block_shape(rows, columns)[:2], *block), dtype=torch.int32, device=w_ternary.device)
    step = max(1, _CHUNK // (max(1, out.shape[1]) * COLUMNS * ROWS))
    for first in range(0, out.shape[0], step):
        part = w_ternary[first * ROWS : (first + step) * ROWS]
        blocks = min(step, out.shape[0] - first)
        pad = (0, out.shape[1] * COLUMNS - columns, 0, blocks * ROWS - part.shape[0])
        out[first : first + blocks] = pack_rows(torch.nn.functional.pad(part, pad))
    return out


def unpack_fragments(packed: torch.Tensor, out_features: int, in_features: int) -> torch.Tensor:
    """The int8 weight [out_features, in_features] again. Raises ShapeError where the sizes do not fit, PackError for illegal codes."""
    _check(packed, out_features, in_features)
    row, quad, meta = _places(packed.device)
    words = packed.view(packed.shape[0], packed.shape[1], THREADS, 2, 2)
    kept = torch.zeros((*packed.shape[:2], 2, ROWS, STEP // 2), dtype=torch.int8, device=packed.device)
    position = torch.zeros((*packed.shape[:2], 2, ROWS, STEP // 4), dtype=torch.int8, device=packed.device)
    for j in range(4):
        for b in range(4):
            kept[:, :, :, row[:, j], 4 * quad[:, j] + b] = _decode(words[..., 0], j, b).transpose(2, 3)
    for group in range(8):
        nibble = (words[..., 1] >> (4 * group)) & 15
        position[:, :, :, meta[:, 0], meta[:, 1] + group] = nibble.to(torch.int8).transpose(2, 3)
    first, second = position & 3, position >> 2
    if bool((first >= second).any()):
        raise PackError("packed metadata holds positions out of order; it is damaged")
    dense = torch.zeros((*kept.shape[:3], ROWS, STEP // 4, 4), dtype=torch.int8, device=packed.device)
    pairs = kept.view(*kept.shape[:-1], STEP // 4, 2)
    dense.scatter_(5, torch.stack([first, second], -1).long(), pairs)
    whole = dense.view(*kept.shape[:3], ROWS, STEP).permute(0, 3, 1, 2, 4).reshape(packed.shape[0] * ROWS, packed.shape[1] * COLUMNS)
    return whole[:out_features, :in_features].contiguous()


def unpack_dense_fragments(packed: torch.Tensor, out_features: int, in_features: int) -> torch.Tensor:
    """The int8 weight [out_features, in_features] of the dense layout. Raises as `unpack_fragments`."""
    _check(packed, out_features, in_features)
    row, quad, _ = _places(packed.device)
    dense = torch.zeros((*packed.shape[:2], 4, ROWS, STEP // 2), dtype=torch.int8, device=packed.device)
    for j in range(4):
        for b in range(4):
            dense[:, :, :, row[:, j], 4 * quad[:, j] + b] = _decode(packed, j, b).transpose(2, 3)
    whole = dense.permute(0, 3, 1, 2, 4).reshape(packed.shape[0] * ROWS, packed.shape[1] * COLUMNS)
    return whole[:out_features, :in_features].contiguous()


def _check(packed: torch.Tensor, out_features: int, in_features: int) -> None:
    if packed.dtype != torch.int32 or tuple(packed.shape) != block_shape(out_features, in_features):
        raise ShapeError(f"packed is {packed.dtype} {list(packed.shape)}; int32 {list(block_shape(out_features, in_features))} is needed")


def _decode(words: torch.Tensor, j: int, b: int) -> torch.Tensor:
    """The weights, int8, in register j, byte b of these words."""
    code = (words >> (8 * b + 6 - 2 * j)) & 3
    if bool((code == 2).any()):
        raise PackError("packed values hold the illegal code 10; they are damaged or not ternary")
    return (code - 4 * (code >> 1)).to(torch.int8)


def _places(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per thread: row of each register [128, 4], its first kept value in fours [128, 4], row and first group of its metadata [128, 2]."""
    thread, j = torch.arange(THREADS, device=device)[:, None], torch.arange(4, device=device)
    top, q = 16 * (thread // 32) + thread % 32 // 4, thread % 4
    return top + 8 * (j & 1), q + 4 * (j >> 1), torch.cat([top + 8 * (q & 1), 8 * (q >> 1)], 1)


def _group(codes: int) -> int:
    """Of four 2-bit codes: the two kept ones in bytes 0 and 1, their positions in byte 2, in byte 3 whether there are more non-zeros.

    Non-zeros are kept before zeros, each by position; the two that come first are kept, in the order of their positions.
    """
    each = [codes >> 2 * place & 3 for place in range(4)]
    first, second = sorted(sorted(range(4), key=lambda place: (not each[place], place))[:2])
    return each[first] | each[second] << 8 | (first | second << 2) << 16 | (each.count(0) < 2) << 24


_GROUPS = tuple(map(_group, range(256)))


def _quads(weight: torch.Tensor) -> torch.Tensor:
    """Four neighbours of a row as 2-bit codes in the bytes of a word: int32 [blocks, ROWS, width, COLUMNS / 4]."""
    rows = weight.reshape(-1)  # of no elements any strides are contiguous, and a view would look at them
    words = rows.view(torch.int32) & 0x03030303
    return words.view(weight.shape[0] // ROWS, ROWS, weight.shape[1] // COLUMNS, COLUMNS // 4)


def _shifted(registers: torch.Tensor) -> torch.Tensor:
    """The word of four registers [..., 4] whose bytes hold 2-bit codes: those of the first come on top."""
    down = torch.arange(6, -1, -2, dtype=torch.int32, device=registers.device)
    return (registers << down).sum(-1, dtype=torch.int32)


def _pack_rows(weight: torch.Tensor) -> torch.Tensor:
    """Blocks of a weight whose sizes are whole blocks."""
    quads = _quads(weight)
    codes = (quads | quads >> 6 | quads >> 12 | quads >> 18) & 0xFF
    groups = torch.tensor(_GROUPS, dtype=torch.int32, device=weight.device)[codes.long()]
    if bool((groups >> 24).any()):
        raise SparsityError("w_ternary has a group of 4 with more than 2 non-zeros along in_features; 2:4 allows 2")
    groups = groups.view(*groups.shape[:3], 2, STEP // 4).permute(0, 2, 3, 1, 4)
    row, quad, meta = _places(weight.device)
    first, second = groups[:, :, :, row, 2 * quad], groups[:, :, :, row, 2 * quad + 1]
    kept = _shifted(first & 0x0303 | (second & 0x0303) << 16)
    eight = torch.arange(8, dtype=torch.int32, device=weight.device)
    nibbles = groups[:, :, :, meta[:, :1], meta[:, 1:] + eight] >> 16 & 15
    positions = (nibbles << 4 * eight).sum(-1, dtype=torch.int32)
    return torch.stack([kept, positions], -1).transpose(2, 3).reshape(*groups.shape[:2], THREADS, WORDS)


def _pack_dense_rows(weight: torch.Tensor) -> torch.Tensor:
    """Blocks of a weight whose sizes are whole blocks, in the dense layout."""
    quads = _quads(weight)
    quads = quads.view(*quads.shape[:3], WORDS, STEP // 8).permute(0, 2, 3, 1, 4)
    row, quad, _ = _places(weight.device)
    return _shifted(quads[:, :, :, row, quad]).transpose(2, 3)


def as_int32(words: torch.Tensor) -> torch.Tensor:
    """Unsigned words held in int64 as the int32 of the same bits."""
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
