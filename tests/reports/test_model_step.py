"""The panel of the model-level step, over records that a test writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kernels.errors import RecordError
from reports import model_step
from reports.compare import Comparer
from reports.load import Results
from reports.panel import Data
from suites.model_record import ModelCase, ModelResult, ModelRun, append
from tests.reports.htmlcheck import Page

CASE = ModelCase(
    "r1", "qwen2.5-3b", 4, 36, 16896, 8192, 2048, 1, "2:4", "bf16", 343_000_000,
    (
        ModelResult("fakequant-bf16-compiled", "baseline", "ok", samples_us=(30e3, 33e3), host_us=(9e3, 9e3), peak_bytes=20_000_000_000,
                    losses=(9.7, 9.1)),
        ModelResult("fakequant-published", "baseline", "failed", "memory", "out of <memory>"),
        ModelResult("bitlinear-compiled", "variant", "ok", samples_us=(25e3, 27.5e3), host_us=(9e3, 9e3), peak_bytes=15_000_000_000,
                    losses=(9.7, 9.11)),
    ),
)  # fmt: skip


def written(folder: Path) -> Path:
    file = folder / "h200.model.jsonlines"
    head = ModelRun("r1", "h200", "2026-01-02T03:04:05", "abcdef0123456789", False, "m/1", {"name": "Card"}, {"torch": "2.11"})
    append(file, head)
    append(file, CASE)
    return file


def test_the_panel_tells_ours_from_theirs(tmp_path: Path) -> None:
    panel = model_step.made(written(tmp_path))
    assert panel is not None
    text = Page(f"<section>{panel.html}</section>").text()
    for part in ("4 of 36 blocks", "343 M parameters", "312,076", "26.2", "1.20× [1.20, 1.20]", "20.0", "15.0", "9.110", "Card, torch 2.11",
                 "2026-01-02", "abcdef0123", "failed: memory: out of"):  # fmt: skip
        assert part in text, part
    assert "<memory>" not in str(panel.html)
    assert "bitlinear-compiled is 1.20× as fast as fakequant-bf16-compiled, the fastest of the others [1.20, 1.20]" in text
    assert "in 15.0 instead of 20.0 GB." in text
    assert [svg["role"] for svg in Page(f"<section>{panel.html}</section>").all("svg")] == ["img"]
    assert "fakequant-bf16-compiled: 260,063" in text
    rows = str(panel.html).split("<tr>")
    assert "bitlinear-compiled" in rows[2], "ours first"


def test_it_stands_beside_committed_results_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_step, "accepted_file", lambda gpu: written(tmp_path / gpu))
    for source, there in (("committed results of h200", True), ("runs/mine", False)):
        results = Results("h200", source)
        assert (model_step.panel(Data(results, Comparer(results))) is not None) is there


def test_without_records_there_is_no_panel(tmp_path: Path) -> None:
    assert model_step.made(tmp_path / "none.jsonlines") is None
    (tmp_path / "bad.jsonlines").write_text("{}\n")
    with pytest.raises(RecordError):
        model_step.made(tmp_path / "bad.jsonlines")


def test_a_case_without_any_time_has_no_ratio(tmp_path: Path) -> None:
    file = written(tmp_path)
    append(file, replace(CASE, results=(CASE.results[1],)))
    panel = model_step.made(file)
    assert panel is not None
    assert "0 variants have a time" in str(panel.html)
    assert "as fast as" not in Page(f"<section>{panel.html}</section>").text()
