from __future__ import annotations

import pytest

from autotune.compile import Compiled, compile_unit, count_instructions
from autotune.pool import compile_all
from kernels.errors import Failure, UsageError
from kernels.gpu import Gpu, by_name
from kernels.kernel import CompileUnit

SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;                 /* 0x00000a00ff017b82 */
        /*0010*/              @!P0 BRA 0x150 ;                            /* 0x0000000000ff89c3 */
        /*0a20*/                   IGMMA.SP.64x256x64.S8.S8 R24, R4, gdesc[UR4], R24 ;
        /*0a30*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0a40*/             @UP1  UIADD3 UR4, UR4, 0x1, URZ ;
        /*0a50*/                   IMMA.16832.S8.S8 R4, R8.ROW, R10.COL, R4 ;
"""


def unit(block: int = 64, **changes: object) -> CompileUnit:
    from tests.autotune.kernels_to_compile import int8_dot

    signature = {"a": "*i8", "b": "*i8", "c": "*i32", "rows": "i32", "BLOCK": "constexpr"}
    fields = {"function": int8_dot, "signature": signature, "constexprs": {"BLOCK": block}, "divisible": ("a", "b", "c"), **changes}
    return CompileUnit(**fields)  # type: ignore[arg-type]  # a test's changes


def test_instructions_are_counted_by_name() -> None:
    counts = count_instructions(SASS)
    assert counts["IGMMA"] == counts["IGMMA.SP"] == counts["IMMA"] == counts["WARPGROUP.DEPBAR"] == counts["UIADD3"] == counts["BRA"] == 1
    assert "SP" not in counts


def test_the_interpreters_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UsageError, match="interpreter"):
        compile_unit(CompileUnit(None, {}, {}), by_name("h200"))


@pytest.mark.compile
@pytest.mark.parametrize(("gpu", "instruction"), [("a100", "IMMA"), ("h200", "IGMMA"), ("b200", "IMMA")])
def test_machine_code_has_tensor_core_instructions(gpu: str, instruction: str) -> None:
    compiled = compile_unit(unit(), by_name(gpu))
    assert isinstance(compiled, Compiled), compiled
    assert compiled.instructions[instruction] > 0
    assert 16 <= compiled.registers <= 255
    assert compiled.spills == 0
    assert compiled.instructions.get("LDL", 0) == 0


def test_a_unit_differs_by_architecture() -> None:
    made = CompileUnit(None, {"PDL": "constexpr"}, {"PDL": False}, options={"num_warps": 4}, since={90: {"PDL": True, "launch_pdl": True}})
    assert made.on(89) is made
    assert (made.on(90).constexprs, made.on(100).options) == ({"PDL": True}, {"num_warps": 4, "launch_pdl": True})


@pytest.mark.compile
def test_a_unit_is_compiled_as_it_is_for_the_gpu() -> None:
    changed = unit(64, since={90: {"BLOCK": 128}})
    small, large = compile_unit(changed, by_name("a100")), compile_unit(changed, by_name("h200"))
    assert isinstance(small, Compiled), small
    assert isinstance(large, Compiled), large
    assert small.shared_bytes < large.shared_bytes


@pytest.mark.compile
def test_spills_are_seen() -> None:
    compiled = compile_unit(unit(128, options={"num_warps": 1, "maxnreg": 64}), by_name("a100"))
    assert isinstance(compiled, Compiled), compiled
    assert compiled.spills > 0
    assert compiled.instructions["STL"] > 0


@pytest.mark.compile
def test_failures_are_one_line() -> None:
    from tests.autotune.kernels_to_compile import broken

    failure = compile_unit(CompileUnit(broken, {"a": "*i32"}, {}), by_name("h200"))
    assert isinstance(failure, Failure)
    assert failure.stage == "compile"
    assert "not_defined_anywhere" in failure.reason
    assert "\n" not in failure.reason
    tiny = Gpu("tiny", "tiny", 80, 1, 1, 1024, 1, 1.0)
    large = compile_unit(unit(), tiny)
    assert isinstance(large, Failure)
    assert "shared memory" in large.reason


@pytest.mark.compile
def test_many_in_child_processes_gluon_included() -> None:
    from tests.autotune.kernels_to_compile import broken, doubled

    gluon = CompileUnit(doubled, {"a": "*i32", "BLOCK": "constexpr"}, {"BLOCK": 128}, ("a",), {"num_warps": 4})
    units = [unit(), gluon, CompileUnit(broken, {"a": "*i32"}, {}), unit()]
    first, second, third, fourth = compile_all(units, by_name("h200"), processes=1)
    assert isinstance(first, Compiled)
    assert first == fourth
    assert isinstance(second, Compiled)
    assert isinstance(third, Failure)
