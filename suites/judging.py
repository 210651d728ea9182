"""The verdict on a case: what can be believed, what changed against the accepted record, and whether that is beyond the noise. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kernels.gpu import Gpu
from suites.calibration import CONFIRMED, FLOOR, MARGIN, Calibration, Noise
from suites.calibration_pairs import steadiest
from suites.case import asked
from suites.distributions import student_tail
from suites.quality import NOISE, case_refusals, headline, noise
from suites.reasons import Sides, other_card, probable
from suites.record import CaseRecord, Result, RunRecord
from suites.refusals import AFTER_TIMING, result_refusals
from suites.settling import Comparison, Judgement, Verdict
from suites.statistics import Estimate, Ratio, estimate, process_logs, speedup, time_us


@dataclass(frozen=True)
class Judge:
    """What judging needs besides the two records. roofs: measured, by name. limits: the GPU's. heads: of the runs, by id."""

    gpu: Gpu
    roofs: Mapping[str, float] = field(default_factory=dict)
    limits: Calibration | None = None
    heads: Mapping[str, RunRecord] = field(default_factory=dict)


def judge_case(now: CaseRecord, then: CaseRecord | None, judge: Judge, only: Sequence[str] = ()) -> list[Judgement]:
    """The verdicts on one measured case: one per variant, and one per baseline that is wrong, missing or refused; not settled yet."""
    found = []
    for result in now.results:
        before = then.result(result.kernel) if then else None
        verdict = _doubt(now, result, before, judge)
        if verdict is None and result.kind == "variant":
            verdict = _compare(now, then, result, before, judge)
        if verdict is not None:
            found.append(verdict)
    known = {result.kernel for result in now.results}
    for result in then.results if then else ():
        if result.status == "ok" and result.kernel not in known and asked(result.kernel, only, now.suite):
            found.append(Judgement(now.key, result.kernel, "MISSING", "accepted, but not in this run"))
    return found


def _doubt(now: CaseRecord, result: Result, before: Result | None, judge: Judge) -> Judgement | None:
    """Why a result cannot be compared at all, or None."""
    def verdict(kind: Verdict, detail: str | None) -> Judgement:
        return Judgement(now.key, result.kernel, kind, detail or "")

    if result.status == "wrong":
        late = (result.reason or "").startswith(AFTER_TIMING)
        return verdict("WRONG", f"wrong-after-timing: {result.reason}" if late else result.reason)
    if result.status != "ok":
        if (before is not None and before.status == "ok") or result.status == "failed":
            return verdict("MISSING", f"{result.stage}: {result.reason}")
        return None
    if time_us(result) is None:
        return verdict("MISSING", "measured, but it holds no samples")
    refused = result_refusals(now, result, judge.gpu, judge.roofs)
    return verdict("INCONCLUSIVE", f"impossible: {refused[0]}") if refused else None


def _compare(now: CaseRecord, then: CaseRecord | None, result: Result, before: Result | None, judge: Judge) -> Judgement | None:
    if result.status != "ok":
        return None
    refused = case_refusals(now)
    if refused:
        return Judgement(now.key, result.kernel, "INCONCLUSIVE", str(refused[0]))
    if then is None or before is None or before.status != "ok":
        return _new(now, result)
    limits = judge.limits if now.state == "interleaved" else None
    pair = _common(now, then, result.kernel, limits)
    if pair is None:
        return Judgement(now.key, result.kernel, "MISSING", "no baseline that both runs measured")
    sides = Sides(now, then, (result, before), pair, judge.heads)
    noise_of = limits.noise(now.key, result.kernel, pair[0].kernel) if limits else None
    if limits is None or noise_of is None:
        return _plain(sides)
    if _recalibrated(sides, limits, noise_of):
        card = judge.heads[now.run].device.get("uuid") if now.run in judge.heads else None
        return _calibrated(sides, noise_of, noise_of.reference(), len({card, limits.uuid} - {None}) > 1)
    return _calibrated(sides, noise_of, None, other_card(sides))


def _recalibrated(sides: Sides, limits: Calibration, noise_of: Noise) -> bool:
    """Whether the calibrated processes stand for what was accepted: they are newer, and timed the kernels that this run timed."""
    head = sides.head(sides.then)
    timed = {result.kernel for result in sides.now.results if time_us(result) is not None}
    alike = quick(sides.head(sides.now)) == limits.quick and timed == set(limits.timed.get(sides.now.key, ()))
    return alike and bool(noise_of.medians) and head is not None and limits.date > head.started


def quick(head: RunRecord | None) -> bool:
    """Whether a run took as few rounds as `--quick` asks for: it may end before the device reaches its power cap, another run will not."""
    return head is not None and "--quick" in head.arguments


def unlike(sides: Sides) -> bool:
    """Whether one of the two runs was quick: then only rounds at full clock, which both have, compare like with like."""
    return sides.now.state == "interleaved" and quick(sides.head(sides.now)) != quick(sides.head(sides.then))


def _plain(sides: Sides) -> Judgement:
    """Without a calibration: the intervals of the two runs against `MARGIN`."""
    result, before = sides.ours
    ours, theirs = (speedup(*pair, fast=unlike(sides)) for pair in ((result, sides.theirs[0]), (before, sides.theirs[1])))
    if ours is None or theirs is None:
        return Judgement(sides.now.key, result.kernel, "MISSING", "no paired samples")
    change = ratio_of(ours, theirs)
    verdict = verdict_of(change)
    detail = _detail(ours.value, theirs.value, sides.theirs[0].kernel, change) + "; not calibrated"
    if verdict == "REGRESSED":
        detail += f"; probably {probable(sides)}"
    return Judgement(sides.now.key, result.kernel, verdict, detail, change)


def _calibrated(sides: Sides, noise_of: Noise, reference: Estimate | None, elsewhere: bool) -> Judgement:
    """By the calibrated noise. reference: the calibrated processes, where newer than what was accepted. elsewhere: on two cards."""
    result, before = sides.ours
    fast = noise_of.fast or (reference is None and unlike(sides))
    now = _estimate(sides.now, result, sides.theirs[0], fast)
    then = reference or _estimate(sides.then, before, sides.theirs[1], fast)
    if now is None or then is None:
        return Judgement(sides.now.key, result.kernel, "MISSING", "no paired samples")
    change, probability = change_of(now, then, noise_of)
    floor = MARGIN if elsewhere or min(now.processes, then.processes) < CONFIRMED else FLOOR
    detail = _detail(math.exp(now.value), math.exp(then.value), sides.theirs[0].kernel, change)
    detail += "; limits borrowed" if noise_of.borrowed else ""
    reason = probable(sides) if change.value < 1 else ""
    test = Comparison(min(1.0, probability * now.processes), noise_of, (now.processes, then.processes), floor, reason)
    return Judgement(sides.now.key, result.kernel, "INCONCLUSIVE", detail, change, test)


def _estimate(case: CaseRecord, ours: Result, theirs: Result, fast: bool) -> Estimate | None:
    rounds = case.processes or (min(len(ours.samples_us), len(theirs.samples_us)),)
    return estimate(process_logs(ours, theirs, case.processes, fast), min(rounds))


def change_of(now: Estimate, then: Estimate, noise_of: Noise) -> tuple[Ratio, float]:
    """Speed-up now over then with its interval at `CONFIDENCE`, and how probable so large a change is under the same code (two-sided)."""
    difference = now.value - then.value
    error, degrees = noise_of.error(now, then)
    half = noise_of.half_width(now, then)
    probability = 2 * student_tail(abs(difference) / error, degrees)
    pairs = min(now.rounds, then.rounds)
    return Ratio(math.exp(difference), math.exp(difference - half), math.exp(difference + half), pairs), probability


def _detail(now: float, then: float, baseline: str, change: Ratio) -> str:
    interval = f"{change.value - 1:+.1%} [{change.low - 1:+.1%}, {change.high - 1:+.1%}]"
    return f"{now:.3f}× {baseline}, accepted {then:.3f}×: {interval}"


def _new(now: CaseRecord, result: Result) -> Judgement:
    """A case that nothing was accepted for: only its own noise can be judged."""
    ratio = headline(now)
    if ratio is not None and noise(ratio) > NOISE:
        return Judgement(now.key, result.kernel, "INCONCLUSIVE", f"not accepted before, and uncertain by {noise(ratio):.0%}")
    return Judgement(now.key, result.kernel, "NEW", "not accepted before")


def _common(now: CaseRecord, then: CaseRecord, kernel: str, limits: Calibration | None) -> tuple[Result, Result] | None:
    """The baseline to compare with, measured both times: now, then. One calibrated for the kernel, else the `steadiest` exact one, else the
    steadiest: what runs beside a kernel needs to be steady, and of another function only where nothing else is there."""
    calibrated = {own.baseline for own in limits.noises if (own.key, own.kernel) == (now.key, kernel)} if limits else set()
    pairs = []
    for before in then.results:
        result, time = now.result(before.kernel), time_us(before)
        if before.kind != "baseline" or before.status != "ok" or result is None or result.status != "ok":
            continue
        if time is not None and time_us(result) is not None:
            pairs.append(((before.kernel not in calibrated, not before.exact, *steadiest(before, time)), (result, before)))
    return min(pairs, key=lambda pair: pair[0])[1] if pairs else None


def ratio_of(now: Ratio, then: Ratio) -> Ratio:
    """now / then of two independent ratios; half-widths add in quadrature on the logarithmic scale, each side for itself."""
    middle = math.log(now.value / then.value)
    down = math.hypot(math.log(now.value / now.low), math.log(then.high / then.value))
    up = math.hypot(math.log(now.high / now.value), math.log(then.value / then.low))
    return Ratio(math.exp(middle), math.exp(middle - down), math.exp(middle + up), min(now.pairs, then.pairs))


def verdict_of(change: Ratio, margin: float = MARGIN) -> Verdict:
    """REGRESSED or IMPROVED: the whole interval lies beyond the margin. PASS: a regression beyond it is excluded. Else INCONCLUSIVE."""
    if change.high < 1 - margin:
        return "REGRESSED"
    if change.low > 1 + margin:
        return "IMPROVED"
    return "PASS" if change.low >= 1 - margin else "INCONCLUSIVE"
