"""The roof of `mma.sp`: its text multiplies and does nothing else, and reports know it by its name."""

from __future__ import annotations

import pytest

from autotune.compile import Compiled, compile_unit
from autotune.roofs import SPARSE_MMA, sparse_mma_kernel
from kernels.gpu import by_name
from kernels.kernel import CompileUnit
from suites import floors


def test_reports_know_the_roof_of_mma_sp_by_its_name() -> None:
    assert SPARSE_MMA == floors.SPARSE_MMA


@pytest.mark.compile
@pytest.mark.parametrize("gpu", ["a100", "h200", "b200"])
def test_the_ceiling_of_mma_sp_is_products_from_registers(gpu: str) -> None:
    signature = {"sums": "*i32", "rounds": "i32", "THREADS": "constexpr"}
    unit = CompileUnit(sparse_mma_kernel, signature, {"THREADS": 256}, ("sums",), {"num_warps": 8}, {80: "IMMA.SP"})
    found = compile_unit(unit, by_name(gpu))
    assert isinstance(found, Compiled), found
    assert (found.spills, found.shared_bytes, found.instructions["IMMA.SP"]) == (0, 0, 8)
    assert found.registers <= 128, "two programs of eight warps share a multiprocessor"
    assert not {name for name in found.instructions if name.startswith(("LDG", "LDS", "BAR"))}, "nothing is loaded or waited for"
