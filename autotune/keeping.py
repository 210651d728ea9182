"""What a case came to, and the table that winners are put into as they come."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune.job import Job
from autotune.lock import alone
from autotune.table import key_of
from autotune.task import Task
from autotune.tuned import sources, write
from autotune.tuning import Found
from kernels.errors import Failure
from kernels.tuned import source_hash
from kernels.tuned_table import Entry, read_table

WRITE_SHARE = 30.0
"""After writing the table so many times as long passes before it is written again; the journal has what is lost then."""


@dataclass(frozen=True)
class Outcome:
    """A tuned case. entry: as stored, None where there is nothing to store. found: how it came about."""

    job: Job
    entry: Entry | None
    found: Found

    @property
    def complete(self) -> bool:
        """Whether it was found out what is best."""
        return self.found.complete

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Of candidates, those that were pruned apart."""
        return tuple(failure for failure in self.found.failures if not failure.reason.startswith("pruned: "))

    @property
    def pruned(self) -> int:
        """Candidates that were never run."""
        return len(self.found.failures) - len(self.failures)

    @property
    def wrong(self) -> int:
        """Candidates that computed wrong numbers."""
        return sum(failure.stage == "wrong" for failure in self.failures)


def entry_of(job: Job, task: Task, found: Found, versions: Mapping[str, str | None]) -> Entry | None:
    """The winner; an entry that says that the default stays, where that could be timed; None where nothing was found out."""
    verdict, problem = found.verdict, job.problem
    better = verdict is not None and verdict.better
    default_us = _rounded(found.default_us)
    if not better and (default_us is None or not found.complete):
        return None
    stays = Entry(
        job.kernel, problem.op, problem.out_features, problem.in_features, problem.tokens, str(problem.sparsity), problem.dtype,
        config={}, us=default_us or 0.0, default_us=default_us, source=source_hash(job.find()), versions=versions,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(), memory_gb=task.gpu.memory_gb,
        evaluated=(found.evaluated, found.of),
    )
    if verdict is None or not verdict.better:
        return stays
    ties = tuple(found.points[place] for place in verdict.ties)
    us = round(verdict.times[verdict.winner], 3)
    return replace(stays, config=found.points[verdict.winner], us=us, ties=ties, chance=verdict.chance)


def _rounded(microseconds: float | None) -> float | None:
    return None if microseconds is None else round(microseconds, 3)


class Keeper:
    """Puts outcomes into the table at that path, the file itself no oftener than writing it is worth."""

    def __init__(self, table: Path) -> None:
        self._table, self._due, self._catalogue = table, 0.0, ""
        self._fresh: dict[Any, Entry | None] = {}
        self._made: Mapping[str, Any] | None = None

    def keep(self, outcome: Outcome, made: Mapping[str, Any] | None) -> None:
        """Note what takes the place of what stands in the table; write it unless writing would take more than a small part of the time.

        made: what the table is to say of the run that makes it; None leaves what it says. Raises as `write`.
        """
        self._fresh[key_of(outcome.job.find(), outcome.job.problem)] = outcome.entry
        self._catalogue, self._made = outcome.job.catalogue, made or self._made
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Put what was kept since the last time into the table. What no kernel's source of today would ever apply goes from it.

        Runs of several folders may share a table: each adds to what stands in it. Raises OutputError, and RecordError where the file has
        become no table meanwhile.
        """
        if not self._fresh:
            return
        started, known = time.monotonic(), sources(self._catalogue)
        with alone(self._table.parent):
            table = read_table(self._table)
            kept = [other for other in (*table.entries, *table.stays)
                    if other.key not in self._fresh and other.source == known.get((other.kernel, other.op))]
            write(self._table, [*kept, *filter(None, self._fresh.values())], self._made or table.made)
        self._fresh.clear()
        self._due = time.monotonic() + WRITE_SHARE * (time.monotonic() - started)
