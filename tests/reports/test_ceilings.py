"""The panel of the share of `mma.sp`, by hand."""

from __future__ import annotations

import random
from dataclasses import replace

from kernels.problem import Problem
from reports import ceilings
from reports.compare import Comparer
from reports.load import Case, Results
from reports.panel import Data
from suites.record import Result, RoofRecord
from tests.reports import golden

PROBLEM = Problem("gemm", 1024, 1024, 1024, golden.S24)


def data(*results: Result) -> Data:
    made = golden.case("square", "square", "1024x1024", PROBLEM, (), random.Random(0), results=results)
    roofs = (RoofRecord(golden.RUN, "sparse-int8-mma", 2 * PROBLEM.operations * 1e5, "op/s"),)
    found = Results("h200", "test", (golden.head(),), roofs, (Case(made, PROBLEM),))
    return Data(found, Comparer(found))


def test_the_share_is_that_of_the_same_rounds_and_of_a_cool_card_beside() -> None:
    rate = PROBLEM.operations * 1e5  # the whole problem in 10 µs
    ours = golden.result("sparse-mma", 20.0, random.Random(0), samples_us=(20.0,) * 5, ceiling=(rate,) * 5)
    faster = golden.result("sparse-wgmma", 15.0, random.Random(0), kind="variant")
    made = ceilings.panel(data(faster, ours))
    assert made is not None
    assert [cell in made.html for cell in ("sparse-mma", "50.0%", "50.0% to 50.0%", "25.0%", "1024³ 2:4")] == [True] * 5
    assert "sparse-wgmma" not in made.html, "its rounds hold no rate of the instruction"
    assert ceilings.panel(data(faster, replace(ours, ceiling=()))) is None
    assert ceilings.panel(data(replace(ours, status="failed", samples_us=()))) is None
