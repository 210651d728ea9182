"""Loss curves: read and refused, judged by the spread of seeds, drawn."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from kernels.errors import RecordError
from reports.learning import SCHEMA, figures, load, main, parse, verdicts
from tests.reports.htmlcheck import Page


def golden(offset: float = 0.0, seeds: int = 3) -> dict[str, Any]:
    runs = [
        {"method": method, "sparsity": sparsity, "seed": seed, "steps": [10, 20, 30], "training": [3.0, 2.0, 1.5], "seconds": 4.0,
         "validation": [3.1, 2.1, 1.6 + 0.02 * seed + (offset if method == "ours" else 0.0)]}
        for sparsity in ("2:4", "dense-to-2:4") for method in ("fake-quant", "ours") for seed in range(seeds)
    ]  # fmt: skip
    return {"schema": SCHEMA, "device": "NVIDIA H200", "torch": "2.11.0", "date": "2026-11-22", "smoke": False, "settings": {"steps": 30},
            "seconds": 48.0, "runs": runs}


def test_the_spread_of_seeds_is_the_measure() -> None:
    near, far = (verdicts(parse(golden(offset))) for offset in (0.039, 0.041))
    assert [(verdict.sparsity, verdict.agrees, verdict.seeds) for verdict in near] == [("2:4", True, 3), ("dense-to-2:4", True, 3)]
    assert not any(verdict.agrees for verdict in far)
    assert near[0].spread == pytest.approx(0.04)
    assert "ours 1.6590, fake-quant 1.6200, 3 seeds" in str(near[0])
    (alone, _) = verdicts(parse(golden(seeds=1)))
    assert not alone.agrees
    assert "no spread" in str(alone)


def test_only_seeds_that_both_have_are_compared() -> None:
    data = golden()
    data["runs"] = [run for run in data["runs"] if not (run["method"] == "ours" and run["seed"] == 2)]
    assert {verdict.seeds for verdict in verdicts(parse(data))} == {2}
    data["runs"] = [run for run in data["runs"] if run["method"] == "ours"]
    assert verdicts(parse(data)) == ()
    assert len(figures(parse(data))) == 2


def test_figures_say_what_they_show() -> None:
    drawn = figures(parse(golden()))
    assert [figure.id for figure in drawn] == ["learning-2-4", "learning-dense-to-2-4"]
    for figure in drawn:
        assert len(Page(f"<html><body>{figure.svg}</body></html>").all("svg")) == 1
        assert "agree" in figure.description
        assert "NVIDIA H200" in figure.title
    assert drawn[0].svg == figures(parse(golden()))[0].svg, "the same on every build"


def test_the_command_judges_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "learning.json"
    file.write_text(json.dumps(golden()))
    assert main([str(file), "--out", str(tmp_path / "curves")]) == 0
    drawn = [tmp_path / "curves" / f"learning-{sparsity}.svg" for sparsity in ("2-4", "dense-to-2-4")]
    said = capsys.readouterr().out.splitlines()
    assert said[2:] == [str(path) for path in drawn]
    assert all("agree" in line for line in said[:2])
    assert all(path.read_text().startswith("<svg") for path in drawn)
    assert main([str(tmp_path / "none.json")]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other/1"}, "not learning curves"),
        ({"runs": [{"method": "ours"}]}, "damaged: KeyError"),
        ({"runs": 3}, "damaged: TypeError"),
        ({"seconds": "long"}, "damaged: ValueError"),
    ],
)
def test_foreign_and_damaged_files_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "curves.json"
    path.write_text(json.dumps({**golden(), **change}))
    with pytest.raises(RecordError, match=message):
        load(path)


def test_curves_must_fit_their_steps(tmp_path: Path) -> None:
    data = copy.deepcopy(golden())
    data["runs"][4]["validation"].pop()
    with pytest.raises(RecordError, match=r"ours 2:4 seed 1: 3 steps, 3 and 2 losses"):
        parse(data)
    with pytest.raises(RecordError, match="not readable"):
        load(tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text('{"schema"')
    with pytest.raises(RecordError, match="not readable"):
        load(tmp_path / "cut.json")
