"""Tuning cases: compile every candidate in parallel, try them in a worker process, time the finalists in pairs, keep a winner that wins."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autotune import tuned
from autotune.compile import Compiled, compile_all
from autotune.job import Job
from autotune.journal import Journal, outcome_from_plain, outcome_to_plain
from autotune.measure import median_interval
from autotune.search import Budget, Search, exhaustive
from autotune.tuned import Entry
from autotune.worker import Worker
from kernels.errors import Failure
from kernels.kernel import CompileUnit, Kernel
from kernels.space import Config, config_to_dict

FINALISTS = 3
TRIAL_SECONDS = 60.0
FINAL_SECONDS = 180.0


@dataclass(frozen=True)
class Outcome:
    """A tuned case. entry: the winner as stored, None where the default stays. complete: whether all candidates and the finals were done.

    default_us: where it could be measured. failures: of candidates. reason: why there is no entry.
    """

    job: Job
    entry: Entry | None
    complete: bool
    default_us: float | None = None
    failures: tuple[Failure, ...] = ()
    reason: str = ""

    @property
    def wrong(self) -> int:
        """Candidates that computed wrong numbers."""
        return sum(failure.stage == "wrong" for failure in self.failures)


@dataclass
class Tuner:
    """Tunes one case after the other.

    journal: what is known already. table: the file the winners go to. step(text, done): what is done now, and how many candidates were
    finished since the last call. trial_seconds: after which a candidate is killed.
    """

    journal: Journal
    budget: Budget
    table: Path
    versions: Mapping[str, str | None]
    step: Callable[[str, int], None] = lambda text, done: None
    trial_seconds: float = TRIAL_SECONDS
    _compiled: dict[tuple[str, str, str], Failure] = field(default_factory=dict)

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Outcomes in order, each in the table before the next is begun; cases after the budget was spent come back incomplete."""
        if not self.budget.spent:
            self._compile(jobs)
        with Worker() as worker:
            for job in jobs:
                outcome = self._tune(job, worker)
                if outcome.complete:
                    self._store(outcome)
                yield outcome

    def _compile(self, jobs: Sequence[Job]) -> None:
        """Compile the candidates that the journal does not know yet, remembering the failures."""
        wanted: list[tuple[tuple[str, str, str], CompileUnit]] = []
        for job in jobs:
            kernel = job.find()
            for config in candidates(kernel, job):
                if self.journal.get(*self._key(job, kernel, config)) is None:
                    units = kernel.compile_units(job.problem, config)
                    wanted += [(_identity(job, config), unit) for unit in units]
        if not wanted:
            return
        self.step(f"compiling {len(wanted)} kernels", 0)
        done = compile_all([unit for _, unit in wanted], jobs[0].gpu, progress=lambda n, of: self.step(f"compiled {n} of {of}", 0))
        for (identity, _), result in zip(wanted, done, strict=True):
            if not isinstance(result, Compiled):
                self._compiled[identity] = result

    def _tune(self, job: Job, worker: Worker) -> Outcome:
        kernel = job.find()
        default = kernel.default_config(job.problem, job.gpu)

        def evaluate(config: Config) -> float | Failure:
            key = self._key(job, kernel, config)
            known = self.journal.get(*key)
            self.step(f"{kernel} {job.problem}: {config_to_dict(config)}", 1)
            if known is not None:
                return outcome_from_plain(known)
            outcome = self._compiled.get(_identity(job, config)) or worker.call(
                "autotune.candidate:evaluate", (job, config_to_dict(config)), self.trial_seconds
            )
            self.journal.put(outcome_to_plain(outcome), *key)
            return outcome

        search = exhaustive(candidates(kernel, job), evaluate, self.budget)
        if not search.complete:
            return Outcome(job, None, False, failures=tuple(search.failures()), reason="the budget was spent")
        return self._finals(job, kernel, default, search, worker)

    def _finals(self, job: Job, kernel: Kernel, default: Config, search: Search, worker: Worker) -> Outcome:
        """The fastest few and the default, interleaved; the fastest of them wins if it beats the default for certain."""
        configs = list(dict.fromkeys([default, *search.best(FINALISTS)]))
        failures = tuple(search.failures())
        if not search.best(1):
            first = f": {failures[0]}" if failures else ""
            return Outcome(job, None, False, failures=failures, reason=f"no candidate could be measured{first}")
        self.step(f"{kernel} {job.problem}: finals", 0)
        plain = [config_to_dict(config) for config in configs]
        key = ("finals", *self._key(job, kernel, default), plain)
        known = self.journal.get(*key)
        if known is None:
            results = worker.call("autotune.candidate:finals", (job, plain), FINAL_SECONDS)
            if isinstance(results, Failure):
                return Outcome(job, None, False, failures=(*failures, results), reason=str(results))
            known = [outcome_to_plain(own) if isinstance(own, Failure) else list(own) for own in results]
            self.journal.put(known, *key)
        failures += tuple(outcome_from_plain(own) for own in known if isinstance(own, Mapping))  # type: ignore[misc]  # of a mapping: a Failure
        samples = {place: own for place, own in enumerate(known) if not isinstance(own, Mapping)}
        return self._decide(job, kernel, plain, samples, failures)

    def _decide(
        self, job: Job, kernel: Kernel, configs: Sequence[Mapping[str, Any]], samples: Mapping[int, Sequence[float]],
        failures: tuple[Failure, ...],
    ) -> Outcome:
        """configs[0] is the default."""
        if not samples:
            return Outcome(job, None, False, failures=failures, reason="no finalist could be measured")
        times = {place: median(own) for place, own in samples.items()}
        winner = min(times, key=lambda place: times[place])
        done = Outcome(job, None, True, times.get(0), failures)
        if winner == 0 or (0 in samples and ratio_interval(samples[0], samples[winner])[0] <= 1):
            return replace(done, reason="the default is as good as any")
        ties = [place for place in times if place != winner and ratio_interval(samples[place], samples[winner])[0] <= 1]
        problem = job.problem
        entry = Entry(
            kernel.name, kernel.op, problem.out_features, problem.in_features, problem.tokens, str(problem.sparsity), problem.dtype,
            configs[winner], times[winner], times.get(0), tuned.source_hash(kernel), self.versions,
            tuple(configs[place] for place in ties), datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        )
        return replace(done, entry=entry)

    def _store(self, outcome: Outcome) -> None:
        """Put the winner into the table; where the default won, take out what stood there."""
        job = outcome.job
        key = tuned.key_of(job.find(), job.problem)
        kept = [entry for entry in tuned.read(self.table) if entry.key != key]
        tuned.write(self.table, [*kept, outcome.entry] if outcome.entry else kept)

    def _key(self, job: Job, kernel: Kernel, config: Config) -> tuple[Any, ...]:
        return (kernel.name, str(job.problem), tuned.source_hash(kernel), dict(self.versions), job.clock.name, config_to_dict(config))


def candidates(kernel: Kernel, job: Job) -> list[Config]:
    """The default config, then everything the kernel's space allows for the problem."""
    return list(dict.fromkeys([kernel.default_config(job.problem, job.gpu), *kernel.space.allowed(job.problem, job.gpu)]))


def median(values: Sequence[float]) -> float:
    """The median of microseconds."""
    low, high = sorted(values)[(len(values) - 1) // 2], sorted(values)[len(values) // 2]
    return (low + high) / 2


def ratio_interval(slower: Sequence[float], faster: Sequence[float]) -> tuple[float, float]:
    """The interval of the paired ratio slower / faster."""
    low, high = median_interval([math.log(a / b) for a, b in zip(slower, faster, strict=True)])
    return math.exp(low), math.exp(high)


def _identity(job: Job, config: Config) -> tuple[str, str, str]:
    return (f"{job.kernel}/{job.problem.op}", str(job.problem), repr(config))
