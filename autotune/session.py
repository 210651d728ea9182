"""A tuning run: cases spread over the devices, one after the other on each, as long as the budget lasts."""

from __future__ import annotations

import contextlib
import math
import queue
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autotune.executor import Slot, SlotLost
from autotune.job import Job
from autotune.keeping import Keeper, Outcome, entry_of
from autotune.search import Budget
from autotune.task import Task, of_job, starts
from autotune.tools import Stopped, Tools
from autotune.tuning import Found, Tuning
from autotune.worker import waking
from kernels.errors import TerSparseError
from kernels.tuned_table import Entry

WAKE_SECONDS = 120.0
BACKLOG, CASES_AHEAD = 4, 100
"""Compilations waiting per compiling process, and cases beyond those begun, above which no further case is looked at ahead."""
REMEMBERED = 20
"""The next case of a brief run leaves as much of its time to its finals as the last so many took beyond theirs."""
LOST_IN_A_ROW = 3
"""So often a slot may be lost without a case done in between, then it is given up."""
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

        kept = Keeper(self.table)
        modules = tuple(dict.fromkeys((self.tools.functions, *(job.catalogue for job in jobs))))
        threads = [threading.Thread(target=self._serve, args=(slot, waiting, budget, share, modules), daemon=True) for slot in slots]
        ahead = threading.Thread(target=self._ahead, args=(jobs,), daemon=True)
        try:
            for thread in (*threads, ahead):
                thread.start()
            for outcome in self._outcomes(len(jobs), len(slots)):
                made = self.made(outcome)
                if outcome.complete:
                    kept.keep(outcome, made)
                yield outcome
        finally:
            try:
                kept.write()
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
        outcome = Outcome(job, entry_of(job, task, found, self.versions), found)
        if outcome.complete and outcome.entry is not None:
            self._found.append(outcome.entry)
        return outcome

    def _task(self, number: int, job: Job) -> Task:
        """The task of a case, made once: enumerating candidates takes a while."""
        task = self._tasks.get(number)
        if task is None:
            task = self._tasks[number] = of_job(job, self.versions, self.known, self.tools.functions)
        return task
