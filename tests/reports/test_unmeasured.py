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


def test_where_every_kernel_failed_the_page_says_that_it_was_tried() -> None:
    tried = (("dense-triton", "variant"), ("dense-bf16", "baseline"))
    failed = [Result(name, kind, "failed", reason="an illegal address") for name, kind in tried]
    text = re.sub(r"\s+", " ", Page(render(Results("h200", "a test", cases=(case(*failed, evidence="measured"),)))).text())
    assert "There is no speed-up to tell: no case of a test has both" in text
    assert "what was not has its reason" in text
    assert "an illegal address" in text
    assert "can honestly say" not in text
    assert "not measured here" not in text[: text.index("Summary")]


def test_what_was_done_without_the_gpu_comes_first_where_there_is_nothing_else() -> None:
    ok = golden.result("dense-triton", 5.0, random.Random(0))

    def sections(*found: Case) -> list[str]:
        return [attributes["id"] for attributes in Page(render(Results("h200", "a test", cases=found))).all("h2")][3:]

    alone = sections(case(projection("a", 4.0, "bf16")))
    assert alone[0] == "unmeasured"
    beside = sections(case(projection("a", 4.0, "bf16")), case(ok, golden.result("dense-bf16", 9.0, random.Random(1)), evidence="measured"))
    assert beside.count("unmeasured") == 1
    assert beside.index("unmeasured") > beside.index("cases")
