"""2:4 ternary weights at 1.5 bits a weight: metadata as the sparse tensor cores take it, and one sign bit for every kept value.

Layout **narrow24**, version 1: blocks of 64 rows × 128 columns of the weight [N, K], padded with zeros, stored [N/64][K/128][3][32 lanes]
[4 words of 32 bits]: for each of the four times 16 rows of a block the two metadata words of a lane (64 columns each), then its signs.
Lane 4g + q holds what `mma.sp.m16n8k64` for 8-bit types asks of it (PTX ISA, sparse matrix fragments), s = 0, 1 counting products:

* metadata: nibble k of word s is group 8(q >> 1) + k of row g + 8(q & 1): the positions i (low bits) and j of the two kept values, in an
  order that shows a flag, F = i > j; where they are the same, F = 1 for positions 0 and 2.
* signs: 1 is negative. Byte b of register j (row g + 8(j & 1), kept value 4q + b + 16(j >> 1)) of product s has bit `sign_bit(s, j, b)`.
* flags: the flag of nibble k of word s is not its own group's, but of a group whose values this lane holds: register j, bytes 2h and 2h + 1
  with (j, h) = `CARRIED[s][k]`. It says that the second value is zero.

A group of two non-zeros takes either order. A group of one has it first, with any other position behind it, or the same one where the flag
leaves no other: 0 where i > j is asked for, 3 where i < j is. An empty group is the same position twice, signs + and -.
"""

from __future__ import annotations

import torch

from kernels.errors import PackError, ShapeError, SparsityError
from kernels.fragments import COLUMNS, ROWS, as_int32, pack_blocks

LAYOUT, VERSION = "narrow24", 1
WORDS = (3, 32, 4)
"""Of a block: both metadata words and the signs, lanes, times 16 rows."""
CARRIED = (
    ((2, 0), (0, 0), (3, 0), (0, 1), (2, 1), (1, 0), (3, 1), (1, 1)),
    ((2, 0), (0, 0), (2, 1), (0, 1), (3, 0), (1, 0), (3, 1), (1, 1)),
)
"""[product][nibble] to register and half of it."""


def narrow_shape(out_features: int, in_features: int) -> tuple[int, ...]:
    """The shape of the packed int32 tensor for a 2:4 weight [out_features, in_features]."""
    return (-(-out_features // ROWS), -(-in_features // COLUMNS), *WORDS)


def sign_bit(product: int, register: int, byte: int) -> int:
    """The bit of the sign word for a byte of a register of one of the two products."""
    if product == 0 and register >= 2:
        return 8 * byte + (3, 7)[register - 2]
    return 4 * byte + 16 * (register & 1) + (0 if product == 0 else 1 + (register >> 1))


def pack_narrow_fragments(w_ternary: torch.Tensor) -> torch.Tensor:
    """int32 `narrow_shape` of an int8 weight [N, K] of −1, 0, +1 with at most 2 non-zeros in every 4 along K, on its device.

    Raises ShapeError for another type, shape or value, SparsityError for a fuller group.
    """
    return pack_blocks(w_ternary, 4, _pack_rows, WORDS)


def unpack_narrow_fragments(packed: torch.Tensor, out_features: int, in_features: int) -> torch.Tensor:
    """The int8 weight [out_features, in_features] again. Raises ShapeError where the sizes do not fit, PackError for a group that is no
    ternary one: the same position twice, and two values of one sign."""
    if packed.dtype != torch.int32 or tuple(packed.shape) != narrow_shape(out_features, in_features):
        raise ShapeError(f"packed is {packed.dtype} {list(packed.shape)}; int32 {list(narrow_shape(out_features, in_features))} is needed")
    blocks, width = packed.shape[:2]
    words = packed.permute(0, 1, 4, 3, 2).reshape(blocks, width, 4, 8, 4, 3)
    nibbles = torch.stack([words[..., :2] >> 4 * k & 15 for k in range(8)], -1)  # [..., g, q, product, k]
    i, j = (part.movedim(-2, 3) for part in (nibbles & 3, nibbles >> 2))  # [..., tile, product, g, register, k]
    negative = torch.empty((*i.shape, 2), dtype=torch.int8, device=packed.device)
    for product, register, byte in _values():
        bit = words[..., 2] >> sign_bit(product, register, byte) & 1  # [..., tile, g, q]
        negative[:, :, :, product, :, register, byte // 2 :: 2, byte % 2] = bit.to(torch.int8)
    value = 1 - 2 * negative
    value[..., 1][_carried(torch.where(i >> 1 != j >> 1, i >> 1, 1 - (j & 1)) != 0, back=True)] = 0
    dense = torch.zeros((*i.shape, 4), dtype=torch.int8, device=packed.device)
    for position, slot in ((i, 0), (j, 1)):
        dense.scatter_add_(-1, position.unsqueeze(-1).long(), value[..., slot : slot + 1])
    if bool((dense.abs() > 1).any()):
        raise PackError("packed groups hold a position twice with values of one sign; they are damaged")
    return _rows(dense)[:out_features, :in_features].contiguous()


def _values() -> list[tuple[int, int, int]]:
    """(product, register, byte) of a lane's 32 values."""
    return [(product, register, byte) for product in range(2) for register in range(4) for byte in range(4)]


def _groups(weight: torch.Tensor) -> torch.Tensor:
    """[blocks, width, tile, product, g, register, k, 4]: group k of the eight of a register in four lanes, or of a lane's metadata word."""
    blocks, width = weight.shape[0] // ROWS, weight.shape[1] // COLUMNS
    split = weight.view(blocks, 4, 2, 8, width, 2, 2, 8, 4)  # block, tile, j & 1, g, width, product, j >> 1, k, position
    return split.permute(0, 4, 1, 5, 3, 6, 2, 7, 8).reshape(blocks, width, 4, 2, 8, 4, 8, 4)


def _rows(groups: torch.Tensor) -> torch.Tensor:
    """The inverse of `_groups`."""
    blocks, width = groups.shape[:2]
    split = groups.view(blocks, width, 4, 2, 8, 2, 2, 8, 4).permute(0, 2, 6, 4, 1, 3, 5, 7, 8)
    return split.reshape(blocks * ROWS, width * COLUMNS)


def _carried(flags: torch.Tensor, back: bool = False) -> torch.Tensor:
    """Flags [..., product, g, register, k] of groups to the nibbles that show them, or (back) from the nibbles to their groups.

    The lane of a nibble is the register of its group, and the lane of a value is k >> 1.
    """
    moved = torch.empty_like(flags)
    for product, carried in enumerate(CARRIED):
        new, old = moved[:, :, :, product], flags[:, :, :, product]
        for lane in range(4):
            for nibble, (register, half) in enumerate(carried):
                shown, own = (lane, nibble), (register, 2 * lane + half)
                to, source = (own, shown) if back else (shown, own)
                new[..., to[0], to[1]] = old[..., source[0], source[1]]
    return moved


def _pack_rows(weight: torch.Tensor) -> torch.Tensor:
    """Blocks of a weight whose sizes are whole blocks."""
    groups = _groups(weight)
    filled = groups != 0
    count = filled.sum(-1, dtype=torch.int8)
    if bool((count > 2).any()):
        raise SparsityError("w_ternary has a group of 4 with more than 2 non-zeros along in_features; 2:4 allows 2")
    single, empty = count == 1, count == 0
    shown = _carried(single)
    first = filled.to(torch.int8).argmax(-1)
    last = 3 - filled.flip(-1).to(torch.int8).argmax(-1)
    end = torch.where(shown, 0, 3)
    i = torch.where(empty, end, torch.where(shown & ~single, last, first))
    j = torch.where(empty | single, end, torch.where(shown, first, last))
    negative = torch.stack([groups.gather(-1, at.unsqueeze(-1))[..., 0] < 0 for at in (i, j)], -1)
    negative[..., 1] &= ~single
    negative[..., 1] |= empty
    words = torch.zeros((*groups.shape[:3], 8, 4, 3), dtype=torch.int64, device=weight.device)
    nibble = (i | j << 2).movedim(3, -2)  # [..., tile, g, register, product, k]
    for k in range(8):
        words[..., :2] |= nibble[..., k] << 4 * k
    for product, register, byte in _values():
        bit = negative[:, :, :, product, :, register, byte // 2 :: 2, byte % 2].to(torch.int64)
        words[..., 2] |= bit << sign_bit(product, register, byte)
    return as_int32(words).flatten(3, 4).permute(0, 1, 4, 3, 2).contiguous()
