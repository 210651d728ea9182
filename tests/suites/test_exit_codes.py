"""Every exit code, from real processes: what a shell, and so CI, sees of a gate and of the commands that measure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.command import INTERRUPTED
from suites import calibrate
from suites.command import GOOD, INCONCLUSIVE, NO_GPU, PRECEDENCE, SLOWER, USAGE, WRONG
from suites.on_gpu import Lab
from suites.record import CaseRecord, read
from suites.store import write_all
from tests.patience import PATIENCE
from tests.suites.fakes import H200, OTHER, SMALL, THEIRS, gemm, lab, measure
from tests.suites.test_refusals import among


def gated(*arguments: object, repository: Path) -> int:
    line = [sys.executable, "-m", "suites.gate", "--gpu", "h200", *map(str, arguments)]
    done = subprocess.run(line, cwd=repository, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("accepted")
    assert measure(out) == 0
    return out / "records.jsonl"


def projected(out: Path) -> None:
    """A run that holds no measurement."""
    assert measure(out) == 0
    file = out / "records.jsonl"
    write_all(file, [replace(own, evidence="projected") if isinstance(own, CaseRecord) else own for own in read(file)])


RUNS: dict[int, Callable[[Path], object]] = {
    GOOD: lambda out: measure(out, lab(seed=5)),
    SLOWER: lambda out: measure(out, lab((gemm("ours", 60.0), THEIRS, OTHER))),
    WRONG: lambda out: measure(out, lab((gemm("ours", 50.0, does="wrong"), THEIRS, OTHER))),
    INCONCLUSIVE: lambda out: measure(out, lab(noise=0.3)),
    NO_GPU: projected,
    USAGE: lambda out: None,
}


@pytest.mark.parametrize("code", RUNS)
def test_the_gate(code: int, accepted: Path, tmp_path: Path, repository: Path) -> None:
    RUNS[code](tmp_path / "run")
    assert gated("--run", tmp_path / "run", "--accepted", accepted, repository=repository) == code


def test_an_interrupt(tmp_path: Path, repository: Path) -> None:
    """While it waits for records that nobody writes."""
    os.mkfifo(tmp_path / "records.jsonl")
    line = [sys.executable, "-m", "suites.gate", "--gpu", "h200", "--run", str(tmp_path / "records.jsonl")]
    process = subprocess.Popen(line, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with open(tmp_path / "records.jsonl", "w", encoding="utf-8"):  # returns when the gate opens the other end
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, error) == (INTERRUPTED, "", "suites.gate: interrupted\n")


def test_they_are_all_here() -> None:
    assert {*RUNS, INTERRUPTED} == set(PRECEDENCE)


@pytest.mark.parametrize(("arguments", "code"), [
    (("suites.run", "--list", "--suite", "prefill", "--quick"), GOOD), (("suites.run", "--suite", "nothing"), USAGE),
    (("suites.calibrate", "--processes", "2"), USAGE), (("suites.calibrate", "--device", "-1"), USAGE),
    (("suites.run", "--require-gpu", "--gpu", "h200"), NO_GPU), (("suites.calibrate", "--gpu", "h200"), NO_GPU),
])
def test_commands_that_measure(arguments: tuple[str, ...], code: int, repository: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=repository, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == bool(code)


def test_a_calibration_of_wrong_numbers(tmp_path: Path) -> None:
    def wrong(process: int, slowdown: float) -> Lab:
        return lab((gemm("ours", 50.0, does="wrong"), THEIRS))

    line = ["--gpu", "h200", *SMALL, "--processes", "6", "--inject", "0", "--out", str(tmp_path / "c"), "--commit", "abc"]
    assert calibrate.main(line, detect=lambda index: H200, laboratory=wrong) == WRONG


def test_a_calibration_beside_another_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def beside(process: int, slowdown: float) -> Lab:
        return among(other_processes=int(process == 4))

    accepted = tmp_path / "h200.jsonl"
    line = ["--gpu", "h200", *SMALL, "--processes", "6", "--inject", "0", "--out", str(tmp_path / "c"), "--commit", "abc",
            "--accepted", str(accepted), "--accept"]
    assert calibrate.main(line, detect=lambda index: H200, laboratory=beside) == INCONCLUSIVE
    assert "cases that a gate would refuse: other-process in 1" in capsys.readouterr().out
    assert not accepted.with_suffix(".calibration.json").exists()
    assert (tmp_path / "c" / "calibration.json").exists()


def test_a_calibration_whose_slowed_kernels_are_not_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def unmoved(process: int, slowdown: float) -> Lab:
        return lab(seed=process, noise=0.001)

    tokens = (*SMALL[:5], *map(str, range(1, 7)), *SMALL[6:])
    line = ["--gpu", "h200", *tokens, "--processes", "9", "--inject", "1", "--out", str(tmp_path / "c"), "--commit", "abc"]
    assert calibrate.main(line, detect=lambda index: H200, laboratory=unmoved) == SLOWER
    assert "injected and not found: slow10 ours, slow5 ours" in capsys.readouterr().out
