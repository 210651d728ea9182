"""What a calibration is worth, as a Markdown table: what is asked of a gate, and what its calibration showed. Needs no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from suites.calibration import ALPHA, CONFIRMED, FOUND, MEASURABLE, Calibration

FALSE_ALARMS = 0.01
"""The most false alarms per case."""
POWER = {"2%": 0.80, "5%": FOUND}
"""What shares of slowdowns have to be found of the cases called measurable."""


def good(checks: Mapping[str, Any]) -> bool:
    """Whether resampling shows what a gate needs. checks: of the calibration, empty where there were too few processes for any."""
    return bool(checks) and checks["false_alarms"] <= FALSE_ALARMS and all(
        checks["power_measurable"][name] >= least for name, least in POWER.items()
    )


def table(made: Calibration) -> list[str]:
    """The lines of the table."""
    lines = ["| | asked | seen |", "|---|---|---|"]
    return lines + [f"| {' | '.join(row)} |" for row in (*_taken(made), *_resampled(made.checks), *_slowed(made.checks))]


def _taken(made: Calibration) -> list[tuple[str, str, str]]:
    sharp = [noise for noise in made.noises if noise.visible <= MEASURABLE]
    cases, measurable = ({noise.key for noise in noises} for noises in (made.noises, sharp))
    processes = min((noise.processes for noise in made.noises), default=0)
    return [
        ("calibrated", "", f"{made.gpu}, {made.date[:10]}, commit {made.commit[:7]}"),
        ("fresh processes; kernels and cases", "5; 20 cases", f"{processes}; {len(made.noises)} kernels in {len(cases)} cases"),
        (f"measurable: {MEASURABLE:.0%} slower is found with {FOUND:.0%}", "", f"{len(sharp)} kernels in {len(measurable)} cases"),
    ]


def _resampled(checks: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    if not checks.get("kernels"):
        return [("resampled", "", "too few processes")]
    upper = f"at most {checks['upper']:.1%} with 95 % confidence, {checks['comparisons']} independent comparisons"
    rows = [
        ("false alarms per kernel and case", f"≤ {FALSE_ALARMS:.0%}", f"{checks['false_alarms']:.2%} ({upper})"),
        ("runs of the same code with any alarm", f"≤ {ALPHA:.0%}", f"{checks['runs_with_alarm']:.1%} of {checks['runs']}"),
    ]
    for name, share in checks["power_measurable"].items():
        asked = f"≥ {POWER[name]:.0%}" if name in POWER else ""
        rows.append((f"{name} slower is found, of the measurable (of all)", asked, f"{share:.1%} ({checks['power'][name]:.1%})"))
    covered = f"{checks['agreement']:.1%}" + (f"; {checks['twins']:.1%}" if "twins" in checks else "")
    return [*rows, (f"intervals that cover the other run's median: of {CONFIRMED} processes; of one", f"{checks['stated']:.0%}", covered)]


def _slowed(checks: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Kernels that were slower for real, by the share they were slowed by."""
    found = Counter((re.split(r"\W", label)[0], verdict == "REGRESSED") for label, verdict in checks.get("injections", {}).items())
    shares = sorted({label for label, _ in found}, key=lambda label: int(label.removeprefix("slow")))
    counts = {label: (found[label, True], found[label, True] + found[label, False]) for label in shares}
    return [
        (f"really {label.removeprefix('slow')}% slower: called REGRESSED", "", f"{right} of {every}")
        for label, (right, every) in counts.items()
    ]
