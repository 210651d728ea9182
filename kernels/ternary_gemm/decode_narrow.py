"""The PTX that unpacks 1.5 bits a weight: four registers of eight-bit weights from a metadata word and a sign word (layout narrow24).

The metadata word goes to the product as it is. Its nibbles show a flag each by the order of their two positions, which `mma.sp` does not
ask for (nor that they differ): of 16 nibbles in either form of the instruction an H200 took every one as two positions of their own, at the
same speed. A flag takes two shifts and one operation for eight groups; a value is looked up by four bits, sign and flag: with `prmt` a flag
in the highest bit makes +64 a zero, since it repeats the byte's sign (four weights an operation). Half of the first product's flags lie
where shifting brings them to bit 6 of the second values' bytes, beside a sign in bit 7. 76 operations (and 37 shifts and products of the
other pipe) for 256 weights a lane; two bits a weight take 56.
"""

from __future__ import annotations

from triton.experimental import gluon

SIGNS = 8
"""Words of a step before those of signs: metadata of both products of four tiles."""
CONSTANTS = (("one", "0xC040C040"), ("two", "0xC0C04040"), ("low", "0x40404040"), ("high", "0xC0C0C0C0"), ("rest", "0x00400040"))
"""+64 and -64 by bit 0, by bit 1 and (low, high) by bit 2 of a place; first values that are never zero."""
FLAG, MIX, KEEP, PLACE = "0x71", "0xD8", "0xE4", "0xAE"
"""Of three words a, b, c: positions compared; b where c is set, else a; a where c is set, else b; c, and b where a is not set."""


@gluon.constexpr_function
def declare():
    """Registers of a step beside words and fragments. The constants are multiplied by a one that the compiler does not know: else it copies
    them before every use."""
    text = "\n.reg .b32 plain<4>, t0, t1, flags, unit, one, two, low, high, rest;\nmov.u32 unit, %nctaid.z;"
    return text + "".join(f"\nmul.lo.u32 {name}, unit, {value};" for name, value in CONSTANTS)


@gluon.constexpr_function
def look_up(first, second, tables, m, flags):
    """Two registers by sign and flag: of four bits a value, low half and high half."""
    return f"""
        lop3.b32 t0, plain{m}, {flags}, 0x80808080, {MIX};
        prmt.b32 {first}, {tables}, t0;
        shr.u32 t0, t0, 16;
        prmt.b32 {second}, {tables}, t0;"""


@gluon.constexpr_function
def place(to, signs, shift):
    """A register from signs in bit 7 of every byte, and flags that a shift brings to bit 6 of its second values."""
    return f"""
        shl.b32 t0, flags, {shift};
        lop3.b32 t0, t0, 0x40004000, rest, {PLACE};
        lop3.b32 {to}, {signs}, t0, 0x80808080, {KEEP};"""


@gluon.constexpr_function
def unpack(half, m):
    """f{4m} … f{4m + 3}: 64 times the kept weights of tile m in product `half` of a step; the first product comes first."""
    metadata, signs = f"word{4 * half + m}", f"word{SIGNS + m}"
    f0, f1, f2, f3 = (f"f{4 * m + i}" for i in range(4))
    text = f"""
        shl.b32 t0, {metadata}, 2;
        shl.b32 t1, {metadata}, 1;
        lop3.b32 flags, t0, {metadata}, t1, {FLAG};"""
    if half == 0:
        text += f"\nand.b32 plain{m}, {signs}, 0x77777777;" + look_up(f0, f1, "one, one", m, "flags")
        return text + f"\nshl.b32 t1, {signs}, 4;" + place(f2, "t1", 11) + place(f3, signs, 3)
    text += look_up(f0, f1, "two, two", m, "flags")
    return text + "\nshl.b32 t1, flags, 4;" + look_up(f2, f3, "low, high", m, "t1")
