"""The panel of the gate's calibration: false alarms, the power curve, and the smallest slowdown that each case lets the gate see."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes

from reports.figures import WIDTH, heading
from reports.load import accepted_path
from reports.panel import Data, Panel, figures, folded, paragraph, table
from reports.provenance import CARD
from reports.svg import MARKERS, SERIES, Figure, draw
from suites.calibration import FOUND, MEASURABLE, Calibration, Noise, calibration_file, read

SHARES = tuple(step / 200 for step in range(1, 31))
"""Slowdowns of the curve: half a per cent to 15."""


def panel(data: Data) -> Panel | None:
    """The calibration that stands beside the committed results of the GPU; None where there is none."""
    return made(calibration_file(accepted_path(data.results.gpu)))


def made(file: Path) -> Panel | None:
    """The panel over a calibration; None without the file. RecordError for one that cannot be read."""
    calibration = read(file)
    if calibration is None or not calibration.noises:
        return None
    noises = calibration.noises
    html = paragraph(
        "The same code measured in fresh processes differs by more than the rounds of one process show: memory lies elsewhere, clocks are "
        "others. That spread, measured case by case, is the gate's limit: a change counts when it is larger than the noise explains, with "
        "the number of cases accounted for (Holm)."
    )
    html += paragraph(told(calibration)) + figures([curve(calibration)]) + _checks(calibration) + _suites(noises) + _every(noises)
    code, card = f"commit {calibration.commit[:12]}, method {calibration.method}", (calibration.uuid or "unknown")[:CARD]
    where = f"Calibrated {calibration.date[:16].replace('T', ' ')} at {code}, card {card}."
    return Panel("gate", "What the gate can tell from noise", "Gate", html + paragraph(where, "note"))


def told(calibration: Calibration) -> str:
    """False alarms and power in a sentence; what is not known is not claimed."""
    checks, sharp = calibration.checks, _measurable(calibration.noises)
    cases = len({noise.key for noise in calibration.noises})
    every = len(calibration.noises)
    said = f"{sharp} of {every} kernels in {cases} cases are measurable: {FOUND:.0%} of slowdowns by {MEASURABLE:.0%} are found."
    if not checks.get("power"):
        return f"{said} Too few processes took part to say how often it cries wolf."
    found = ", ".join(f"{name} in {share:.1%}" for name, share in checks.get("power_measurable", {}).items())
    return (
        f"{said} By resampling {checks['processes']} fresh processes of the same code: false alarms in {checks['false_alarms']:.2%} of the "
        f"comparisons, at most {checks['upper']:.2%}; slowdowns found among the measurable: {found}."
    )


def _measurable(noises: Sequence[Noise]) -> int:
    return sum(noise.visible <= MEASURABLE for noise in noises)


def curve(calibration: Calibration) -> Figure:
    """Which share of the kernels is seen through, by the size of a slowdown; the resampled shares as marks."""
    seen = [sum(noise.visible <= share for noise in calibration.noises) / len(calibration.noises) for share in SHARES]
    marks = [(name, calibration.checks.get(name, {})) for name in ("power", "power_measurable")]
    labels = {"power": "found by resampling", "power_measurable": "of the measurable"}
    title = "Power of the gate"
    points = "; ".join(f"{labels[name]}: {_listed(own)}" for name, own in marks if own)
    ends = ", ".join(f"{share:.0%} {seen[SHARES.index(share)]:.0%}" for share in (0.02, 0.05, 0.1))
    description = f"{title}: share of kernels whose slowdown is found with {FOUND:.0%} chance, by its size: {ends}. {points}"

    def plot(axes: Axes) -> None:
        axes.plot([100 * share for share in SHARES], [100 * share for share in seen], color=SERIES[0], label=f"seen with {FOUND:.0%}")
        for place, (name, own) in enumerate(marks, 1):
            if own:
                x = [float(share.rstrip("%")) for share in own]
                axes.plot(x, [100 * value for value in own.values()], linestyle="none", marker=MARKERS[place], color=SERIES[place],
                          label=labels[name])
        axes.set_ylim(0, 103)
        axes.set_xlim(left=0)
        axes.set_xlabel("slowdown, %")
        axes.set_ylabel("kernels, %")
        heading(axes, title)

    return draw("fig-gate-power", title, description, (WIDTH, 3.3), plot)


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name}: {value:.1%}" for name, value in shares.items())


def _checks(calibration: Calibration) -> Markup:
    """What resampling and the real injections showed."""
    checks = calibration.checks
    rows: list[tuple[object, ...]] = []
    if checks.get("power"):
        rows += [
            ("False alarms per comparison", f"{checks['false_alarms']:.2%}, at most {checks['upper']:.2%} (95 %)"),
            ("Runs of the same code with any alarm", f"{checks['runs_with_alarm']:.1%}"),
            ("Slowdowns found, all", _listed(checks["power"])),
            ("Slowdowns found, measurable", _listed(checks["power_measurable"])),
            ("Intervals that cover the other run", f"{checks['agreement']:.1%}, stated {checks.get('stated', 0.95):.0%}"),
        ]
    injected = checks.get("injections", {})
    if injected:
        rows.append(("Kernels really slowed, called REGRESSED", _caught(injected)))
    shown = table("Checks of the gate", ("Check", "Result"), rows, text=(0, 1)) if rows else Markup("")
    if not injected:
        return shown
    each = table("Injected slowdowns", ("Injected", "Verdict"), list(injected.items()), text=(0, 1))
    return shown + folded("Every injected slowdown", each)


def _caught(injected: Mapping[str, str]) -> str:
    """How many of the real injections were found, by their size, which their labels begin with ("slow5-0 …")."""
    found: dict[str, list[bool]] = {}
    for label, verdict in injected.items():
        size = re.match(r"slow(\d+)", label)
        found.setdefault(f"{size[1]}%" if size else "unknown", []).append(verdict == "REGRESSED")
    return ", ".join(f"{size}: {sum(own)} of {len(own)}" for size, own in sorted(found.items(), key=lambda item: (len(item[0]), item[0])))


def _suites(noises: Sequence[Noise]) -> Markup:
    grouped: dict[str, list[Noise]] = {}
    for noise in noises:
        grouped.setdefault(noise.key.split("/")[0], []).append(noise)
    rows = []
    for suite, own in grouped.items():
        seen, spreads = [noise.visible for noise in own], [noise.spread for noise in own]
        rows.append((
            suite, len(own), f"{statistics.median(spreads):.2%}", f"{max(spreads):.2%}", f"{statistics.median(seen):.1%}",
            f"{max(seen):.1%}", f"{_measurable(own)} of {len(own)}",
        ))
    head = ("Suite", "Kernels", "Spread between processes, median", "Largest", "Smallest slowdown seen, median", "Worst", "Measurable")
    return table("Noise by suite", head, rows)


def _every(noises: Sequence[Noise]) -> Markup:
    ordered = sorted(noises, key=lambda noise: -noise.visible)
    rows = [
        (noise.key, noise.kernel, noise.baseline, f"{noise.us:.1f}", noise.processes, f"{noise.spread:.2%}", f"{noise.visible:.1%}")
        for noise in ordered
    ]
    head = ("Case", "Kernel", "Over", "µs", "Processes", "Spread", "Slowdown seen")
    return folded(f"All {len(rows)} kernels, the noisiest first", table("Noise by case", head, rows, text=(0, 1, 2)))
