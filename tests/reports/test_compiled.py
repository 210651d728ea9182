from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from kernels.problem import Problem
from reports.compare import Comparer
from reports.compiled import SAID, panel
from reports.load import Case, Results
from reports.panel import Data, Panel
from reports.svg import SERIES
from suites.record import Result
from tests.reports import golden
from tests.reports.htmlcheck import Page

FUNCTION: dict[str, Any] = {
    "registers": 173, "spills": 0, "shared_bytes": 49152, "IMMA": 128, "warps": 4,
    "occupancy": {"blocks": 2, "warps": 8, "most_warps": 64, "limit": "registers"},
    "loop": {"instructions": 340, "operations": 1 << 20, "kinds": {"tensor": 136, "integer": 102, "shared": 51, "other": 51},
             "shared_bytes": 24960, "sparse": False, "grouped": False, "number": "int8"},
    "walls_us": {"tensor cores": 40.0, "shared memory": 30.0, "device memory": 7.25},
}
PROBLEM = Problem("gemm", 2560, 6912, 2048, golden.S24)


def result(kernel: str = "sparse-mma", function: dict[str, Any] | None = None, **changes: Any) -> Result:
    made = Result(kernel, "variant", "ok", config={"stages": 3}, compiled={"gemm": FUNCTION if function is None else function},
                  projected_us=40.0, notes={"limit": "tensor cores", "roof_us": 30.0, "serial_us": 77.25})
    return replace(made, **changes)


def shown(*results: Result, evidence: str = "compiled") -> Panel | None:
    record = golden.case("prefill", "bitnet-2b", "W2", PROBLEM, (), random.Random(1), evidence=evidence, results=results)
    found = Results("a100", "here", cases=(Case(record, PROBLEM),))
    return panel(Data(found, Comparer(found)))


def page(*results: Result) -> Page:
    made = shown(*results)
    assert made is not None
    assert SAID in made.heading
    return Page(f"<main>{made.html}</main>")


def cells(found: Page) -> list[str]:
    return [text for tag, text in found.texts if tag in ("td", "th")]


def test_nothing_compiled_no_panel() -> None:
    assert shown(result(), evidence="measured") is None


def test_machine_code_and_prediction() -> None:
    text = cells(page(result()))
    mix = "340: products 40 %, integer 30 %, shared memory 15 %, other 15 %"
    for said in ("gemm", "173", "48.0", "8 of 64, by registers", mix, "96", "stages=3"):
        assert said in text, said
    for said in ("tensor cores", "40.0", "77.2", "30.0", "39 to 75 %", "tensor cores=40.0 shared memory=30.0 device memory=7.2"):
        assert said in text, said


def test_the_figure_says_what_it_is() -> None:
    found = page(result())
    (figure,) = found.all("svg")
    assert figure["role"] == "img"
    (title,) = [text for tag, text in found.texts if tag == "title"]
    assert SAID in title
    (told,) = [text for tag, text in found.texts if tag == "desc"]
    assert "products 40 %" in told
    assert len(SERIES) >= 6


def test_equal_machine_code_is_shown_once_with_all_its_kernels() -> None:
    same, other = {**FUNCTION, "walls_us": {"issue": 3.0}}, {**FUNCTION, "registers": 255}
    found = page(result(), result("exact-triton", same), result("other", other))
    text = cells(found)
    assert text.count("173") == 1
    assert text.count("255") == 1
    assert "sparse-mma gemm, exact-triton gemm" in text


def test_without_products_there_is_no_prediction() -> None:
    function = {name: value for name, value in FUNCTION.items() if name not in ("loop", "walls_us")}
    found = page(result("two-pass", function, projected_us=None, notes={}))
    assert "no products to count" in cells(found)
    assert not found.all("svg")
    assert "Predicted" not in found.text()


def test_failures_and_older_records_are_told() -> None:
    failed = result("broken", {}, status="failed", stage="compile", reason="needs 200000 bytes", compiled={})
    older = result("dense-triton", compiled={"gemm registers": 168}, projected_us=None, notes={})
    text = cells(page(failed, older))
    assert "failed: compile: needs 200000 bytes" in text
    assert "gemm registers=168" in text


@pytest.mark.parametrize("text", ["<b>x</b>"])
def test_text_stays_text(text: str) -> None:
    made = shown(result(text, FUNCTION, notes={"limit": text, "roof_us": 1.0, "serial_us": 2.0}, config={text: text}))
    assert made is not None
    assert text not in made.html
    assert "&lt;b&gt;x&lt;/b&gt;" in made.html
