"""The comparison with compiling and timing one by one: its sample, its arithmetic, and what it says without a device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from autotune import speed, wide
from autotune.command import guarded
from autotune.pool import cores
from autotune.speed import Serial, Trial, told
from kernels import catalogue
from kernels.errors import UsageError
from kernels.gpu import by_name
from kernels.problem import Problem

H200 = by_name("h200")
PROBLEM = Problem("gemm", *speed.SHAPE, speed.TOKENS, speed.SPARSITY)


def test_the_wide_spaces_hold_two_hundred_candidates_and_all_that_are_tuned() -> None:
    counts = {}
    for kernel in wide.kernels_for("gemm"):
        allowed = set(kernel.space.allowed(PROBLEM, H200))
        counts[kernel.name] = len(allowed)
        own = catalogue.find(kernel.name, "gemm")
        if kernel.name in speed.KERNELS:
            assert kernel.space is not own.space
            assert {config for config in own.space.allowed(PROBLEM, H200) if getattr(config, "splits", 1) == 1} <= allowed
    assert sum(min(counts[name], speed.EVALUATIONS) for name in speed.KERNELS) == 200
    assert counts["sparse-wgmma"] <= speed.EVALUATIONS, "every one of them"
    assert wide.kernels_for("layer") == ()
    with pytest.raises(UsageError):
        wide.find("nobody", "gemm")


def trials(folder: Path) -> list[Trial]:
    """A journal with three timed candidates of each kernel and a failed one, read again."""
    file = folder / "runs" / "tune-h200" / "journal.jsonl"
    file.parent.mkdir(parents=True)
    lines = []
    for kernel in speed.KERNELS:
        points = [vars(config) for config in wide.find(kernel, "gemm").space.allowed(PROBLEM, H200)]
        for place, point in enumerate(points[:4]):
            value = {"stage": "timeout", "reason": "hangs"} if place == 3 else 30.0 + place + (kernel == "sparse-mma")
            lines.append(json.dumps({"key": json.dumps([kernel, str(PROBLEM), "hash", {}, "cuda-graph", point]), "value": value}))
        finals = json.dumps(["finals", kernel, str(PROBLEM), "hash", {}, "cuda-graph", points[:2]])
        lines.append(json.dumps({"key": finals, "value": [[1.0]]}))
    file.write_text("\n".join(lines) + "\n")
    return speed.timed("h200", folder)


def test_the_journal_tells_what_was_timed(tmp_path: Path) -> None:
    found = trials(tmp_path)
    assert [(one.task.job.kernel, one.us) for one in found if one.task.job.kernel == "sparse-wgmma"] == [
        ("sparse-wgmma", 30.0), ("sparse-wgmma", 31.0), ("sparse-wgmma", 32.0)
    ]
    assert len(found) == 6
    assert speed.fastest(found).us == 30.0
    assert found[0].task.job.cache == str(tmp_path / "serial")


def test_the_figures(tmp_path: Path) -> None:
    found = trials(tmp_path)
    usage = {"evaluated": 200, "compilers": 15, "seconds": 28.0, "compile_seconds": 12.0 * cores(), "compiled": 198, "device_seconds": 25.0}
    serial = Serial((1.0, 2.0), ((found[0], 30.3), (found[1], 31.0)), (1.0, 1.0))
    text = "\n".join(told(30.0, usage, found, serial))
    assert "300.0 s   (2 done in 3.0 s, 198 extrapolated)" in text
    assert "speed-up                         10.00" in text
    assert "compiling / cores                 12.0 s" in text
    assert "1.3 x the larger                  32.5 s   (pipeline: 1.20 x)" in text
    assert "yes     (their ratio, interleaved: 1.0000 to 1.0000)" in text
    apart = "\n".join(told(30.0, usage, found, Serial((1.0,), ((found[1], 29.0),), (1.03, 1.05))))
    assert "NO     (their ratio, interleaved: 1.0300 to 1.0500)" in apart
    near = "\n".join(told(30.0, usage, found, Serial((1.0,), ((found[1], 29.0),), (1.005, 1.015))))
    assert "yes     (" in near


def test_one_by_one_ends_in_an_error_where_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    found = trials(tmp_path)
    assert guarded("speed", lambda: len(speed.one_by_one(found, 0.0).found)) == 2
    assert "not one candidate could be timed" in capsys.readouterr().err
    assert speed.compare("h200")[-1] == "the pipeline failed with exit code 5"
