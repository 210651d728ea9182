"""Accepting a run: its cases replace the accepted ones, thinned so that the committed file stays small."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from kernels.errors import OutputError
from kernels.gpu import Gpu
from suites.quality import headline
from suites.record import CaseRecord, Record, Result, RoofRecord, RunRecord, latest, to_line
from suites.refusals import every_refusal, roofs_of
from suites.store import write_all

MOST_BYTES = 5_000_000
SAMPLES = (40, 30, 20, 14, 10)
"""Samples kept of each result: the first of these that fits the file."""
CALL_SAMPLES = 5
DIGITS = 5


def accept(file: Path, run: Sequence[Record], accepted: Sequence[Record], most_bytes: int = MOST_BYTES) -> None:
    """Write the accepted file anew with this run's measured cases in the place of the old ones, and print what changes.

    Accepted cases that the run did not measure stay; roofs of the run replace those of the same card. OutputError where the file would
    exceed `most_bytes` at the fewest samples, or cannot be written.
    """
    old, new = latest(accepted), latest(run)
    print("\n".join(changes(old, new)))
    heads = [record for record in (*accepted, *run) if isinstance(record, RunRecord)]
    card = {head.id: head.device.get("uuid") for head in heads}
    roofs = [record for record in run if isinstance(record, RoofRecord)]
    measured = {card.get(roof.run) for roof in roofs}
    roofs = [r for r in accepted if isinstance(r, RoofRecord) and (not roofs or card.get(r.run) not in measured)] + roofs
    for samples in SAMPLES:
        cases = [thinned(case, samples) for case in {**old, **new}.values()]
        used = {case.run for case in cases} | {roof.run for roof in roofs}
        kept = list({head.id: replace(head, planned=(), arguments=shareable(head.arguments)) for head in heads if head.id in used}.values())
        records: list[Record] = [*kept, *roofs, *cases]
        size = sum(len(to_line(record).encode()) + 1 for record in records)
        if size <= most_bytes:
            write_all(file, records)
            print(f"suites.gate: accepted {len(new)} cases into {file} ({size / 1e6:.2f} MB, at most {samples} samples each)")
            return
    raise OutputError(f"{file}: would hold {size / 1e6:.1f} MB, the most is {most_bytes / 1e6:.0f}; accept fewer cases (--suite …)")


def acceptable(run: Sequence[Record], gpu: Gpu) -> tuple[list[Record], list[str]]:
    """The records of a run without the measured cases in which anything is refused, and what is refused in each of these, in a line.

    What cannot be believed is nothing to compare with: a throttled case would make every later run an improvement.
    """
    roofs, believed, refused = roofs_of(run), list[Record](), list[str]()
    for record in run:
        found = every_refusal(record, gpu, roofs) if isinstance(record, CaseRecord) and record.evidence == "measured" else []
        if found and isinstance(record, CaseRecord):
            names = (f"{own.name}: {own.kernel}: {own.detail}" if own.kernel else str(own) for own in found)
            refused.append(f"{record.key}: {'; '.join(names)}")
        else:
            believed.append(record)
    return believed, refused


def shareable(arguments: Sequence[str]) -> tuple[str, ...]:
    """A command line without the folder of its results, which is of one machine only."""
    folders = {place + 1 for place, word in enumerate(arguments) if word == "--out"}
    kept = (word for place, word in enumerate(arguments) if place not in folders)
    return tuple(word for word in kept if word != "--out" and not word.startswith("--out="))


def changes(old: Mapping[str, CaseRecord], new: Mapping[str, CaseRecord]) -> Iterable[str]:
    """A line per case whose headline speed-up is new or changed, and the count of those that stay as they are."""
    yield f"{'accepted':>9} {'now':>9} {'change':>8}  case"
    for key, case in new.items():
        before, now = headline(old[key]) if key in old else None, headline(case)
        was, value = f"{before.value:.3f}×" if before else "-", f"{now.value:.3f}×" if now else "-"
        change = f"{now.value / before.value - 1:+.1%}" if before and now else ("new" if key not in old else "?")
        yield f"{was:>9} {value:>9} {change:>8}  {key}"
    kept = len(set(old) - set(new))
    yield f"{kept} accepted cases were not measured in this run and stay"


def thinned(case: CaseRecord, samples: int) -> CaseRecord:
    """The case with at most so many samples per result, the same rounds of every one, and figures of five digits."""
    rounds = max((len(result.samples_us) for result in case.results), default=0)
    step = max(1, -(-rounds // samples))
    kept = [range(end - count, end, step) for count, end in zip(case.processes, accumulate(case.processes), strict=True)]
    places = [place for part in kept for place in part] if kept else range(0, rounds, step)
    results = tuple(_thin(result, places) for result in case.results)
    return replace(case, results=results, phases={}, conditions=_rounded(case.conditions), processes=tuple(map(len, kept)))


def _thin(result: Result, places: Sequence[int]) -> Result:
    samples = tuple(result.samples_us[place] for place in places if place < len(result.samples_us))
    return replace(
        result, samples_us=_rounded(samples), call_us=_rounded(result.call_us[:CALL_SAMPLES]), blocks=_rounded(result.blocks),
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: _rounded(entry) for name, entry in value.items()}
    return tuple(map(_rounded, value)) if isinstance(value, (list, tuple)) else value
