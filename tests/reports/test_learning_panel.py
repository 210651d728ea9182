"""The panel of the loss curves, over curves that a test writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernels.errors import RecordError
from reports import learning_panel
from reports.compare import Comparer
from reports.load import Results
from reports.panel import Data
from tests.reports.htmlcheck import Page
from tests.reports.test_learning import golden


def written(folder: Path, offset: float = 0.0) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "h200.learning.json"
    file.write_text(json.dumps(golden(offset)))
    return file


def test_the_panel_draws_every_sparsity_and_judges_it(tmp_path: Path) -> None:
    panel = learning_panel.made(written(tmp_path))
    assert panel is not None
    page = Page(f"<html><body>{panel.html}</body></html>")
    assert len(page.all("svg")) == 2
    for part in ("dense-to-2:4", "1.6200", "0.0400", "4.0", "NVIDIA H200", "torch 2.11.0", "steps 30", "agree"):
        assert part in page.text(), part
    assert "differ" not in page.text().replace("differ by no more", "")
    other = learning_panel.made(written(tmp_path / "off", 0.05))
    assert other is not None
    assert "<td>differ</td>" in str(other.html)


def test_it_stands_beside_committed_results_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_panel, "learning_file", lambda gpu: written(tmp_path / gpu))
    for source, there in (("committed results of h200", True), ("runs/mine", False)):
        results = Results("h200", source)
        assert (learning_panel.panel(Data(results, Comparer(results))) is not None) == there


def test_nothing_to_draw_is_no_panel_and_damage_is_told(tmp_path: Path) -> None:
    assert learning_panel.made(tmp_path / "none.json") is None
    file = tmp_path / "h200.learning.json"
    file.write_text("{")
    with pytest.raises(RecordError, match="not readable"):
        learning_panel.made(file)
