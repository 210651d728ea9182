from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from markupsafe import escape

from autotune import landscape as recorded
from autotune import quality, tuned
from kernels.problem import Problem
from kernels.tuned_table import Entry
from reports import landscape
from reports.compare import Comparer
from reports.load import Case, Results
from reports.panel import Data
from tests.reports import golden


def data(gpu: str) -> Data:
    results = Results(gpu, "a test")
    return Data(results, Comparer(results))


def test_the_panel_holds_what_was_replayed_and_tuned() -> None:
    made = landscape.panel(data("h200"))
    assert made is not None
    html = str(made.html)
    assert "2026-11-22" in html
    assert "<svg" in html
    for kernel in {one.kernel for one in recorded.committed() if one.gpu == "h200"}:
        assert f"The landscape of {kernel}" in html
    for kind, way, values in quality.table(quality.read()):
        row = f'<th scope="row">{escape(kind)} candidates</th><td>{escape(str(way))}</td>'
        assert row + "".join(f'<td class="r">{value:.1%}</td>' for value in values) in html.replace(' class="w"', "")


def test_without_data_there_is_no_panel() -> None:
    assert landscape.panel(data("l4")) is None


def test_gains_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kernels.tuned.FOLDER", tmp_path)
    entry = Entry("k", "gemm", 8, 8, 8, "2:4", "bf16", {"n": 1}, 10.0, 20.0, "0")
    stays = replace(entry, tokens=32, config={}, us=20.0)
    alone = replace(stays, kernel="j")
    tuned.write(tmp_path / "h200.json", [entry, replace(entry, tokens=16, default_us=80.0), stays, alone])
    html = str(landscape.gained(results("k", "tuned", "default", "default")))
    assert re.findall(r"[\d.]+×", html) == ["4.00×", "2.00×", "8.00×"]
    assert re.findall(r'<td class="r">(\d+)</td><td class="r">(\d+ of \d+)</td></tr>', html) == [("1", "0 of 0"), ("1", "1 of 3")]
    assert landscape.gained(Results("a100", "a test")) is None


def results(kernel: str, *sources: str) -> Results:
    made = []
    for place, source in enumerate(sources):
        one = golden.result(kernel, 5.0, random.Random(0), config_source=source)
        problem = Problem("gemm", 64, 256, place + 1, golden.S24)
        made.append(Case(golden.case("prefill", "m", "Wo", problem, (), random.Random(0), results=(one,)), problem))
    return Results("h200", "a test", cases=tuple(made))


def test_axes_by_hand() -> None:
    points = ({"n": 64, "k": 1}, {"n": 128, "k": 1}, {"n": 128, "k": 2})
    first = recorded.Landscape("k", "h200", "d", "m", 8, 8, 8, "2:4", points, (10.0, 5.0, 20.0))
    second = replace(first, tokens=16, times=(10.0, 20.0, 40.0))
    html = str(landscape.axes_table([first, second]))
    assert '<b>64</b>: 1.41× <span class="iv">(1 of 2)</span>' in html, "2 and 1 times the optimum"
    assert '<b>128</b>: 1.41× <span class="iv">(1 of 2)</span>' in html, "1 and 2 times"
    assert '<b>1</b>: 1.00× <span class="iv">(2 of 2)</span>' in html
    assert '<b>2</b>: 4.00× <span class="iv">(0 of 2)</span>' in html
    drawn = landscape.shape([first, second])
    assert "half within 2.00×, all within 4.00×" in drawn.description
