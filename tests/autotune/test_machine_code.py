from __future__ import annotations

import pytest

from autotune.machine_code import main_loop

HEAD = "        /*0000*/                   MOV R1, c[0x0][0x28] ;       /* 0x00000a0000017a02 */\n"
LOOP = """
        /*0010*/                   LDSM.16.M88.4 R8, [R4+0x100] ;
        /*0020*/                   LDS.128 R12, [R5] ;
        /*0030*/              @!P0 LDGSTS.E.BYPASS.128 [R6], [R2.64] ;
        /*0040*/                   LOP3.LUT R16, R12, 0xc0c0c0c0, RZ, 0xc0, !PT ;
        /*0050*/                   IMMA.16832.S8.S8.SAT R20, R16.ROW, R8.COL, R20 ;
        /*0060*/                   IMMA.16832.S8.S8.SAT R24, R16.ROW, R10.COL, R24 ;
        /*0070*/                   IMAD.SHL.U32 R30, R31, 0x4, RZ ;
        /*0080*/               @P1 BRA 0x10 ;
"""
TAIL = """
        /*0090*/                   STG.E [R2.64], R20 ;
        /*00a0*/                   EXIT ;
        /*00b0*/                   BRA 0xb0;
"""


def test_the_loop_with_the_products() -> None:
    loop = main_loop(HEAD + LOOP + TAIL)
    assert loop is not None
    assert loop.instructions == 8
    assert loop.operations == 2 * 2 * 16 * 8 * 32
    assert loop.kinds == {"integer": 1, "multiply": 1, "other": 1, "shared": 3, "tensor": 2}
    assert loop.shared_bytes == 3 * 512
    assert (loop.sparse, loop.grouped, loop.number) == (False, False, "int8")


def test_the_inner_loop_counts() -> None:
    outer = LOOP + TAIL.replace("EXIT", "NOP").replace("BRA 0xb0", "BRA 0x0")
    loop = main_loop(HEAD + outer)
    assert loop is not None
    assert loop.instructions == 8


def test_a_listing_without_a_loop_counts_whole() -> None:
    loop = main_loop(HEAD + LOOP.replace("@P1 BRA 0x10", "@P1 BRA 0x90") + TAIL)
    assert loop is not None
    assert loop.instructions == 12


@pytest.mark.parametrize(
    ("instruction", "operations", "sparse", "grouped", "number"),
    [
        ("IGMMA.SP.64x256x64.S8.S8 R24, R4, gdesc[UR4], R24", 2 * 64 * 256 * 64 // 4, True, True, "int8"),
        ("HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24", 2 * 64 * 128 * 16 // 4, False, True, "bf16"),
        ("HMMA.16816.F32.BF16 R4, R8, R10, R4", 2 * 16 * 8 * 16, False, False, "bf16"),
        ("IMMA.SP.16864.S8.S8 R4, R8.ROW, R10.COL, R4, R12, 0x0", 2 * 16 * 8 * 64, True, False, "int8"),
        ("QMMA.16832.F32.E4M3.E4M3 R4, R8, R10, R4", 2 * 16 * 8 * 32, False, False, "fp8"),
        ("IDP.4A.S8.S8 R4, R8, R10, R4", 256, False, False, "int8"),
    ],
)
def test_products_of_every_kind(instruction: str, operations: int, sparse: bool, grouped: bool, number: str) -> None:
    loop = main_loop(HEAD + f"        /*0010*/                   {instruction} ;\n        /*0020*/               @P0 BRA 0x0 ;\n")
    assert loop is not None
    assert (loop.operations, loop.sparse, loop.grouped, loop.number) == (operations, sparse, grouped, number)


def test_nothing_to_count() -> None:
    assert main_loop(HEAD + TAIL) is None
    assert main_loop(HEAD + "        /*0010*/                   UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8], tmem[UR10], UP0 ;\n") is None
