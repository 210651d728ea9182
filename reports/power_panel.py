"""The power panel: both ratios of each sustained pair in one place, with clocks, watts and joules, and what explains the difference."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from reports.panel import Data, Panel, figures, folded, paragraph, table
from reports.power import EXPLAINED, Pair, load_of, name_of, pairs
from reports.power_figures import drawings
from suites.statistics import Ratio, geomean


def panel(data: Data) -> Panel | None:
    """The panel, or None where nothing was measured sustained."""
    compared = list(pairs(data.results))
    if not compared:
        return None
    said = paragraph(
        "Two questions. Interleaved: which kernel needs fewer cycles? All take short turns at one clock. Sustained: what does a busy GPU "
        "deliver? Each kernel runs alone for seconds, at the clock that its power leaves it under the cap. The two are never mixed, and "
        "both stand here for the same pairs of kernels. Joules are those of the whole board, operations count zeros."
    )
    rest = folded(f"All {len(compared)} pairs, with clocks, watts, joules, and why the ratios differ", _every(compared))
    drawn = figures(drawings(data.results, compared, name_of))
    return Panel("power", "Power: interleaved and sustained", "Power", said + _told(compared) + _summary(compared) + drawn + rest)


def _told(compared: Sequence[Pair]) -> Markup:
    """What all pairs together show, in one paragraph."""
    twins = [pair for pair in compared if pair.change is not None]
    parts = []
    if twins:
        changes = [pair.change or 1.0 for pair in twins]
        explained = sum("which explains it" in pair.why for pair in twins)
        same = sum(pair.same for pair in twins)
        parts.append(
            f"From interleaved to sustained the ratio changes by {min(changes) - 1:+.1%} to {max(changes) - 1:+.1%}. Of {len(twins)} pairs "
            f"{same} stay the same within their intervals, and {explained} change by what the two clocks differ (within {EXPLAINED:.0%}). "
            f"What is left elsewhere is not the clock: time in memory and in the L2 cache does not stretch when it falls{_apart(twins)}."
        )
    energies = [energy for pair in compared if (energy := pair.energy)]
    if energies:
        parts.append(f"Ours takes {min(energies):.2f} to {max(energies):.2f} of a baseline's energy per operation.")
    another = sorted({pair.theirs.kernel for pair in compared if not pair.theirs.exact})
    if another:
        parts.append(f"{' and '.join(another)} {'computes' if len(another) == 1 else 'compute'} another function (fp8, or no scales).")
    return paragraph(" ".join(parts))


def _apart(twins: Sequence[Pair]) -> str:
    """What else differs between the two halves of the pairs."""
    cards, commits = sum(pair.other_card for pair in twins), sum(pair.other_commit for pair in twins)
    parts = [f"for {count} on another {what}" for count, what in ((cards, "card"), (commits, "commit of the code")) if count]
    return f", and the interleaved half was measured {' and '.join(parts)}" if parts else ""


def _summary(compared: Sequence[Pair]) -> Markup:
    head = (
        "Weights", "Ours", "Over", "Cases", "Interleaved", "Sustained", "Least", "Most", "Our clock", "Our W", "Their W", "Our J/10¹²",
        "Their J/10¹²",
    )
    grouped: dict[tuple[str, str, str], list[Pair]] = {}
    for pair in compared:
        grouped.setdefault((str(pair.case.problem.sparsity), pair.ours.kernel, pair.theirs.kernel), []).append(pair)
    rows = [_summed(*key, own) for key, own in sorted(grouped.items())]
    return table("Interleaved and sustained ratios by baseline, geometric means", head, rows, (0, 1, 2))


def _summed(sparsity: str, kernel: str, rival: str, own: Sequence[Pair]) -> tuple[object, ...]:
    ours, theirs = [load_of(p.case, p.ours) for p in own], [load_of(p.case, p.theirs) for p in own]
    values = [pair.sustained.value for pair in own]
    clocks = geomean([clock for pair in own if (clock := pair.clocks)])
    return (
        sparsity, kernel, rival, len(own), _times([p.interleaved.value for p in own if p.interleaved]), _times(values),
        f"{min(values):.2f}×", f"{max(values):.2f}×", f"{clocks - 1:+.1%}" if clocks == clocks else "–",
        _middle([one.watts for one in ours]), _middle([one.watts for one in theirs]),
        _middle([one.joules for one in ours], 3), _middle([one.joules for one in theirs], 3),
    )


def _times(values: Sequence[float]) -> str:
    return f"{geomean(values):.2f}×" if values else "–"


def _middle(values: Sequence[float | None], digits: int = 0) -> str:
    known = [value for value in values if value is not None]
    return _number(geomean(known) if known else None, digits)


def _every(compared: Sequence[Pair]) -> Markup:
    head = (
        "Case", "Ours", "Over", "Interleaved", "Sustained", "MHz", "Their MHz", "W", "Their W", "J/10¹²", "Their J/10¹²",
        "Why they differ",
    )
    rows = []
    for pair in compared:
        ours, theirs = load_of(pair.case, pair.ours), load_of(pair.case, pair.theirs)
        rows.append((
            pair.name, pair.ours.kernel, pair.theirs.kernel, _ratio(pair.interleaved), _ratio(pair.sustained), _number(ours.mhz),
            _number(theirs.mhz), _number(ours.watts), _number(theirs.watts), _number(ours.joules, 3), _number(theirs.joules, 3), pair.why,
        ))
    return table("Interleaved and sustained ratios with clocks, power and energy", head, rows, (0, 1, 2, 11))


def _ratio(ratio: Ratio | None) -> Markup | str:
    if ratio is None:
        return "–"
    return Markup('{}× <span class="iv">[{}–{}]</span>').format(*(f"{value:.2f}" for value in (ratio.value, ratio.low, ratio.high)))


def _number(value: float | None, digits: int = 0) -> str:
    return f"{value:.{digits}f}" if value is not None else "–"
