from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest

from autotune import landscape as recorded
from autotune import tuned
from autotune.landscape import at_share
from reports import landscape
from reports.compare import Comparer
from reports.load import Results
from reports.panel import Data


def data(gpu: str) -> Data:
    results = Results(gpu, "a test")
    return Data(results, Comparer(results))


def test_a_quarter_of_the_evaluations_finds_nearly_the_optimum_and_beats_random() -> None:
    found = {name: landscape.curves(recorded.committed(), *way) for name, way in landscape.WAYS.items()}
    quarter = {name: statistics.median(at_share(curve, 0.25) for curve in own) for name, own in found.items()}
    assert quarter["local, from other shapes' winners"] >= 0.98
    assert quarter["local, from other shapes' winners"] > quarter["random"] + 0.05
    assert all(curve[-1] == 1.0 for own in found.values() for curve in own), "all of the evaluations find the optimum"


def test_the_panel_holds_what_was_replayed_and_tuned() -> None:
    made = landscape.panel(data("h200"))
    assert made is not None
    html = str(made.html)
    assert "2026-11-22" in html
    assert "<svg" in html
    assert f"{len(recorded.committed())} landscapes" in html
    rows = dict(re.findall(r'<th scope="row">([^<]+)</th>.*?<td class="r">([\d.]+)', html))
    assert float(rows["random"]) < float(rows["local, from other shapes&#39; winners"])


def test_without_data_there_is_no_panel() -> None:
    assert landscape.panel(data("l4")) is None


def test_gains_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    entry = tuned.Entry("k", "gemm", 8, 8, 8, "2:4", "bf16", {}, 10.0, 20.0, "0")
    tuned.write(tmp_path / "h200.json", [entry, tuned.Entry("k", "gemm", 8, 8, 16, "2:4", "bf16", {}, 10.0, 80.0, "0")])
    html = str(landscape.gained("h200"))
    assert re.findall(r"[\d.]+×", html) == ["4.00×", "2.00×", "8.00×"]
    assert json.loads((tmp_path / "h200.json").read_text())["schema"] == tuned.SCHEMA
    assert landscape.gained("a100") is None
