"""What a calibration has measured so far, by process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from suites.record import CaseRecord, Record, RunRecord
from suites.session import joined


@dataclass
class Samples:
    """Records by the label of their process, then by case: `p0`, `p1` … for the same code, `slow5-0` … for slowed kernels."""

    cases: dict[str, dict[str, CaseRecord]]
    heads: dict[str, RunRecord]

    @classmethod
    def of(cls, records: Iterable[Record]) -> Samples:
        """Sorted by the end of each run's id."""
        samples = cls({}, {})
        for record in records:
            if isinstance(record, RunRecord):
                samples.heads[record.id] = record
            elif isinstance(record, CaseRecord):
                samples.add(record)
        return samples

    def add(self, record: CaseRecord) -> None:
        """Take in a case."""
        self.cases.setdefault(label_of(record.run), {})[record.key] = record

    def fresh(self, most: int | None = None) -> dict[str, list[CaseRecord]]:
        """The records of each case by its fresh processes, in order; most: of so many processes only."""
        found: dict[str, list[CaseRecord]] = {}
        labels = sorted((label for label in self.cases if label.startswith("p")), key=lambda label: int(label[1:]))
        for label in labels[:most]:
            for key, record in self.cases[label].items():
                found.setdefault(key, []).append(record)
        return found

    def slowed(self) -> dict[tuple[str, str], CaseRecord]:
        """By `slow5` and so on, and case: one record of all the processes that measured it slowed by that much."""
        found: dict[tuple[str, str], CaseRecord] = {}
        for label in sorted(label for label in self.cases if label.startswith("slow")):
            for key, record in self.cases[label].items():
                place = label.partition("-")[0], key
                found[place] = replace(joined(found[place], record), run=record.run) if place in found else record
        return found

    def timed(self) -> dict[str, tuple[str, ...]]:
        """The kernels that were timed in each case, as its first process has them."""
        return {
            key: tuple(sorted(result.kernel for result in records[0].results if result.status == "ok" and result.samples_us))
            for key, records in self.fresh().items()
        }


def label_of(run: str) -> str:
    """The process that a run's id stands for."""
    return run.partition("/")[2]
