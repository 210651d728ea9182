"""The command line of tuning: parse, print, exit.

    python -m autotune.run --gpu h200 --budget 5m                 (the whole table)
    python -m autotune.run --gpu h200 --op gemm --shape 13824x2560 --tokens 512 2048
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from autotune import options as arguments
from autotune.beginning import BRIEF_SECONDS, Beginning, Surroundings
from autotune.clock import Clock, CudaClock
from autotune.command import guarded, parse_shape
from autotune.compile import refuse_interpreter, settle_cache
from autotune.coverage import coverage, told_of
from autotune.explain import explain
from autotune.job import COPIES, Job
from autotune.journal import Journal, PoisonList
from autotune.keeping import Outcome
from autotune.live import view
from autotune.lock import FolderLock
from autotune.pool import CompilePool
from autotune.search import Budget, strategy
from autotune.session import Tuner
from autotune.table import key_of, problem_of
from autotune.task import of_job
from autotune.tools import Tools
from autotune.tuned import all_known, sources
from autotune.usage import Usage
from kernels.errors import OutputError, UsageError
from kernels.gpu import Gpu, choose
from kernels.tuned import path_of, verdict
from kernels.tuned_table import read_table

TURN_US = 1000.0
REASONS = 8
"""Why candidates were rejected is said in so many kinds of reasons at the end."""


def main(argv: Sequence[str] | None = None, clock: Clock | None = None, around: Surroundings | None = None) -> int:
    """Tune, or explain, and return the exit code. clock, around: other than the real ones, for tests."""
    around = around or Surroundings()

    def body() -> int:
        options = arguments.parser().parse_args(argv)
        if options.explain:
            return _explain(options, around)
        if options.coverage:
            return _coverage(options, around)
        if options.ray and options.device:
            raise UsageError("--device names GPUs of this machine, --ray takes those of a cluster; allowed: one of them")
        refuse_interpreter()
        seconds, evaluations = arguments.parse_budget(options.budget) if options.budget else (None, None)
        budget = Budget(seconds, evaluations, around.now)
        if options.cache and options.cache.is_dir():  # before any process looks into it
            print(f"{settle_cache(options.cache.resolve())} compiled kernels in {options.cache}", flush=True)
        with ExitStack() as stack:
            begun = Beginning(options, around, stack, budget)
            gpu = begun.machine()
            jobs = arguments.jobs(options, begun.wanted, gpu, clock or CudaClock(TURN_US, COPIES), around.catalogue)
            if not jobs:
                raise UsageError("nothing to tune: no kernel of these ops has a choice for these shapes and sparsities")
            if options.compile_only:
                return _compile(options, jobs, gpu, begun.pool)
            return _tune(options, jobs, gpu, around, budget, begun)

    return guarded("autotune.run", body, "interrupted; what was measured or compiled is kept, --resume goes on")


def _explain(options: argparse.Namespace, around: Surroundings) -> int:
    gpu = choose(options.gpu, options.profile, None)
    if gpu.measured_as != "datasheet":
        print(f"{gpu.name}: {gpu.measured_as}")
    options.op = options.op or ["gemm", "layer"]
    wanted = arguments.answerable(arguments.problems(options, [parse_shape(options.explain)]))
    kernels_for = import_module(around.catalogue).kernels_for
    kernels = [kernel for op in options.op for kernel in kernels_for(op)]
    print("\n".join(explain(wanted, gpu, kernels, options.kernel or (), around.table)))
    return 0


def _compile(options: argparse.Namespace, jobs: Sequence[Job], gpu: Gpu, pool: CompilePool) -> int:
    """Compile every candidate into the cache, for timing elsewhere; exit code 4 where not one could be."""
    started, results = time.monotonic(), Counter[str]()
    tasks = [of_job(job, {}) for job in jobs]
    futures = {id(made): made for task in tasks for point in task.points for unit in task.units(point) for made in [pool.submit(unit)]}
    for count, future in enumerate(futures.values(), 1):
        made = future.result()
        results["failed" if hasattr(made, "stage") else "compiled"] += 1
        if count % 100 == 0:
            print(f"{count} of {len(futures)}", flush=True)
    seconds = time.monotonic() - started
    where = options.cache or "Triton's own cache"
    print(f"{results['compiled']} kernels compiled for {gpu.name}, {results['failed']} failed, {seconds:.0f} s, into {where}")
    return 0 if results["compiled"] else 4


def _tune(options: argparse.Namespace, jobs: Sequence[Job], gpu: Gpu, around: Surroundings, budget: Budget, begun: Beginning) -> int:
    slots = begun.slots(gpu)
    folder, table = around.runs / f"tune-{gpu.name}", around.table or path_of(gpu)
    versions, known = begun.versions(slots), all_known(table)
    brief = budget.seconds is not None and budget.seconds * len(slots) < BRIEF_SECONDS * len(jobs)
    asked, jobs = len(jobs), _left(jobs, table, versions) if brief and options.resume else jobs
    with ExitStack() as stack:
        stack.enter_context(FolderLock(folder))
        journal = Journal(folder / "journal.jsonl", options.resume)
        stack.callback(journal.close)
        poison = PoisonList(folder / "poison.jsonl", options.retry)
        stack.callback(poison.close)
        names = ", ".join(slot.device for slot in slots)
        print(f"{len(jobs)} cases on {gpu.name} ({names}); journal {journal.path}, table {table}", flush=True)
        search = strategy(arguments.search(options))
        shown = stack.enter_context(view(len(jobs), budget=budget))
        tools = Tools(journal, poison, begun.pool, search, shown, around.trial_seconds, threading.Event(), around.functions, brief)
        tools.evaluations = math.inf if budget.evaluations is None else budget.evaluations
        usage = Usage(_command(options), len(jobs), len(slots), tools)
        if options.resume and arguments.whole(options):
            usage.earlier(read_table(table).made, asked - len(jobs))
        stack.callback(usage.write, folder / "last.json")
        for outcome in Tuner(tools, table, versions, known, partial(usage.add, told=arguments.whole(options))).run(jobs, slots, budget):
            shown.say(f"[{len(usage.outcomes)}/{len(jobs)}, {shown.left()}] {_line(outcome)}")
    if rejected := shown.never_tried(REASONS):
        print(rejected)
    return _verdict(jobs, usage)


def _left(jobs: Sequence[Job], table: Path, versions: Mapping[str, str | None]) -> list[Job]:
    """The cases that the table has no usable entry for yet, of these libraries."""
    entries = read_table(table)
    done = {entry.key: entry.source for entry in (*entries.entries, *entries.stays)
            if all(entry.versions.get(name) == versions.get(name) for name in ("triton", "driver"))}
    return [job for job in jobs
            if done.get(key_of(job.find(), job.problem)) != sources(job.catalogue)[job.kernel, job.problem.op]]


def _coverage(options: argparse.Namespace, around: Surroundings) -> int:
    """Print what the table covers of every suite by entries that apply; exit code 4 where something is missing."""
    gpu, kernels_for = choose(options.gpu, options.profile, None), import_module(around.catalogue).kernels_for
    table = read_table(around.table or path_of(gpu))
    kernels = {(kernel.name, kernel.op): kernel for op in arguments.TOKENS for kernel in kernels_for(op)}
    usable, stale = [], Counter[str]()
    for entry in (*table.entries, *table.stays):
        kernel = kernels.get((entry.kernel, entry.op))
        reason = verdict(entry, kernel, problem_of(entry), gpu) if kernel else "there is no such kernel"
        if reason is None:
            usable.append(entry)
        else:
            stale[f"{entry.kernel} ({entry.op}): {reason}"] += 1
    found = coverage(usable)
    print("\n".join([*map(str, found), *(f"{count} entries not applied: {told}" for told, count in stale.items()), *told_of(table.made)]))
    return 4 if any(one.missing for one in found) else 0


def _command(options: argparse.Namespace) -> str:
    """The command line as people would type it again."""
    words = [f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
             for name, value in vars(options).items() if value not in (None, False, True)]
    return " ".join(["python -m autotune.run", *words])


def _verdict(jobs: Sequence[Job], usage: Usage) -> int:
    """Print the sum, with the cases that have no result, and give the exit code."""
    outcomes = usage.outcomes
    won = sum(outcome.entry is not None and not outcome.entry.stays for outcome in outcomes)
    wrong, done = sum(outcome.wrong for outcome in outcomes), {id(outcome.job) for outcome in outcomes if outcome.complete}
    if missed := [f"{job.kernel} {job.problem}" for job in jobs if id(job) not in done]:
        print(f"not tuned: {', '.join(missed)}")
    print(f"{won} tuned, {len(done) - won} stay with their default, {len(missed)} not tuned, {wrong} candidates wrong; {usage}")
    return 3 if wrong else 4 if missed else 0


def _line(outcome: Outcome) -> str:
    job, entry, found = outcome.job, outcome.entry, outcome.found
    lost = f" ({len(outcome.failures)} candidates failed, first: {outcome.failures[0]})" if outcome.failures else ""
    lost += f" ({outcome.pruned} pruned)" if outcome.pruned else ""
    tried = f" [{found.evaluated} of {found.of}]" if found.evaluated < found.of else ""
    if entry is None or entry.stays:
        time = f" ({found.default_us:.2f} µs)" if found.default_us else ""
        return f"{job.kernel} {job.problem}: {found.reason}{time}{tried}{lost}"
    over = f"default {entry.default_us:.2f} µs, {entry.default_us / entry.us:.2f}x" if entry.default_us else "the default cannot run"
    sure = f"best with {entry.chance:.0%}, {len(entry.ties)} ties" if entry.chance is not None else ""
    return f"{job.kernel} {job.problem}: {entry.us:.2f} µs ({over}; {sure}) {dict(entry.config)}{tried}{lost}"


def leave(code: int) -> NoReturn:
    """End this process at once: everything is written, and Python would take torch's modules apart for half a second.

    Where nobody reads the output any more (`| head`), success becomes an OutputError's code.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or OutputError.exit_code
    os._exit(code)


if __name__ == "__main__":
    leave(main())
