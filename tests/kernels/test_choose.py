from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from kernels.choose import (
    ELSEWHERE,
    LIBRARY,
    SHARES,
    SPECIALISTS,
    SPECIALISTS_ELSEWHERE,
    SPECIALISTS_START_US,
    START_US,
    STREAMED,
    STREAMED_BY_SPECIALISTS,
    able,
    assumed,
    estimate,
    rank,
)
from kernels.gpu import Gpu, by_name
from kernels.kernel import CompileUnit, Kernel
from kernels.problem import DENSE, Problem, Sparsity
from tests.suites.fakes import gemm

H200, A100 = by_name("h200"), by_name("a100")
HALF, SIX = Sparsity(2, 4), Sparsity(6, 8)
LAYER = Problem("gemm", 13824, 2560, 4096, HALF)


@dataclass(frozen=True)
class Tile:
    block_t: int = 1


def kernel(name: str, expects: dict[int, str] | None = None, most_tokens: int = 0, tile: int = 1, **fields: Any) -> Kernel:
    """A variant that declares its instruction and, for a specialist, the most tokens it takes."""
    def unavailable(problem: Problem, gpu: Gpu) -> str | None:
        return f"takes at most {most_tokens} tokens" if most_tokens and problem.tokens > most_tokens else None

    units = [CompileUnit(SimpleNamespace(__name__=name), {}, {}, expects=expects)] if expects else []
    return gemm(name, 1.0, unavailable=unavailable, default_config=lambda problem, gpu: Tile(tile),
                compile_units=lambda problem, config: units, **fields)


DENSE_TILES, SPARSE, GROUPED = kernel("a", {80: "IMMA", 90: "IGMMA"}), kernel("b", {80: "IMMA.SP"}), kernel("c", {90: "IGMMA.SP"})
FEW = kernel("d", {80: "IMMA.SP"}, most_tokens=64)
ALL = (DENSE_TILES, SPARSE, GROUPED, FEW)


def names(problem: Problem, gpu: Gpu, kernels: tuple[Kernel, ...] = ALL) -> list[str]:
    return [one.kernel.name for one in rank(kernels, problem, gpu)]


def us(one: Kernel, problem: Problem, gpu: Gpu = H200) -> float:
    """Microseconds behind the start."""
    found = estimate(one, problem, gpu, one.default_config(problem, gpu))
    return found.us - (SPECIALISTS_START_US if found.specialist else START_US)


def test_the_instruction_decides_where_arithmetic_does() -> None:
    assert names(LAYER, H200) == ["c", "b", "a"]
    assert names(LAYER, A100, (DENSE_TILES, SPARSE)) == ["b", "a"]


def test_few_tokens_go_to_their_specialist_and_many_cannot() -> None:
    assert names(LAYER.with_(tokens=1), H200)[0] == "d"
    can, cannot = able(ALL, LAYER, H200)
    assert FEW not in can
    assert (FEW, "takes at most 64 tokens") in cannot


def test_the_arithmetic_by_hand() -> None:
    work = 2 * 13824 * 2560 * 4096
    assert us(GROUPED, LAYER) == pytest.approx(work / (2 * 1979e12 * SHARES["IGMMA.SP", 90]) * 1e6)
    assert us(GROUPED, LAYER.with_(sparsity=SIX)) == pytest.approx(1.5 * us(GROUPED, LAYER)), "lifted"
    assert us(SPARSE, LAYER, A100) == pytest.approx(work / (2 * 624e12 * ELSEWHERE) * 1e6)
    assert us(kernel("x"), LAYER) == pytest.approx(work / (989e12 * LIBRARY) * 1e6), "a kernel without functions calls a library"


def test_the_memory_by_hand() -> None:
    few = LAYER.with_(tokens=4)
    nbytes = 13824 * 2560 / 4 + 4 * (2560 + 2 * 13824)
    assert us(DENSE_TILES, few) == pytest.approx(nbytes / 4.8e12 / STREAMED * 1e6)
    assert us(FEW, few) == pytest.approx(nbytes / 4.8e12 / STREAMED_BY_SPECIALISTS * 1e6)


def test_specialists_reach_less_of_the_rate() -> None:
    problem = Problem("gemm", 57344, 8192, 64, HALF)
    assert us(FEW, problem) == pytest.approx(2 * 57344 * 8192 * 64 / (2 * 1979e12 * SPECIALISTS["IMMA.SP", 90]) * 1e6)
    assert names(problem, H200)[0] == "c"


def test_tiles_are_paid_for_whole() -> None:
    wide = kernel("x", {80: "IMMA", 90: "IGMMA"}, tile=128)
    assert us(wide, LAYER.with_(tokens=4097)) == pytest.approx(us(wide, LAYER.with_(tokens=4224)))


def test_narrow_tiles_reach_less_of_their_share() -> None:
    narrow, whole = (kernel("x", {80: "IMMA", 90: "IGMMA"}, tile=tile) for tile in (16, 64))
    assert us(narrow, LAYER) == pytest.approx(4 * us(whole, LAYER))
    few = kernel("x", {80: "IMMA", 90: "IGMMA"}, tile=16, most_tokens=64)
    least = 2 * 57344 * 8192 * 64 / (1979e12 * SPECIALISTS_ELSEWHERE) * 1e6
    assert us(few, Problem("gemm", 57344, 8192, 64, DENSE)) == pytest.approx(least), "what is made for few tokens is measured with them"


def test_a_gpu_without_a_datasheet_is_ranked_by_its_relatives_rates() -> None:
    """Without rates every kernel took the same time, and an A40 never got the sparse tensor cores."""
    a40 = replace(by_name("a10"), name="nvidia-a40", sms=84, bandwidth=float("inf"), peak={}, measured_as="device properties")
    assert names(LAYER, a40, (DENSE_TILES, SPARSE)) == ["b", "a"]
    assert us(SPARSE, LAYER, a40) == pytest.approx(us(SPARSE, LAYER, by_name("a10")) * 72 / 84)
    assert us(FEW, LAYER.with_(tokens=4), a40) == pytest.approx(us(FEW, LAYER.with_(tokens=4), by_name("a10")) * 72 / 84)
    told = str(estimate(SPARSE, LAYER, a40, SPARSE.default_config(LAYER, a40)))
    assert told.endswith("IMMA.SP; rates assumed as the a10's by multiprocessor")
    assert "assumed" not in str(estimate(SPARSE, LAYER, A100, SPARSE.default_config(LAYER, A100)))
    for capability, like in ((75, None), (87, "a10"), (90, "h100"), (120, "b200")):
        found = assumed(replace(a40, capability=capability))
        assert (found.name if found else None) == like


def test_a_start_is_what_next_to_nothing_takes() -> None:
    tiny = Problem("gemm", 64, 64, 1, HALF)
    times = [estimate(one, tiny, H200, one.default_config(tiny, H200)).us for one in (DENSE_TILES, FEW)]
    assert times == pytest.approx([START_US, SPECIALISTS_START_US], rel=0.01)


def test_equal_ones_stay_in_the_catalogues_order() -> None:
    twin = kernel("twin", {80: "IMMA", 90: "IGMMA"})
    assert names(LAYER, H200, (DENSE_TILES, twin)) == ["a", "twin"]
    assert names(LAYER, H200, (twin, DENSE_TILES)) == ["twin", "a"]
    narrow, few = kernel("narrow", {80: "IMMA", 90: "IGMMA"}, most_tokens=64), LAYER.with_(tokens=1)
    assert names(few, H200, (DENSE_TILES, twin, narrow)) == ["narrow", "a", "twin"]


def test_baselines_and_inexact_variants_are_not_chosen() -> None:
    inexact = kernel("8-bit", {80: "IMMA"}, exact=False)
    can, cannot = able((gemm("theirs", 1.0, "baseline"), inexact), LAYER, H200)
    assert can == []
    assert [(one.name, reason.split(":")[0]) for one, reason in cannot] == [("8-bit", "not exact")]


@pytest.mark.parametrize("tokens", [0, 1, 7, 64, 512, 16384])
@pytest.mark.parametrize("sparsity", [DENSE, HALF, SIX])
@pytest.mark.parametrize("gpu", [A100, H200, by_name("rtx4090"), by_name("b200")], ids=lambda gpu: gpu.name)
def test_every_catalogued_variant_can_be_ranked(gpu: Gpu, sparsity: Sparsity, tokens: int) -> None:
    from kernels.catalogue import kernels_for

    for op in ("gemm", "layer", "step"):
        problem = Problem(op, 2560, 6912, tokens, sparsity)  # type: ignore[arg-type]  # an op
        found = rank(kernels_for(op), problem, gpu)
        assert found
        assert all(one.us > 0 for one in found)
        assert [one.us for one in found] == sorted(one.us for one in found)
