"""Calibration from its command line on a fake clock: fresh processes that differ, limits, what the gate then sees; and its statistics."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from kernels.gpu import Gpu
from suites import calibrate, calibration, gate, resampling, session
from suites.calibration_pairs import Pair, Seen
from suites.on_gpu import Lab
from suites.record import CaseRecord, read
from suites.session import joined
from suites.spread import noises_of
from suites.statistics import Estimate, holm
from suites.store import write_all
from tests.suites.fakes import H200, gemm, lab, measure

CASES = ("--suite", "prefill", "--shape", "16x32", "16x64", "--tokens", *map(str, range(1, 7)), "--sparsity", "2:4")
SPREAD = 0.001
"""Of the fake processes: a standard deviation of the kernel's time."""


def laboratory(process: int, slowdown: float, spread: float = SPREAD) -> Lab:
    offset = math.exp(float(np.random.default_rng(process).normal(0, spread)))
    kernels = (gemm("ours", 50.0 * offset * (1 + slowdown)), gemm("theirs", 100.0, "baseline"))
    return lab(kernels, noise=0.002, seed=1000 + process)


def calibrated(out: Path, *more: str, found: Gpu | None = H200) -> int:
    line = ["--gpu", "h200", *CASES, "--commit", "abc", "--out", str(out), "--accepted", str(out / "accepted.jsonl"), *more]
    return calibrate.main(line, detect=lambda index: found, laboratory=laboratory)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration all of whose processes begin within one second, as on a fast machine: the gate still knows which came first."""
    out, start, steps = tmp_path_factory.mktemp("calibration"), datetime(2026, 1, 1, tzinfo=timezone.utc), itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "now", lambda: start + timedelta(microseconds=next(steps)))
        assert calibrated(out, "--processes", "9", "--accept") == 0
    return out


def test_a_calibration_from_end_to_end(done: Path) -> None:
    limits = calibration.read(done / "accepted.calibration.json")
    assert limits is not None
    assert limits == calibration.read(done / "calibration.json")
    assert (limits.gpu, limits.commit, len(limits.noises)) == ("h200", "abc", 12)
    assert {(own.kernel, own.baseline, own.processes, own.rounds) for own in limits.noises} == {("ours", "theirs", 9, 12)}
    assert 0.3 * SPREAD < limits.noises[0].sigma < 4 * SPREAD
    checks = limits.checks
    assert (checks["processes"], checks["cases"], checks["kernels"], checks["measurable"]) == (9, 12, 12, 12)
    assert (checks["runs"], checks["comparisons"]) == (84, 36), "three of nine processes; three runs that share none, of 12 cases"
    assert checks["false_alarms"] <= 0.01 < checks["upper"]
    assert checks["power"]["5%"] >= 0.99
    assert checks["power"]["2%"] >= 0.8
    assert checks["agreement"] > 0.85
    assert {label.split()[0] for label in checks["injections"]} == {"slow2", "slow5", "slow10"}
    assert list(checks["injections"].values()) == ["REGRESSED"] * 9
    runs = {record.run for record in read(done / "records.jsonl") if isinstance(record, CaseRecord)}
    assert {run.partition("/")[2] for run in runs} >= {f"p{number}" for number in range(6)}


def test_the_gate_judges_by_the_limits(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted = tmp_path / "accepted.jsonl"
    accepted.with_suffix(".calibration.json").write_text((done / "calibration.json").read_text())
    line = ["--suite", "prefill", "--shape", "16x32", "--tokens", "4", "--sparsity", "2:4"]
    several(tmp_path / "good", 0.0, *line)
    assert gate.main(["--gpu", "h200", "--run", str(tmp_path / "good"), "--accepted", str(accepted), "--accept"]) == 0
    for slowdown, code, says in ((0.0, 0, "PASS 1"), (0.02, 1, "REGRESSED"), (0.05, 1, "slower in cycles"), (-0.05, 0, "IMPROVED")):
        run = tmp_path / f"run{slowdown}"
        several(run, slowdown, *line)
        assert gate.main(["--gpu", "h200", "--run", str(run), "--accepted", str(accepted)]) == code
        out = capsys.readouterr().out
        assert says in out
        assert "1 calibrated comparisons (0 with borrowed limits, 0 that may miss 5% slower)" in out
        assert f"{int(slowdown == 0.0)} of 1 intervals include no change" in out


def several(run: Path, slowdown: float, *line: str) -> None:
    """A run of three fresh processes, in one file."""
    for number in range(3):
        assert measure(run / str(number), laboratory(30 + number, slowdown), *line) == 0
    records = [list(read(run / str(number))) for number in range(3)]
    cases = [record for own in records for record in own if isinstance(record, CaseRecord)]
    together = joined(joined(cases[0], cases[1]), cases[2])
    write_all(run / "records.jsonl", [*(own for own in records[0] if not isinstance(own, CaseRecord)), together])


def test_a_budget_ends_it_and_resume_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrated(tmp_path / "c", "--processes", "6", "--budget", "0.001s", "--inject", "1") == 4
    assert "go on with" in capsys.readouterr().out
    assert calibrated(tmp_path / "c", "--processes", "6", "--resume", "--inject", "1") == 0
    assert calibrated(tmp_path / "c", "--processes", "6") == 2
    assert "add --resume" in capsys.readouterr().err
    first = (tmp_path / "c" / "records.jsonl").read_text()
    assert calibrated(tmp_path / "c", "--processes", "6", "--resume", "--inject", "1") == 0
    assert (tmp_path / "c" / "records.jsonl").read_text() == first, "nothing was left to measure"


@pytest.mark.parametrize(("arguments", "found", "code", "says"), [
    (("--processes", "5"), H200, 2, "at least 6"), (("--cases", "-1"), H200, 2, "0 and up"),
    (("--budget", "soon"), H200, 2, "unknown budget"),
    ((), None, 5, "a GPU is needed"), ((), replace(H200, name="a100"), 2, "h200"),
])
def test_bad_usage(
    tmp_path: Path, arguments: tuple[str, ...], found: Gpu | None, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrated(tmp_path / "c", *arguments, found=found) == code
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_kernel_that_none_of_the_chosen_cases_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is known to the cases that were chosen from."""
    rare = replace(gemm("rare", 40.0), unavailable=lambda problem, gpu: "four tokens only" if problem.tokens != 4 else None)

    def with_rare(process: int, slowdown: float) -> Lab:
        return replace(laboratory(process, slowdown), kernels=(*laboratory(process, slowdown).kernels, rare))

    line = ["--gpu", "h200", *CASES, "--cases", "2", "--commit", "abc", "--processes", "6", "--inject", "0", "--out", str(tmp_path / "c")]
    kernels = ("--kernel", "ours", "theirs", "rare")
    assert calibrate.main([*line, *kernels], detect=lambda index: H200, laboratory=with_rare) in (0, 4)
    assert "p5: 2 cases" in capsys.readouterr().out
    assert calibrate.main([*line, "--kernel", "other"], detect=lambda index: H200, laboratory=with_rare) == 2


def test_what_the_limits_are_worth(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a table, from the folder of a calibration and from what the gate takes; without a GPU."""
    assert calibrated(done, "--show", found=None) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| | asked | seen |"
    rows = {cells[0]: cells[1:] for line in lines[2:] for cells in [[cell.strip() for cell in line.strip("|").split("|")]]}
    assert rows["fresh processes; kernels and cases"] == ["5; 20 cases", "9; 12 kernels in 12 cases"]
    assert rows["false alarms per kernel and case"][1].endswith("with 95 % confidence, 36 independent comparisons)")
    assert [rows[f"really {share} slower: called REGRESSED"][1] for share in ("2%", "5%", "10%")] == ["3 of 3"] * 3
    assert rows["5% slower is found, of the measurable (of all)"][0] == "≥ 99%"
    line = ["--gpu", "h200", "--show", "--accepted"]
    assert calibrate.main([*line, str(done / "accepted.jsonl")], detect=lambda index: None) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert calibrate.main([*line, str(tmp_path / "none.jsonl")], detect=lambda index: None) == 2
    assert "no calibration there" in capsys.readouterr().err


def test_limits_of_what_was_measured_before_the_end(tmp_path: Path) -> None:
    """A calibration that was cut off gives its limits by --resume with nothing left of the budget."""
    assert calibrated(tmp_path / "c", "--processes", "7", "--inject", "0") == 0
    kept = [own for own in read(tmp_path / "c" / "records.jsonl") if not str(getattr(own, "run", getattr(own, "id", ""))).endswith("/p6")]
    write_all(tmp_path / "c" / "records.jsonl", kept)
    (tmp_path / "c" / "calibration.json").unlink()
    assert calibrated(tmp_path / "c", "--processes", "7", "--inject", "0", "--budget", "0s", "--resume") == 0
    limits = calibration.read(tmp_path / "c" / "calibration.json")
    assert limits is not None
    assert {noise.processes for noise in limits.noises} == {6}
    assert list(read(tmp_path / "c" / "records.jsonl")) == kept, "nothing was measured"
    assert calibrated(tmp_path / "c", "--processes", "7", "--inject", "0", "--resume") == 0
    limits = calibration.read(tmp_path / "c" / "calibration.json")
    assert limits is not None
    assert {noise.processes for noise in limits.noises} == {7}


@pytest.mark.parametrize("text", ["nonsense", '{"schema": "other/1"}', '{"schema": "tersparse-calibration/1", "noises": [{"key": "k"}]}'])
def test_limits_that_cannot_be_read(done: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.json").write_text(text)
    line = ["--gpu", "h200", "--run", str(done), "--accepted", str(tmp_path / "none.jsonl"), "--calibration", str(tmp_path / "bad.json")]
    assert gate.main(line) == 2
    assert "bad.json" in capsys.readouterr().err


def test_limits_of_another_gpu(done: Path, tmp_path: Path) -> None:
    text = json.loads((done / "calibration.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps({**text, "gpu": "a100"}))
    line = ["--gpu", "h200", "--run", str(done), "--accepted", str(tmp_path / "none.jsonl"), "--calibration", str(tmp_path / "other.json")]
    assert gate.main(line) == 2


def pairs(count: int, processes: int, between: float, within: float = 0.004) -> list[Pair]:
    random = np.random.default_rng(3)
    found = []
    for number in range(count):
        logs = tuple(random.normal(random.normal(0.5, between), within, 16) for _ in range(processes))
        seen = Seen.of(logs)
        found.append(Pair(f"prefill/{number}", "ours", "theirs", 20.0, (16,) * processes, seen, seen))
    return found


def test_resampling_finds_the_stated_rates() -> None:
    made = pairs(24, 12, 0.008)
    checks = resampling.check(made, noises_of(made))
    assert checks is not None
    assert (checks.runs, checks.comparisons) == (220, 24 * 4)
    assert checks.false_alarms < 0.006, "a chance of 5 % for any of 24 is 0.2 % for each"
    assert checks.runs_with_alarm < 0.12
    assert 0.92 < checks.agreement < 0.985
    assert checks.power["2%"] < checks.power["5%"] <= checks.power["10%"]
    assert checks.power_measurable["5%"] >= 0.99


@pytest.mark.parametrize("degrees", [1.5, 2.5, 50.0])
def test_intervals_of_single_processes_hold_what_they_state(degrees: float) -> None:
    """Whatever the tails: two runs of one process each agree as often as they say, where a normal distribution would have them disagree."""
    random, made = np.random.default_rng(5), []
    for number in range(40):
        medians = tuple(0.5 + 0.002 * random.standard_t(degrees, 12))
        seen = Seen(medians, (0.0005,) * 12)
        made.append(Pair(f"prefill/{number}", "ours", "theirs", 20.0, (16,) * 12, seen, seen))
    noises = noises_of(made)
    checks = resampling.check(made, noises, runs=60)
    assert checks is not None
    assert 0.935 < checks.twins < 0.985
    assert len({noise.tail for noise in noises}) == 1
    assert (noises[0].tail > 2.5) == (degrees < 3)
    one, three = Estimate(0.5, 0.0, 1, 16), Estimate(0.5, 0.0, 3, 16, 0.0, 2)
    widths = [noises[0].half_width(run, run) / noises[0].error(run, run)[0] for run in (one, three)]
    assert widths[0] == pytest.approx(noises[0].tail, rel=0.1) or degrees > 3
    assert widths[1] < 2.2, "three processes show their own spread"


def test_a_noisy_case_is_not_called_measurable() -> None:
    noisy = noises_of(pairs(24, 7, 0.03))
    assert not [noise for noise in noisy if noise.visible <= calibration.MEASURABLE]
    assert noises_of([]) == ()


def test_few_processes_say_nothing() -> None:
    made = pairs(4, 4, 0.002)
    assert resampling.check(made, noises_of(made)) is None


def test_the_spread_of_all_strengthens_each() -> None:
    noises = noises_of(pairs(40, 5, 0.002))
    plain, strengthened = np.std([noise.spread for noise in noises]), np.std([noise.sigma for noise in noises])
    assert strengthened < 0.7 * plain
    assert all(noise.degrees > 4 for noise in noises)


def test_an_uncalibrated_case_borrows_from_its_suite() -> None:
    noises = noises_of(pairs(24, 5, 0.002))
    limits = calibration.Calibration("h200", None, "2026-01-01", "abc", "m/1", noises)
    own, borrowed = limits.noise("prefill/3", "ours", "theirs"), limits.noise("prefill/x", "ours", "theirs")
    assert own is not None
    assert borrowed is not None
    assert (own.borrowed, borrowed.borrowed) == (False, True)
    assert borrowed.sigma >= np.median([noise.sigma for noise in noises])
    assert calibration.Calibration("h200", None, "", "", "", ()).noise("prefill/3", "ours", "theirs") is None


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
