"""The panel of the gate's calibration, over small calibrations; without one there is no panel."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels.errors import RecordError
from reports import gate_limits
from suites.calibration import MEASURABLE, Calibration, Noise, write

CHECKS = {
    "processes": 6, "cases": 2, "kernels": 3, "runs": 20, "comparisons": 4, "false_alarms": 0.0025, "upper": 0.0098,
    "runs_with_alarm": 0.01, "measurable": 2, "power": {"2%": 0.5, "5%": 0.8, "10%": 1.0},
    "power_measurable": {"2%": 0.85, "5%": 0.995, "10%": 1.0}, "agreement": 0.96, "stated": 0.95,
    "injections": {"slow5-0 prefill/m/W13/x/hot/interleaved k": "REGRESSED", "slow2-1 decode/<b>/W2 k": "INCONCLUSIVE"},
}


def noise(key: str, visible: float) -> Noise:
    return Noise(key, "k", "dense-bf16", 12.0, 6, 10, visible / 6, visible / 9, visible / 5, 20.0, visible)


def calibration(**changes: object) -> Calibration:
    quiet = (("prefill/m/W13/x/hot/interleaved", 0.3), ("prefill/m/W2/x/hot/interleaved", 0.99))
    noises = (*(noise(key, share * MEASURABLE) for key, share in quiet), noise("decode/<b>/W2", 0.2))
    fields = {"noises": noises, "checks": CHECKS, **changes}
    return Calibration("h200", "GPU-1", "2026-11-22", "0123456789abcdef", "m/1", **fields)  # type: ignore[arg-type]  # fields by name


def shown(path: Path, made: Calibration) -> str:
    write(path, made)
    panel = gate_limits.made(path)
    assert panel is not None
    assert panel.id == "gate"
    return str(panel.html)


def test_the_panel_says_false_alarms_power_and_injections(tmp_path: Path) -> None:
    html = shown(tmp_path / "h200.calibration.json", calibration())
    for words in (
        "2 of 3 kernels in 3 cases are measurable", "false alarms in 0.25% of the comparisons, at most 0.98%", "5% in 99.5%",
        "2%: 50.0%, 5%: 80.0%",
        "2%: 0 of 1, 5%: 1 of 1", "96.0%, stated 95%", "GPU-1", "0123456789ab", "All 3 kernels, the noisiest first",
    ):
        assert words in html
    assert "5% 67%" in html, "the curve: two of three see 5 %"
    assert "<b>" not in html
    assert html.index("decode/&lt;b&gt;/W2") < html.index("prefill/m/W2/x"), "the noisiest first"


def test_too_few_processes_claim_nothing(tmp_path: Path) -> None:
    html = shown(tmp_path / "c.json", calibration(checks={}))
    assert "Too few processes" in html
    assert "REGRESSED" not in html
    assert "false alarms" not in html


def test_no_calibration_no_panel(tmp_path: Path) -> None:
    assert gate_limits.made(tmp_path / "none.json") is None
    empty = tmp_path / "empty.json"
    write(empty, calibration(noises=()))
    assert gate_limits.made(empty) is None
    (tmp_path / "bad.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RecordError, match=r"bad\.json"):
        gate_limits.made(tmp_path / "bad.json")
