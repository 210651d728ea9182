"""What the comparisons of a run say together: Holm's procedure over all of them, and the verdict on each. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from suites.calibration import ALPHA, CONFIRMED, EXCLUDED, FLOOR, Noise
from suites.distributions import student_tail
from suites.statistics import Estimate, Ratio, holm

Verdict = Literal["PASS", "IMPROVED", "REGRESSED", "INCONCLUSIVE", "MISSING", "WRONG", "NEW"]


ATTEMPTS = 4
"""In how many fresh processes `--until-decided` measures a case at most."""


@dataclass(frozen=True)
class Comparison:
    """A calibrated comparison. probability: of a change so large under the same code, two-sided, times the looks that were taken.

    processes: of the two runs. floor: the smallest change that counts. reason: what a regression would be put down to.
    """

    probability: float
    noise: Noise
    processes: tuple[int, int]
    floor: float
    reason: str

    def limit(self, comparisons: int) -> float:
        """The slowdown that a PASS excludes: what can be seen among so many comparisons, but never more than `EXCLUDED`."""
        return max(self.floor, min(EXCLUDED, self.noise.smallest(comparisons, *self.processes, self.floor)))

    def hopeless(self, change: Ratio, comparisons: int) -> bool:
        """Whether even `ATTEMPTS` processes would neither find a change as large as was seen, nor exclude a slowdown if there were none."""
        most = replace(self, processes=(max(ATTEMPTS, self.processes[0]), self.processes[1]))
        now, then = (Estimate(0.0, 0.0, count, self.noise.rounds) for count in most.processes)
        if self.noise.half_width(now, then) <= math.log1p(most.limit(comparisons)):
            return False
        error, degrees = self.noise.error(now, then)
        return 2 * now.processes * comparisons * student_tail(abs(math.log(change.value)) / error, degrees) > ALPHA


@dataclass(frozen=True)
class Judgement:
    """The verdict on one variant in one case, or on a baseline that is missing.

    change: speed-up now over speed-up accepted. test: what it is judged by where the case is calibrated; then `settled` gives the verdict.
    suspect: a change, were it not for the few processes that say so; more of them would decide.
    """

    key: str
    kernel: str
    verdict: Verdict
    detail: str = ""
    change: Ratio | None = None
    test: Comparison | None = None
    suspect: bool = False


def settled(judgements: Sequence[Judgement], comparisons: int = 0) -> list[Judgement]:
    """The final verdicts of all comparisons together, by Holm's procedure. comparisons: that many others stand beside them, at least."""
    tests = [(place, own.test) for place, own in enumerate(judgements) if own.test is not None]
    more = [1.0] * max(0, comparisons - len(tests))
    adjusted = holm([test.probability for _, test in tests] + more)
    final = list(judgements)
    for (place, test), probability in zip(tests, adjusted, strict=False):
        final[place] = _settle(judgements[place], test, probability, len(adjusted))
    return final


def _settle(judgement: Judgement, test: Comparison, probability: float, comparisons: int) -> Judgement:
    change = judgement.change
    assert change is not None
    size = abs(math.log(change.value))
    suspect = probability <= ALPHA and size >= math.log1p(FLOOR) and test.processes[0] < CONFIRMED
    if probability <= ALPHA and size >= math.log1p(test.floor):
        slower = change.value < 1
        found = f"{judgement.detail}; p {probability:.1g}" + (f"; probably {test.reason}" if slower else "")
        return replace(judgement, verdict="REGRESSED" if slower else "IMPROVED", detail=found, suspect=suspect)
    limit = test.limit(comparisons)
    verdict: Verdict = "PASS" if change.low >= 1 / (1 + limit) else "INCONCLUSIVE"
    sees = "excluded" if verdict == "PASS" else "not excluded"
    few = f"; {test.processes[0]} of {CONFIRMED} processes that would confirm a change" if suspect else ""
    return replace(judgement, verdict=verdict, detail=f"{judgement.detail}; slower by {limit:.1%} is {sees}{few}", suspect=suspect)
