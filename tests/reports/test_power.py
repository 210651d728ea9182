"""The power panel: the two ratios with the clocks that make them differ, and the same shape under other data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kernels.problem import Problem, Sparsity
from reports import operands, power, power_panel
from reports.compare import Comparer
from reports.load import Case, Results, load
from reports.panel import Data
from suites.record import CaseRecord, Result, RunRecord
from suites.store import write_all

PROBLEM = Problem("gemm", 8192, 8192, 8192, Sparsity(2, 4))


def blocks(us: float, mhz: float | None, watts: float) -> tuple[dict[str, float], ...]:
    one = {"seconds": 2.0, "calls": 2e6 / us, "joules": 2.0 * watts, "power_w": watts, **({"sm_mhz": mhz} if mhz else {})}
    return (one, one, one)


def case(ours: Result, theirs: Result, state: str = "sustained", data: str = "ternary") -> CaseRecord:
    layer = "square" if data == "ternary" else f"square ({data} data)"
    return CaseRecord(
        "r", "square", "square", layer, state, "hot", PROBLEM.to_dict(), str(PROBLEM), PROBLEM.operations, 10**8,  # type: ignore[arg-type]
        (ours, theirs), data=data,  # type: ignore[arg-type]
    )


def timed(name: str, kind: str, us: float) -> Result:
    return Result(name, kind, "ok", samples_us=tuple(us * (1 + 0.0005 * (i % 3)) for i in range(12)))  # type: ignore[arg-type]


def busy(name: str, kind: str, us: float, mhz: float | None, watts: float = 700.0) -> Result:
    return Result(name, kind, "ok", blocks=blocks(us, mhz, watts))  # type: ignore[arg-type]


INTERLEAVED = case(timed("ours", "variant", 700), timed("dense-bf16", "baseline", 1400), "interleaved")


def read(tmp_path: Path, *cases: CaseRecord) -> Results:
    head = RunRecord("r", "h200", "2026-01-01T00:00:00", "abc", False, "m/1", "fake")
    write_all(tmp_path / "run.jsonl", [head, *cases])
    return load("h200", [tmp_path / "run.jsonl"])


@pytest.mark.parametrize(("ours", "theirs", "why"), [
    (busy("ours", "variant", 700, 1700), busy("dense-bf16", "baseline", 1540, 1545), "our clock is 10.0% higher, which explains it"),
    (busy("ours", "variant", 700, 1600), busy("dense-bf16", "baseline", 1540, 1545), "which explains a part"),
    (busy("ours", "variant", 700, 1500), busy("dense-bf16", "baseline", 1540, 1545), "not the clock"),
    (busy("ours", "variant", 700, None), busy("dense-bf16", "baseline", 1540, 1545), "the clocks were not read"),
    (busy("ours", "variant", 700, 1500), busy("dense-bf16", "baseline", 1400, 1500), "the same within their intervals"),
])
def test_why_the_ratios_differ(tmp_path: Path, ours: Result, theirs: Result, why: str) -> None:
    (pair,) = power.pairs(read(tmp_path, INTERLEAVED, case(ours, theirs)))
    assert pair.interleaved is not None
    assert pair.interleaved.value == pytest.approx(2.0)
    assert why in pair.why


def test_a_case_without_its_interleaved_twin_says_so(tmp_path: Path) -> None:
    sustained = case(busy("ours", "variant", 700, 1500), busy("dense-bf16", "baseline", 1400, 1500))
    (pair,) = power.pairs(read(tmp_path, sustained))
    assert pair.interleaved is None
    assert pair.why == "no interleaved measurement of this pair"


def test_joules_are_per_tera_operation(tmp_path: Path) -> None:
    sustained = case(busy("ours", "variant", 700, 1500, watts=650.0), busy("dense-bf16", "baseline", 1400, 1500))
    (pair,) = power.pairs(read(tmp_path, sustained))
    load_ = power.load_of(pair.case, pair.ours)
    assert (load_.us, load_.mhz, load_.watts) == (pytest.approx(700), 1500, 650)
    assert load_.joules == pytest.approx(650 * 700e-6 / (PROBLEM.operations / 1e12))


def test_the_same_shape_under_other_data(tmp_path: Path) -> None:
    ours, theirs = busy("ours", "variant", 700, 1500), busy("dense-bf16", "baseline", 1400, 1500)
    zero = case(busy("ours", "variant", 600, 1900, 500), busy("dense-bf16", "baseline", 1200, 1900, 500), data="zero")
    gone = Result("ours", "variant", "refused", "refused", "not ternary")
    uniform = case(gone, busy("dense-bf16", "baseline", 1600, 1300), data="uniform")
    results = read(tmp_path, case(ours, theirs), uniform, zero)
    found = [(own.result.kernel, own.data, own.over_ternary) for own in operands.under_data(results)]
    assert found == [
        ("ours", "ternary", 1.0), ("ours", "zero", pytest.approx(700 / 600)),
        ("dense-bf16", "ternary", 1.0), ("dense-bf16", "uniform", pytest.approx(1400 / 1600)),
        ("dense-bf16", "zero", pytest.approx(1400 / 1200)),
    ]
    assert len(list(power.pairs(results))) == 1, "ratios are those of the usual data"
    assert operands.under_data(read(tmp_path, case(ours, theirs))) == []


def test_interleaved_data_and_another_card_are_told_apart(tmp_path: Path) -> None:
    def turns(us: float, data: str, run: str = "r") -> CaseRecord:
        return replace(case(timed("ours", "variant", us), timed("dense-bf16", "baseline", 2 * us), "interleaved", data), run=run)

    heads = [RunRecord(name, "h200", "2026-01-01T00:00:00", "abc", False, "m/1", "fake", {"uuid": name}) for name in ("r", "q")]
    write_all(tmp_path / "run.jsonl", [*heads, turns(700, "ternary"), turns(560, "zero"), turns(1400, "uniform", "q")])
    found = operands.under_data(load("h200", [tmp_path / "run.jsonl"]))
    assert [(own.data, own.over_ternary, own.other_card) for own in found if own.result.kernel == "ours"] == [
        ("ternary", 1.0, False), ("uniform", pytest.approx(0.5), True), ("zero", pytest.approx(1.25), False),
    ]
    results = load("h200", [tmp_path / "run.jsonl"])
    made = operands.panel(Data(results, Comparer(results)))
    assert made is not None
    assert "Interleaved, kernels run with uniform data at 0.50 and with zero data at 1.25 of their rate with ternary data." in made.html
    assert "(another card)" in made.html
    assert "<svg" not in made.html, "without sustained blocks there are no clocks of one kernel to draw"


def test_halves_of_another_card_or_commit_are_said_to_be(tmp_path: Path) -> None:
    heads = [RunRecord(name, "h200", "2026-01-01T00:00:00", commit, False, "m/1", "fake", {"uuid": card}) for name, commit, card in
             (("r", "abc", "one"), ("q", "abd", "two"))]
    sustained = replace(case(busy("ours", "variant", 700, 1700), busy("dense-bf16", "baseline", 1540, 1545)), run="q")
    write_all(tmp_path / "run.jsonl", [*heads, INTERLEAVED, sustained])
    results = load("h200", [tmp_path / "run.jsonl"])
    (pair,) = power.pairs(results)
    assert (pair.other_card, pair.other_commit) == (True, True)
    made = power_panel.panel(Data(results, Comparer(results)))
    assert made is not None
    assert "measured for 1 on another card and for 1 on another commit" in made.html
    same = read(tmp_path, INTERLEAVED, replace(sustained, run="r"))
    made = power_panel.panel(Data(same, Comparer(same)))
    assert made is not None
    assert "another c" not in made.html


def test_equal_clocks_explain_nothing(tmp_path: Path) -> None:
    sustained = case(busy("ours", "variant", 700, 1500), busy("dense-bf16", "baseline", 1540, 1500))
    (pair,) = power.pairs(read(tmp_path, INTERLEAVED, sustained))
    assert pair.why == "+10.0%; the clocks are equal, so not the clock"


def test_the_panel(tmp_path: Path) -> None:
    sustained = case(busy("ours", "variant", 700, 1700), busy("dense-bf16", "baseline", 1540, 1545))
    evil = replace(sustained, model="<b>&", data="zero", layer="square (zero data)")
    results = read(tmp_path, INTERLEAVED, sustained, replace(sustained, model="<b>&"), evil)
    made = power_panel.panel(Data(results, Comparer(results)))
    assert made is not None
    assert made.id == "power"
    assert "which explains it" in made.html
    assert "2.00×" in made.html
    other = operands.panel(Data(results, Comparer(results)))
    assert other is not None
    assert "Rate over ternary" in other.html
    assert "&lt;b&gt;" in other.html
    assert "<b>" not in other.html
    assert "<b>" not in made.html
    assert "&lt;b&gt;" in made.html
    nothing = read(tmp_path, INTERLEAVED)
    assert power_panel.panel(Data(nothing, Comparer(nothing))) is None


def test_the_committed_results_have_it() -> None:
    results = load("h200", [])
    found = list(power.pairs(results))
    assert {pair.case.record.state for pair in found} == {"sustained"}
    assert all(isinstance(pair.case, Case) and pair.why for pair in found)
