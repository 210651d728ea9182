"""Reading a listing of machine code: its main loop, what that issues per product, and what it moves through shared memory. Pure text."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_LINE = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)\s*([^;/]*)", re.MULTILINE
)
_WARP_SHAPE = re.compile(r"^(16|8)(8)(\d{1,3})$")
_GROUP_SHAPE = re.compile(r"^64x(\d+)x(\d+)$")
_TARGET = re.compile(r"0x([0-9a-f]+)\s*$")
_KINDS: Mapping[str, frozenset[str]] = {
    "tensor": frozenset(("IMMA", "HMMA", "QMMA", "IGMMA", "HGMMA", "QGMMA")),
    "dot": frozenset(("IDP", "IDP4A")),
    "integer": frozenset((
        "LOP3", "LOP", "SHF", "SHL", "SHR", "PRMT", "IADD3", "IADD", "VIADD", "LEA", "ISETP", "IMNMX", "VIMNMX", "SEL", "SGXT", "BMSK",
        "POPC", "FLO", "IABS", "BREV", "PLOP3", "I2I", "VABSDIFF4", "FSEL", "FMNMX", "FSETP",
    )),
    "multiply": frozenset(("IMAD", "FFMA", "FMUL", "FADD", "HFMA2", "HMUL2", "HADD2", "FFMA2", "FMUL2", "FADD2")),
    "convert": frozenset(("I2F", "I2FP", "F2I", "F2F", "F2FP", "MUFU", "FRND", "I2IP")),
    "shared": frozenset(("LDS", "STS", "LDSM", "STSM", "LDGSTS", "ATOMS")),
    "global": frozenset(("LDG", "STG", "RED", "ATOMG", "ATOM", "LDC", "LDL", "STL", "UBLKCP", "UTMALDG", "UTMASTG", "LD", "ST")),
}
_SHARED_WIDTH = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
LANES = 32


@dataclass(frozen=True)
class Loop:
    """One passage of a warp through its main loop: the innermost one with the products; the whole listing where no loop holds them.

    instructions: issued. kinds: of them by kind ("tensor", "dot" for dp4a, "integer", "multiply", "convert", "shared", "global",
    "other"). operations: multiplications and additions of its products, zeros of 2:4 included. shared_bytes: what its own loads and
    stores move through shared memory; what tensor cores read from there by themselves is not in it. sparse: products on the sparse
    tensor cores. grouped: products of four warps together (wgmma). number: type of the products' factors ("int8", "bf16", "fp8").
    """

    instructions: int
    operations: int
    kinds: Mapping[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    sparse: bool = False
    grouped: bool = False
    number: str = "int8"


@dataclass(frozen=True)
class _Instruction:
    address: int
    name: str
    modifiers: tuple[str, ...]
    operands: str


def main_loop(sass: str) -> Loop | None:
    """The main loop of a listing; None where no product is found whose size the listing tells (tcgen05 keeps it in a descriptor)."""
    code = [
        _Instruction(int(address, 16), name, tuple(filter(None, modifiers.split("."))), operands.strip())
        for address, name, modifiers, operands in _LINE.findall(sass)
    ]
    spans = [code, *_loops(code)]
    busy = [(sum(map(_operations, span)), span) for span in spans]
    inside = [(done, span) for done, span in busy[1:] if done]
    if not busy[0][0]:
        return None
    if not inside:
        return _loop(code)
    most = max(done for done, _ in inside)
    return _loop(min((span for done, span in inside if 2 * done >= most), key=len))


def _loops(code: Sequence[_Instruction]) -> list[Sequence[_Instruction]]:
    """The stretches from a branch's earlier target to the branch; a branch to itself, which pads the end, is none."""
    place = {entry.address: index for index, entry in enumerate(code)}
    found = []
    for index, entry in enumerate(code):
        target = _TARGET.search(entry.operands) if entry.name == "BRA" else None
        start = place.get(int(target[1], 16)) if target else None
        if start is not None and start < index:
            found.append(code[start : index + 1])
    return found


def _loop(span: Sequence[_Instruction]) -> Loop:
    kinds = collections.Counter(map(_kind, span))
    products = [entry for entry in span if _operations(entry)]
    return Loop(
        len(span), sum(map(_operations, products)), dict(sorted(kinds.items())), sum(map(_shared_bytes, span)),
        any("SP" in entry.modifiers for entry in products), any(entry.name.endswith("GMMA") for entry in products),
        {"H": "bf16", "Q": "fp8"}.get(products[0].name[0], "int8"),
    )


def _kind(entry: _Instruction) -> str:
    return next((kind for kind, names in _KINDS.items() if entry.name in names), "other")


def _operations(entry: _Instruction) -> int:
    """Of one warp's share of a product; 0 for everything else."""
    if entry.name in _KINDS["dot"]:
        return 2 * LANES * (2 if "2A" in entry.modifiers else 4)
    if entry.name not in _KINDS["tensor"]:
        return 0
    for modifier in entry.modifiers:
        if shape := _WARP_SHAPE.match(modifier):
            return 2 * int(shape[1]) * int(shape[2]) * int(shape[3])
        if shape := _GROUP_SHAPE.match(modifier):
            return 2 * 64 * int(shape[1]) * int(shape[2]) // 4
    return 0


def _shared_bytes(entry: _Instruction) -> int:
    """Bytes that a warp moves through shared memory with one instruction, every lane taking part."""
    if entry.name in ("LDSM", "STSM"):
        return 128 * next((int(modifier) for modifier in reversed(entry.modifiers) if modifier in ("2", "4")), 1)
    if entry.name in ("LDS", "STS", "LDGSTS", "ATOMS"):
        return LANES * next((_SHARED_WIDTH[modifier] for modifier in entry.modifiers if modifier in _SHARED_WIDTH), 4)
    return 0
