"""What a machine without the GPU says: projections by case, and why there is none."""

from __future__ import annotations

import random
import re
from dataclasses import replace

from kernels.problem import Problem
from reports.load import Case, Results
from reports.page import render
from reports.unmeasured import Floor, floors, kinds
from suites.record import Result
from tests.reports import golden
from tests.reports.htmlcheck import Page

PROBLEM = Problem("gemm", 64, 256, 1, golden.S24)


def projection(kernel: str, us: float, roof: str) -> Result:
    return Result(kernel, "variant", "ok", projected_us=us, notes={"roofline": f"{roof}, datasheet rates"})


def case(*results: Result, evidence: str = "projected") -> Case:
    made = golden.case("prefill", "m", "Wo", PROBLEM, (), random.Random(0), results=results)
    return Case(replace(made, evidence=evidence), PROBLEM)  # type: ignore[arg-type]  # a kind of evidence


def test_kernels_with_one_floor_stand_together_the_least_first() -> None:
    absent = Result("cusparselt-int8", "baseline", "unavailable", reason="built without cuSPARSELt")
    one = case(projection("b", 2.0, "int8"), projection("a", 4.0, "bf16"), projection("c", 2.0, "int8"), absent)
    assert floors(one) == [Floor(2.0, "int8", ("b", "c")), Floor(4.0, "bf16", ("a",))]
    text = re.sub(r"\s+", " ", Page(render(Results("h200", "test", cases=(one,)))).text())
    assert "2.000 int8: b, c; 4.000 bf16: a" in text
    assert "built without cuSPARSELt" in text, "what has no projection says why"
    assert "1 reasons" not in text


def test_the_kinds_of_evidence_are_told_in_one_order_and_measurements_are_none() -> None:
    ok = golden.result("dense-triton", 5.0, random.Random(0))
    found = (case(ok, evidence="interpreted"), case(ok, evidence="measured"), case(ok), case(evidence="compiled"))
    assert kinds(Results("h200", "test", cases=found)) == ["projected", "interpreted"], "compiled without a result says nothing"
