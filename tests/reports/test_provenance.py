"""Where results come from, what failed, and what cannot take part: by hand on small results."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from kernels.gpu import by_name
from kernels.problem import Problem
from reports import failures, provenance
from reports.answers import answers
from reports.compare import Comparer
from reports.load import Case, Results
from reports.tables import case_rows
from suites.quality import case_refusals
from suites.record import CaseRecord, Result
from suites.refusals import result_refusals
from tests.reports import golden


def gemm(tokens: int, *results: Result, **changes: object) -> CaseRecord:
    made = golden.case("prefill", "m", "Wo", Problem("gemm", 64, 256, tokens, golden.S24), (), random.Random(0), results=results)
    return replace(made, **changes)  # type: ignore[arg-type]  # the caller names fields of CaseRecord


def results(*cases: CaseRecord, **changes: object) -> Results:
    made = Results("h200", "test", runs=(golden.head(),), cases=tuple(Case(c, Problem.from_dict(dict(c.problem))) for c in cases))
    return replace(made, **changes)  # type: ignore[arg-type]  # the caller names fields of Results


OK = golden.result("dense-triton", 5.0, random.Random(0))
THEIRS = golden.result("dense-bf16", 9.0, random.Random(1))


def test_the_origin_counts_cases_by_commit_and_names_the_cards() -> None:
    heads = (
        golden.head(), golden.head(id="b", commit="bbb", dirty=True, started="2026-11-23T00:00:00Z", device={"uuid": "GPU-2"}),
        golden.head(id="unused", commit="ccc"),
    )
    found = provenance.origin(results(gemm(1, OK), gemm(2, OK), gemm(3, OK, run="b"), runs=heads))
    assert found is not None
    assert found.commits == [(golden.head().commit, False, 2), ("bbb", True, 1)]
    assert found.cards == ["GPU-0000", "GPU-2"]
    assert found.days == ("2026-11-22", "2026-11-23")
    assert provenance.origin(results()) is None


def test_runs_without_a_result_are_left_out_and_facts_stand_once() -> None:
    other = golden.head(id="b", started="2026-11-23T00:00:00Z", versions={"torch": "2.12.0", "cusparselt": 800, "tersparse": None})
    found = results(gemm(1, OK), gemm(2, OK, run="b"), runs=(other, golden.head(), golden.head(id="unused")), roofs=tuple(golden.roofs()))
    rows = provenance.run_rows(found)
    assert [(row.run.id, row.cases, row.roofs) for row in rows] == [(golden.RUN, 1, 5), ("b", 1, 0)]
    facts = dict(provenance.facts(rows))
    assert facts["power cap, W"] == "700"
    assert facts["PyTorch"] == "2.11.0 (1 run); 2.12.0 (1 run)"
    assert facts["cuSPARSELt"] == "0.8.0"
    assert "tersparse" not in facts
    assert [row.run.id for row in provenance.run_rows(results(runs=(golden.head(),)))] == [golden.RUN], "nothing measured: the run itself"


@pytest.mark.parametrize(("value", "name", "text"), [(800, "cusparselt", "0.8.0"), ("0.8.1", "cusparselt", "0.8.1"), (700.0, "cap", "700")])
def test_versions_for_people(value: object, name: str, text: str) -> None:
    assert provenance.version(value, name) == text


def test_failures_are_told_from_what_cannot_take_part() -> None:
    broken = Result("sparse-mma", "variant", "failed", "launch", "illegal access")
    empty = Result("dense-bf16", "baseline", "ok")
    few = [Result("decode", "variant", "unavailable", "unavailable", f"takes at most 64 tokens, not {tokens}") for tokens in (128, 1024)]
    found = results(
        gemm(128, OK, broken, few[0]), gemm(1024, OK, empty, few[1]), gemm(7, refusal="no, never"),
        unreached=(Case(gemm(9), Problem("gemm", 64, 256, 9, golden.S24), reached=False),),
    )
    assert [(row.kernel, row.reason, row.count) for row in failures.failures(found)] == [
        ("dense-bf16", "no samples", 1), ("every kernel", "should have been measured, and was not", 1),
        ("sparse-mma", "failed, launch, illegal access", 1),
    ]
    assert [(row.kernel, row.reason, row.count) for row in failures.absences(found.measured)] == [
        ("decode", "takes at most 64 tokens, not 128, 1024", 2), ("every kernel", "no, never", 1),
    ]
    assert failures.absences(found.measured)[0].example == "prefill m Wo gemm 64x256 T=128 2:4"
    assert failures.statuses(found) == {"ok": 3, "failed": 1, "unavailable": 2}


def test_doubtful_cases_are_listed_with_their_reason() -> None:
    shaky = replace(OK, samples_us=(5.0, 10.0, 5.0, 10.0, 5.0, 10.0))
    found = results(gemm(1, OK, THEIRS), gemm(2, shaky, THEIRS))
    [(suite, case, reason)] = failures.doubtful(case_rows(Comparer(found)))
    assert (suite, case) == ("prefill", "m Wo gemm 64x256 T=2 2:4")
    assert reason.startswith("noisy: ")


REFUSED = {
    "identical-samples": {"results": (OK, replace(OK, kernel="dense-bf16", kind="baseline"))},
    "other-process": {"conditions": {"before": {"other_processes": 2}}},
    "throttled": {"conditions": {"after": {"throttle": "0x20", "throttle_names": "sw thermal slowdown"}}},
    "clocks-unsettled": {"results": tuple(
        replace(one, samples_us=tuple(us * (1 + 0.1 * place) for place, us in enumerate(one.samples_us))) for one in (OK, THEIRS)
    )},
    "repeated-inputs": {"cache": "cold", "results": (replace(OK, notes={"copies": 2}, footprint=100), THEIRS)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_gate_refuses_is_doubtful_on_the_page_and_on_the_card(name: str) -> None:
    case = replace(gemm(2, OK, THEIRS), **REFUSED[name])  # type: ignore[arg-type]  # fields by name
    comparer = Comparer(results(case))
    details = {refusal.name: refusal.detail for refusal in case_refusals(case)}
    details |= {found.name: found.detail for one in case.results for found in result_refusals(case, one, by_name("h200"), {})}
    assert list(details) == [name]
    [(_, _, reason)] = failures.doubtful(case_rows(comparer))
    assert details[name] in reason
    [answer] = answers(comparer)
    assert any(details[name] in doubt for doubt in answer.doubts)


def test_conditions_are_named_and_stand_side_by_side() -> None:
    before = {"sm_mhz": 1980, "throttle": "0x4", "throttle_names": "power cap", "odd": "x"}
    seen = [{"before": before, "after": {"sm_mhz": 1755, "throttle": "0x0", "throttle_names": ""}}, {"before": {"sm_mhz": 1000}}, {}]
    cases = [gemm(place, OK, conditions=own) for place, own in enumerate(seen, 1)]
    assert provenance.conditions(results(*cases).measured) == [
        ("SM clock, MHz", "1000 to 1980, median 1490", "1755"), ("slowed down by", "power cap (1)", "none (1)"), ("odd", "x (1)", "–"),
    ]
    bits = [gemm(1, OK, conditions={"before": {"throttle": "0x8"}})]
    assert provenance.conditions(results(*bits).measured) == [("throttle", "0x8 (1)", "–")]
