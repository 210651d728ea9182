"""The file of a calibration: read as it was written, and damage is one line that names it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kernels.errors import RecordError
from suites import gate
from suites.calibration import Calibration, Noise, read, write
from tests.suites.fakes import measure

CHECKS = {
    "kernels": 1, "cases": 1, "processes": 9, "runs": 84, "comparisons": 3, "false_alarms": 0.0, "upper": 0.6, "runs_with_alarm": 0.0,
    "agreement": 0.95, "stated": 0.95, "twins": 0.95, "power": {"2%": 1.0, "5%": 1.0}, "power_measurable": {"2%": 1.0, "5%": 1.0},
    "injections": {"slow5 k ours": "REGRESSED"},
}
NOISE = Noise("prefill/k", "ours", "theirs", 50.0, 9, 12, 0.002, 0.001, 0.002, 20.0, 0.01, medians=(0.7, 0.701), noisiest=0.002, tail=2.5)
GOOD = Calibration("h200", "card", "2026-01-01", "abc", "m/1", (NOISE,), checks=CHECKS, timed={"prefill/k": ("ours", "theirs")})


def damaged(path: Path, place: Sequence[Any], value: object) -> Path:
    """The good file with another value there."""
    write(path, GOOD)
    data = json.loads(path.read_text())
    inner = data
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(data))
    return path


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "c.json", GOOD)
    assert read(tmp_path / "c.json") == GOOD
    bare = Calibration("h200", None, "2026-01-01", "abc", "m/1", (Noise("k", "a", "b", 1.0, 3, 5, 0.1, 0.1, 0.1, 2.0, tail=2.0),))
    write(tmp_path / "c.json", bare)
    assert read(tmp_path / "c.json") == bare
    assert read(tmp_path / "none.json") is None


@pytest.mark.parametrize(("place", "value", "says"), [
    (("schema",), "tersparse-calibration/2", "not a calibration of schema 'tersparse-calibration/1'"),
    (("date",), None, "date None; allowed: str"),
    (("timed",), None, "not a readable calibration"),
    (("timed", "prefill/k"), [1], "timed"),
    (("noises", 0, "sigma"), 0.0, "prefill/k is not made of positive numbers"),
    (("noises", 0, "sigma"), 1e308, "prefill/k is made of figures that no measurement gives"),
    (("noises", 0, "sigma"), float("nan"), "prefill/k: sigma nan; allowed: float"),
    (("noises", 0, "degrees"), 1e-320, "prefill/k is not made of positive numbers"),
    (("noises", 0, "rounds"), "12", "prefill/k: rounds '12'; allowed: int"),
    (("noises", 0, "tail"), 0.0, "prefill/k is made of figures"),
    (("noises", 0, "medians"), [0.7, None], "prefill/k: medians"),
    (("noises", 0, "baseline"), [], "prefill/k: baseline"),
    (("checks", "power"), {}, "checks: power and power_measurable are shares of 2%, 5%"),
    (("checks", "power", "10%"), 1.0, "checks: .* the shares of both power curves are numbers"),
    (("checks", "upper"), None, "checks: .*upper.* are numbers"),
    (("checks", "injections"), {"fast": "PASS"}, "checks: injections"),
])
def test_damage_is_named(place: Sequence[Any], value: object, says: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=says) as caught:
        read(damaged(tmp_path / "c.json", place, value))
    assert "\n" not in str(caught.value)


def test_the_gate_takes_no_named_calibration_for_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt name must not make a gate of 3 % for every case; where nothing was accepted, the gate says so."""
    assert measure(tmp_path / "run") == 0
    line = ["--gpu", "h200", "--run", str(tmp_path / "run"), "--accepted", str(tmp_path / "none.jsonl")]
    capsys.readouterr()
    assert gate.main(line) == 0
    assert f"{tmp_path / 'none.jsonl'} is not there: nothing was compared, every result is NEW" in capsys.readouterr().out
    assert gate.main([*line, "--calibration", str(tmp_path / "typo.json")]) == 2
    assert capsys.readouterr().err == f"suites.gate: --calibration {tmp_path / 'typo.json'}: no such file; suites.calibrate writes one\n"
    assert gate.main([*line, "--calibration", str(damaged(tmp_path / "c.json", ("date",), None))]) == 2
