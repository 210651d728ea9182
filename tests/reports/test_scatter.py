"""Rounds of chosen cases and the clock strip, by hand on small results."""

from __future__ import annotations

import random
import re

from kernels.problem import DENSE, Problem
from reports.compare import Comparer
from reports.load import Case, Results
from reports.panel import Data
from reports.scatter import clock_strip, panel, samples
from reports.svg import Figure
from suites.record import CaseRecord, RunRecord
from tests.reports import golden


def case(suite: str, problem: Problem, layer: str = "Wo", **changes: object) -> CaseRecord:
    made = (golden.result("dense-triton", 5.0, random.Random(0)), golden.result("dense-bf16", 9.0, random.Random(1)))
    return golden.case(suite, "m", layer, problem, (), random.Random(0), results=made, **changes)


def parsed(*records: CaseRecord) -> tuple[Case, ...]:
    return tuple(Case(record, Problem.from_dict(dict(record.problem))) for record in records)


def words(figure: Figure | None) -> list[str]:
    assert figure is not None
    return re.findall(r"<text[^>]*>([^<]*)</text>", figure.svg)


def gemm(tokens: int) -> Problem:
    return Problem("gemm", 64, 256, tokens, golden.S24)


def test_names_of_suites_do_not_run_into_each_other() -> None:
    def strip(*counts: tuple[str, int]) -> list[str]:
        return words(clock_strip(parsed(*(case(suite, gemm(place + 1)) for suite, count in counts for place in range(count)))))

    assert {"prefill", "prepare", "train"} <= set(strip(("prefill", 50), ("prepare", 50), ("train", 50)))
    crowded = strip(("prefill", 90), ("prepare", 3), ("train", 60))
    assert {"prefill", "train"} <= set(crowded)
    assert "prepare" not in crowded, "the shortest stretch has no room"
    assert "square" not in strip(("prefill", 90), ("square", 1)), "it would end behind the edge"


def test_the_strip_follows_the_runs_as_they_started() -> None:
    late, early = golden.head(id="late", started="2026-11-22T10:00:00Z"), golden.head(id="early", started="2026-11-22T09:00:00Z")
    seen = {"late": {"before": {"sm_mhz": 1000}}, "early": {"before": {"sm_mhz": 2000}}}
    made = [case("prefill", gemm(tokens), run=run, conditions=seen[run]) for run in ("late", "early") for tokens in (1, 2)]

    def heights(runs: tuple[RunRecord, ...]) -> list[float]:
        results = Results("h200", "test", runs, cases=parsed(*made))
        drawn = panel(Data(results, Comparer(results)))
        assert drawn is not None
        strip = str(drawn.html)[str(drawn.html).index("fig-clock-strip") :]
        [marks] = re.findall(r'<path d="((?:M[\d.]+ [\d.]+v6)+)"', strip)
        return [float(y) for y in re.findall(r"M[\d.]+ ([\d.]+)v6", marks)]

    first, second, third, fourth = heights((late, early))
    assert first == second < third == fourth, "the fast clock of the earlier run stands first, and higher"


def test_a_square_is_named_by_its_size_and_an_activation_without_weights() -> None:
    def names(record: CaseRecord) -> list[str]:
        results = Results("h200", "test", cases=parsed(record))
        return words(samples(record.suite, Data(results, Comparer(results))))

    assert "4096³ 2:4" in names(case("square", Problem("gemm", 4096, 4096, 4096, golden.S24), layer="4096x4096"))
    assert "m activation 7" in names(case("prepare", Problem("activation", 0, 256, 7, DENSE), layer="activation"))
    assert "m Wo 3 2:4" in names(case("prefill", gemm(3)))
