"""A tuning run: cases spread over the devices, their winners put into the table as they come."""

from __future__ import annotations

import contextlib
import datetime
import math
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autotune.executor import Slot, SlotLost
from autotune.job import Job
from autotune.search import Budget
from autotune.table import key_of
from autotune.task import Task, of_job, starts
from autotune.tools import Stopped, Tools
from autotune.tuned import sources, write
from autotune.tuning import Found, Tuning
from autotune.worker import waking
from kernels.errors import Failure, TerSparseError
from kernels.tuned import source_hash
from kernels.tuned_table import Entry, read_table

WAKE_SECONDS = 120.0
BACKLOG, CASES_AHEAD = 4, 100
"""Compilations waiting per compiling process, and cases beyond those begun, above which no further case is looked at ahead."""
REMEMBERED = 20
"""The next case of a brief run leaves as much of its time to its finals as the last so many took beyond theirs."""
WRITE_SHARE = 30.0
"""After writing the table so many times as long passes before it is written again; the journal has what is lost then."""
LOST_IN_A_ROW = 3
"""So often a slot may be lost without a case done in between, then it is given up."""


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


SPENT = Found(False, "the budget was spent")


def _nothing_made(outcome: Outcome) -> Mapping[str, Any] | None:
    return None


@dataclass
class Tuner:
    """Tunes cases on slots.

    table: the file the winners go to. versions: of the libraries, kept with every entry. known: entries whose winners are places to begin;
    in a brief run those that it finds itself, too. made: hears of every outcome, and gives what the table is to say of the run that makes
    it; None leaves what it says.
    """

    tools: Tools
    table: Path
    versions: Mapping[str, str | None]
    known: Sequence[Entry] = ()
    made: Callable[[Outcome], Mapping[str, Any] | None] = _nothing_made
    _found: list[Entry] = field(default_factory=list)
    _tasks: dict[int, Task] = field(default_factory=dict)
    _begun: set[int] = field(default_factory=set)
    _over: list[float] = field(default_factory=list)
    _fresh: dict[Any, Entry | None] = field(default_factory=dict)
    _made: Mapping[str, Any] | None = None
    _catalogue: str = ""
    _due: float = 0.0
    _done: queue.SimpleQueue[Outcome | BaseException | None] = field(default_factory=queue.SimpleQueue)

    def run(self, jobs: Sequence[Job], slots: Sequence[Slot], budget: Budget) -> Iterator[Outcome]:
        """Outcomes as they come; an interrupt or an error ends all slots at once. Each is put into the table, no later than at the end."""
        waiting: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
        for number, job in enumerate(jobs):
            waiting.put((number, job))

        firsts = len({job.problem for job in jobs})  # whatever else is there for a problem comes after all of these, and gets what is left

        def share(number: int) -> Budget:
            last = firsts if self.tools.brief and number < firsts else len(jobs)
            over = self._over[-REMEMBERED:] if self.tools.brief else []
            return budget.share(math.ceil((last - number) / len(slots)), statistics.fmean(over) if over else 0.0)

        modules = tuple(dict.fromkeys((self.tools.functions, *(job.catalogue for job in jobs))))
        threads = [threading.Thread(target=self._serve, args=(slot, waiting, budget, share, modules), daemon=True) for slot in slots]
        ahead = threading.Thread(target=self._ahead, args=(jobs,), daemon=True)
        try:
            for thread in (*threads, ahead):
                thread.start()
            for outcome in self._outcomes(len(jobs), len(slots)):
                made = self.made(outcome)
                if outcome.complete:
                    self._keep(outcome, made)
                yield outcome
        finally:
            try:
                self._write()
            finally:  # whatever keeps the table from being written does not keep the slots
                self._end(threads, slots)
                if ahead.is_alive():  # it is not where the run was interrupted before
                    ahead.join()

    def _end(self, threads: Sequence[threading.Thread], slots: Sequence[Slot]) -> None:
        self.tools.stop.set()
        for thread, slot in zip(threads, slots, strict=True):
            while thread.is_alive():
                slot.kill()
                thread.join(0.1)
            slot.close()

    def _ahead(self, jobs: Sequence[Job]) -> None:
        """A thread's body: `_hand_over`; its errors are raised again by `run`."""
        try:
            self._hand_over(jobs)
        except BaseException as error:
            self._done.put(error)

    def _hand_over(self, jobs: Sequence[Job]) -> None:
        """Give the first candidates of the coming cases to the compiling processes, as long as these have little to do."""
        pool, stop = self.tools.pool, self.tools.stop
        for number, job in enumerate(jobs) if pool is not None else ():
            while not stop.is_set() and pool is not None and (
                pool.submitted - pool.done > BACKLOG * pool.processes or number > len(self._begun) + CASES_AHEAD
            ):
                stop.wait(0.05)
            if stop.is_set():
                return
            if number in self._begun:
                continue
            Tuning(self._task(number, job), self.tools, number).compile_ahead()

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

    def _serve(self, slot: Slot, waiting: queue.SimpleQueue[tuple[int, Job]], whole: Budget, shares: Callable[[int], Budget],
               modules: tuple[str, ...]) -> None:
        """A slot's thread: one case after the other, when its process has imported the modules."""
        lost = 0
        try:
            slot.call(*waking(*modules), WAKE_SECONDS)
        except (SlotLost, TerSparseError):
            pass  # the first case will say so
        except BaseException as error:  # as below
            self._done.put(error)
            return
        with contextlib.suppress(Stopped):
            while lost < LOST_IN_A_ROW and not self.tools.stop.is_set():
                try:
                    number, job = waiting.get_nowait()
                except queue.Empty:  # another slot may be lost and give its case back
                    self.tools.stop.wait(0.1)
                    continue
                try:
                    self._done.put(Outcome(job, None, SPENT) if whole.spent else self._tune(slot, number, job, shares(number)))
                    lost = 0
                except SlotLost as error:
                    if self.tools.stop.is_set():  # its process was ended by `_end`
                        break
                    lost += 1
                    waiting.put((number, job))  # what was measured of it is in the journal
                    self.tools.observer.say(f"{slot.device}: {error}; its case is begun again")
                except Stopped:
                    raise
                except BaseException as error:  # raised again by `run`, in the thread that can answer for it
                    self._done.put(error)
                    break
        self._done.put(None)

    def _tune(self, slot: Slot, number: int, job: Job, budget: Budget) -> Outcome:
        self._begun.add(number)
        started, own = budget.now(), budget.seconds
        task = self._task(number, job)
        if self.tools.brief:
            task = replace(task, starts=starts(job, task.points, [*self._found, *self.known]))
        self.tools.observer.begin(task, slot.device)
        tuning = Tuning(task, self.tools, number)
        tuning.compile_ahead()
        try:
            found = tuning.run(slot, budget)
        finally:
            self.tools.observer.finished(task)
            self._tasks.pop(number, None)
        if own is not None:
            self._over.append(max(0.0, budget.now() - started - own))
        return Outcome(job, self._entry(job, task, found), found)

    def _task(self, number: int, job: Job) -> Task:
        """The task of a case, made once: enumerating candidates takes a while."""
        task = self._tasks.get(number)
        if task is None:
            task = self._tasks[number] = of_job(job, self.versions, self.known, self.tools.functions)
        return task

    def _entry(self, job: Job, task: Task, found: Found) -> Entry | None:
        """The winner; an entry that says that the default stays, where that could be timed; None where nothing was found out."""
        verdict, problem = found.verdict, job.problem
        better = verdict is not None and verdict.better
        default_us = _rounded(found.default_us)
        if not better and (default_us is None or not found.complete):
            return None
        stays = Entry(
            job.kernel, problem.op, problem.out_features, problem.in_features, problem.tokens, str(problem.sparsity), problem.dtype,
            config={}, us=default_us or 0.0, default_us=default_us, source=source_hash(job.find()), versions=self.versions,
            date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(), memory_gb=task.gpu.memory_gb,
            evaluated=(found.evaluated, found.of),
        )
        if verdict is None or not verdict.better:
            return stays
        ties = tuple(found.points[place] for place in verdict.ties)
        us = round(verdict.times[verdict.winner], 3)
        return replace(stays, config=found.points[verdict.winner], us=us, ties=ties, chance=verdict.chance)

    def _keep(self, outcome: Outcome, made: Mapping[str, Any] | None) -> None:
        """Note what takes the place of what stands in the table; write it unless writing would take more than a small part of the time."""
        self._fresh[key_of(outcome.job.find(), outcome.job.problem)] = outcome.entry
        self._catalogue, self._made = outcome.job.catalogue, made or self._made
        if outcome.entry is not None:
            self._found.append(outcome.entry)
        if time.monotonic() >= self._due:
            self._write()

    def _write(self) -> None:
        """Put the outcomes since the last time into the table. What no kernel's source of today would ever apply goes from it."""
        if not self._fresh:
            return
        started, table, known = time.monotonic(), read_table(self.table), sources(self._catalogue)
        kept = [other for other in (*table.entries, *table.stays)
                if other.key not in self._fresh and other.source == known.get((other.kernel, other.op))]
        write(self.table, [*kept, *filter(None, self._fresh.values())], self._made or table.made)
        self._fresh.clear()
        self._due = time.monotonic() + WRITE_SHARE * (time.monotonic() - started)


def _rounded(microseconds: float | None) -> float | None:
    return None if microseconds is None else round(microseconds, 3)
