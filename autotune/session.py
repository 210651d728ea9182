"""A tuning run: cases spread over the devices, each winner in the table before the next case is reported."""

from __future__ import annotations

import contextlib
import datetime
import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autotune import tuned
from autotune.executor import Slot, SlotLost
from autotune.job import Job
from autotune.search import Budget
from autotune.task import Task, of_job
from autotune.tuned import Entry
from autotune.tuning import Found, Stopped, Tools, Tuning
from kernels.errors import Failure

LOST_IN_A_ROW = 3
"""So often a slot may be lost without a case done in between, then it is given up."""


@dataclass(frozen=True)
class Outcome:
    """A tuned case. entry: the winner as stored, None where the default stays. found: how it came about."""

    job: Job
    entry: Entry | None
    found: Found

    @property
    def complete(self) -> bool:
        """Whether there were finals."""
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


@dataclass
class Tuner:
    """Tunes cases on slots.

    table: the file the winners go to. versions: of the libraries, kept with every entry. known: entries whose winners are places to begin.
    """

    tools: Tools
    table: Path
    versions: Mapping[str, str | None]
    known: Sequence[Entry] = ()
    _done: queue.SimpleQueue[Outcome | BaseException | None] = field(default_factory=queue.SimpleQueue)

    def run(self, jobs: Sequence[Job], slots: Sequence[Slot], budget: Budget) -> Iterator[Outcome]:
        """Outcomes as they come, each in the table before it is given; an interrupt or an error ends all slots at once."""
        waiting: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
        for number, job in enumerate(jobs):
            waiting.put((number, job))

        def share(number: int) -> Budget:
            return budget.share(math.ceil((len(jobs) - number) / len(slots)))

        threads = [threading.Thread(target=self._serve, args=(slot, waiting, share, jobs), daemon=True) for slot in slots]
        try:
            for thread in threads:
                thread.start()
            for outcome in self._outcomes(len(jobs), len(slots)):
                if outcome.complete:
                    self._store(outcome)
                yield outcome
        finally:
            self.tools.stop.set()
            for thread, slot in zip(threads, slots, strict=True):
                while thread.is_alive():
                    slot.kill()
                    thread.join(0.1)
                slot.close()

    def _outcomes(self, cases: int, slots: int) -> Iterator[Outcome]:
        while cases and slots:
            try:
                item = self._done.get(timeout=0.2)  # so that an interrupt is heard
            except queue.Empty:
                continue
            if item is None:
                slots -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                cases -= 1
                yield item

    def _serve(self, slot: Slot, waiting: queue.SimpleQueue[tuple[int, Job]], shares: Callable[[int], Budget], jobs: Sequence[Job]) -> None:
        """A slot's thread: one case after the other."""
        lost = 0
        with contextlib.suppress(Stopped):
            while lost < LOST_IN_A_ROW and not self.tools.stop.is_set():
                try:
                    number, job = waiting.get_nowait()
                except queue.Empty:  # another slot may be lost and give its case back
                    self.tools.stop.wait(0.1)
                    continue
                try:
                    self._done.put(self._tune(slot, number, job, shares(number), jobs))
                    lost = 0
                except SlotLost as error:
                    lost += 1
                    waiting.put((number, job))  # what was measured of it is in the journal
                    self.tools.observer.say(f"{slot.device}: {error}; its case is begun again")
                except Stopped:
                    raise
                except BaseException as error:  # raised again by `run`, in the thread that can answer for it
                    self._done.put(error)
                    break
        self._done.put(None)

    def _tune(self, slot: Slot, number: int, job: Job, budget: Budget, jobs: Sequence[Job]) -> Outcome:
        task = self._task(job)
        self.tools.observer.begin(task, slot.device)
        tuning = Tuning(task, self.tools, number)
        tuning.compile_ahead()
        if number + 1 < len(jobs) and not budget.spent:  # so that the next case does not begin with waiting
            Tuning(self._task(jobs[number + 1]), self.tools, number + 1).compile_ahead()
        try:
            found = tuning.run(slot, budget)
        finally:
            self.tools.observer.finished(task)
        return Outcome(job, self._entry(job, task, found), found)

    def _task(self, job: Job) -> Task:
        return of_job(job, self.versions, self.known, self.tools.functions)

    def _entry(self, job: Job, task: Task, found: Found) -> Entry | None:
        verdict, problem = found.verdict, job.problem
        if verdict is None or not verdict.better:
            return None
        return Entry(
            job.kernel, problem.op, problem.out_features, problem.in_features, problem.tokens, str(problem.sparsity), problem.dtype,
            config=found.points[verdict.winner], us=round(verdict.times[verdict.winner], 3), default_us=_rounded(found.default_us),
            source=tuned.source_hash(job.find()), versions=self.versions, ties=tuple(found.points[place] for place in verdict.ties),
            date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(), chance=verdict.chance, memory_gb=task.gpu.memory_gb,
            evaluated=(found.evaluated, found.of),
        )

    def _store(self, outcome: Outcome) -> None:
        """Put the winner into the table; where the default won, take out what stood there."""
        job = outcome.job
        key = tuned.key_of(job.find(), job.problem)
        kept = [entry for entry in tuned.read(self.table) if entry.key != key]
        tuned.write(self.table, [*kept, outcome.entry] if outcome.entry else kept)


def _rounded(microseconds: float | None) -> float | None:
    return None if microseconds is None else round(microseconds, 3)


def all_known(table: Path) -> list[Entry]:
    """The entries of that table, then those of every other GPU's."""
    others = [path for path in sorted(tuned.FOLDER.glob("*.json")) if path.resolve() != table.resolve()]
    return [entry for path in (table, *others) for entry in tuned.read(path)]
