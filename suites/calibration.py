"""How noisy a case really is: the spread between fresh processes, per GPU, kernel and case, what a gate can see through it, and its file.

How it is estimated: `suites.spread`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kernels.errors import RecordError
from suites.distributions import student_quantile
from suites.statistics import CONFIDENCE, NORMAL, Estimate
from suites.store import write_text
from suites.validate import misfit

SCHEMA = "tersparse-calibration/1"
ALPHA = 0.05
"""The chance that a run of the same code shows any REGRESSED or IMPROVED at all, over all its cases together (Holm)."""
FOUND = 0.99
"""With this chance a slowdown of a case's `visible` is found."""
MEASURABLE = 0.03
"""A case whose `visible` is at most this is called measurable: as much as the margin that stands where nothing is calibrated."""
EXCLUDED = 0.05
"""A PASS excludes at least a slowdown of this share."""
CONFIRMED = 3
"""Processes from which on a run's own spread keeps one of them, that lies elsewhere, from passing for a change: then `FLOOR` counts."""
FLOOR = 0.005
"""The smallest change that counts at all."""
MARGIN = 0.03
"""The smallest change that counts where nothing is calibrated, the runs are from different cards, or too few processes confirm it."""
LEAST, MOST, MOST_LOGARITHM = 1e-9, 1e9, 50.0
"""Figures of a calibration's file beyond these cannot be judged by."""
FIGURES = ("kernels", "cases", "processes", "runs", "comparisons", "false_alarms", "upper", "runs_with_alarm", "agreement", "stated")
"""What `suites.resampling` shows in one number each."""
BORROWED_QUANTILE = 90
"""A case that was not calibrated is taken to be as noisy as all but the noisiest tenth of those of its suite."""


@dataclass(frozen=True)
class Noise:
    """The spread of one kernel's logarithmic speed-up over one baseline in one case.

    us: the kernel's median time. processes, rounds: it was estimated from. spread: the plain standard deviation between processes.
    within: the part of it that the rounds inside a process explain. sigma, degrees: the strengthened deviation and its degrees of freedom.
    visible: the slowdown that a run of `CONFIRMED` processes finds with the chance `FOUND` against the calibrated ones, in a run of as many
    comparisons as were calibrated. borrowed: not of this case, but of those like it. medians: of each process, logarithmic. noisiest: the
    largest standard error that the rounds of a calibrated process gave its median. fast: only rounds at full clock count, because these
    differed less between the processes. tail: so many standard errors hold the difference of two single processes with the chance
    `CONFIDENCE`, over all pairs of processes and all cases: more than a normal distribution has, as processes have outliers.
    """

    key: str
    kernel: str
    baseline: str
    us: float
    processes: int
    rounds: int
    spread: float
    within: float
    sigma: float
    degrees: float
    visible: float = math.inf
    borrowed: bool = False
    medians: tuple[float, ...] = ()
    noisiest: float = 0.0
    fast: bool = False
    tail: float = NORMAL

    def reference(self) -> Estimate:
        """What the calibrated processes say together; their spread is `sigma` already."""
        error = self.within / math.sqrt(len(self.medians))
        return Estimate(float(np.mean(self.medians)), error, len(self.medians), self.rounds)

    def error(self, now: Estimate, then: Estimate) -> tuple[float, float]:
        """The standard error of the difference of two runs, and its degrees of freedom.

        The variance between processes is the calibrated one pooled with what the processes of both runs show, so that one that lies
        elsewhere widens the error as it moves the mean. Rounds that are fewer, or noisier than in any calibrated process, add to it.
        """
        degrees = self.degrees + now.degrees + then.degrees
        pooled = (self.degrees * self.sigma**2 + now.scatter + then.scatter) / degrees
        variances = []
        for own in (now, then):
            fewer = self.within**2 * max(0.0, self.rounds / own.rounds - 1) / own.processes
            noisier = own.error**2 - self.noisiest**2 / own.processes
            variances.append(pooled / own.processes + max(fewer, noisier, 0.0))
        return math.sqrt(sum(variances)), degrees

    def half_width(self, now: Estimate, then: Estimate) -> float:
        """Of the interval at `CONFIDENCE` around the difference of two runs."""
        error, degrees = self.error(now, then)
        quantile = student_quantile((1 - CONFIDENCE) / 2, degrees)
        return error * (max(quantile, self.tail) if min(now.processes, then.processes) < CONFIRMED else quantile)

    def smallest(self, comparisons: int, now: int, then: int, floor: float = FLOOR) -> float:
        """The slowdown that is found with the chance `FOUND` among so many comparisons; now, then: processes of the two runs."""
        error, degrees = self.sigma * math.sqrt(1 / now + 1 / then), self.degrees + now - 1
        alarm = max(math.log1p(floor), student_quantile(ALPHA / comparisons / now / 2, degrees) * error)
        return math.expm1(min(50.0, alarm + student_quantile(1 - FOUND, degrees) * error))


@dataclass(frozen=True)
class Calibration:
    """The limits of a GPU. uuid: of the card. method, versions, commit, date (and time): of the calibration. checks: by resampling.

    timed: by case, the kernels that took turns: beside others, which heat the device otherwise, a kernel has another speed-up. quick: as
    few rounds as a quick run has.
    """

    gpu: str
    uuid: str | None
    date: str
    commit: str
    method: str
    noises: tuple[Noise, ...]
    versions: Mapping[str, Any] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)
    timed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    quick: bool = False

    def noise(self, key: str, kernel: str, baseline: str) -> Noise | None:
        """Of that pair, else borrowed from the pairs of its suite, or of all suites where it has fewer than five; None without any."""
        found = next((own for own in self.noises if (own.key, own.kernel, own.baseline) == (key, kernel, baseline)), None)
        return found or self._borrowed(key, kernel, baseline)

    def _borrowed(self, key: str, kernel: str, baseline: str) -> Noise | None:
        kin = [own for own in self.noises if own.key.split("/")[0] == key.split("/")[0]]
        kin = kin if len(kin) >= 5 else list(self.noises)
        if not kin:
            return None
        sigma = float(np.percentile([own.sigma for own in kin], BORROWED_QUANTILE))
        within = float(np.percentile([own.within for own in kin], BORROWED_QUANTILE))
        rounds, degrees = min(own.rounds for own in kin), min(own.degrees for own in kin)
        noisiest = max(own.noisiest for own in kin)
        tail = max(own.tail for own in kin)
        return Noise(key, kernel, baseline, 0.0, 0, rounds, sigma, within, sigma, degrees, borrowed=True, noisiest=noisiest, tail=tail)


def calibration_file(accepted: Path) -> Path:
    """The limits that stand beside a file of accepted results."""
    return accepted.with_suffix(".calibration.json")


def write(path: Path, calibration: Calibration) -> None:
    """Write the limits, one noise a line. OutputError where that fails."""
    head = {"schema": SCHEMA, **{name: value for name, value in asdict(calibration).items() if name != "noises"}}
    rows = ",\n".join(f"  {json.dumps(_plain(asdict(noise)))}" for noise in calibration.noises)
    write_text(path, json.dumps(_plain(head), indent=1)[:-2] + f',\n "noises": [\n{rows}\n ]\n}}\n')


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of five digits; what is left at its default is left out."""
    kept = {name: value for name, value in row.items() if value is not False and value != math.inf and value != ()}
    return {name: _short(value) for name, value in kept.items()}


def _short(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(round(own, 6) if isinstance(own, float) else own for own in value)
    return float(f"{value:.5g}") if isinstance(value, float) else value


def read(path: Path) -> Calibration | None:
    """The limits in a file, None where there is none; RecordError for a file that is not of this schema."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("schema", None) != SCHEMA:
            raise RecordError(f"{path}: not a calibration of schema {SCHEMA!r}")
        timed = {key: tuple(names) for key, names in data.get("timed", {}).items()}
        made = Calibration(**{**data, "timed": timed, "noises": tuple(_noise(row) for row in data["noises"])})
        fault = misfit(made) or _checks_fault(made.checks)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordError(f"{path}: not a readable calibration: {error}") from None
    if fault:
        raise RecordError(f"{path}: not a readable calibration: {fault}")
    return made


def _noise(row: Mapping[str, Any]) -> Noise:
    noise = Noise(**{**row, "medians": tuple(row.get("medians", ()))})
    fault = misfit(noise if noise.visible != math.inf else replace(noise, visible=0.0))
    if fault:
        raise ValueError(f"{noise.key}: {fault}")
    logarithms = (noise.spread, noise.within, noise.sigma, noise.noisiest, *map(abs, noise.medians))
    if not (min(noise.us, noise.visible, *logarithms) >= 0 and max(logarithms) <= MOST_LOGARITHM and NORMAL <= noise.tail <= MOST):
        raise ValueError(f"the noise of {noise.key} is made of figures that no measurement gives")
    if min(noise.sigma, noise.degrees, noise.rounds) < LEAST or max(noise.degrees, noise.rounds) > MOST:
        raise ValueError(f"the noise of {noise.key} is not made of positive numbers")
    return noise


def _checks_fault(checks: Mapping[str, Any]) -> str | None:
    """What is wrong with what resampling and injections showed, or None."""
    injections = checks.get("injections", {})
    if not isinstance(injections, dict) or not all(re.match(r"slow\d+\b", label) for label in injections):
        return "checks: injections are verdicts by the share and kernel they slowed"
    if "kernels" not in checks:
        return None
    figures: list[Any] = [checks.get("twins", 0.0), *(checks.get(name) for name in FIGURES)]
    names = []
    for curve in (checks.get("power"), checks.get("power_measurable")):
        if not isinstance(curve, dict) or not {"2%", "5%"} <= set(curve):
            return "checks: power and power_measurable are shares of 2%, 5% and more"
        figures += curve.values()
        names.append(set(curve))
    good = all(isinstance(own, (int, float)) and math.isfinite(own) for own in figures) and names[0] == names[1]
    return None if good else f"checks: {', '.join(FIGURES)} and the shares of both power curves are numbers"
