"""How fast the tuner is: 200 candidates of the sparse GEMM on one shape by its pipeline, and one by one. On the device:

    from autotune.speed import compare; print("\\n".join(compare("h200")))

The pipeline compiles on all cores while the GPU checks and times, and ends with the finals; its wall time is that of a process of its own,
interpreter and imports included. (Another process has imported the same modules before, so that their files are in memory, as they
are for what is done one by one.) One by one means: the first launch compiles, then the same check and the same timing, then the next
candidate; a random sample is done so, from an empty cache, and the rest extrapolated from its mean.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from autotune.clock import CudaClock
from autotune.job import Job
from autotune.journal import rows
from autotune.pool import cores
from autotune.search import Point
from autotune.task import Task, of_job
from autotune.verdict import ratio_interval
from autotune.worker import Worker, waking
from kernels.errors import Failure, UsageError
from kernels.gpu import by_name
from kernels.problem import Problem, Sparsity

CATALOGUE = "autotune.wide"
KERNELS, EVALUATIONS = ("sparse-wgmma", "sparse-mma"), 104
"""All 96 candidates of the first on the shape, and a random 104 of the second: 200."""
SHAPE, TOKENS, SPARSITY = (2560, 6912), 2048, Sparsity(2, 4)
TRIAL_SECONDS = 10.0
ONE_BY_ONE = 40
NOISE = 0.02
"""Single medians of three short turns repeat about so well."""


@dataclass(frozen=True)
class Trial:
    """A candidate that the pipeline timed."""

    task: Task
    point: Point
    us: float


def pipeline(gpu: str, folder: str) -> int:
    """The tuner on these candidates, its files in that folder; the exit code of `autotune.run`."""
    from autotune.beginning import Surroundings
    from autotune.run import main

    path = Path(folder)
    shape, tokens, sparsity = "x".join(map(str, SHAPE)), str(TOKENS), str(SPARSITY)
    case = ["--op", "gemm", "--kernel", *KERNELS, "--shape", shape, "--tokens", tokens, "--sparsity", sparsity]
    argv = ["--gpu", gpu, "--device", "0", *case, "--search", "random", "--budget", str(EVALUATIONS), "--cache", str(path / "parallel")]
    around = Surroundings(catalogue=CATALOGUE, table=path / "table.json", runs=path / "runs", trial_seconds=TRIAL_SECONDS)
    return main(argv, None, around)


def compare(gpu: str, serial_seconds: float = 30.0) -> list[str]:
    """Run both; the figures as lines. serial_seconds: after which no further candidate is done one by one."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        code = f"from autotune.run import leave; from autotune.speed import pipeline; leave(pipeline({gpu!r}, {name!r}))"
        subprocess.run([sys.executable, "-c", f"import torch, triton, autotune.candidate, {CATALOGUE}"], check=False, capture_output=True)
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        wall = time.monotonic() - started
        last = folder / "runs" / f"tune-{gpu}" / "last.json"
        if not last.is_file():
            return [done.stdout, done.stderr, f"the pipeline failed with exit code {done.returncode}"]
        usage = json.loads(last.read_text(encoding="utf-8"))
        trials = timed(gpu, folder)
        return [done.stdout, *told(wall, usage, trials, one_by_one(trials, serial_seconds))]


def timed(gpu: str, folder: Path) -> list[Trial]:
    """What the pipeline timed, from its journal; a candidate that failed is not among it."""
    times: dict[tuple[str, str], float] = {}
    for key, value in rows(folder / "runs" / f"tune-{gpu}" / "journal.jsonl"):
        if len(key) == 6 and isinstance(value, (int, float)):
            times[key[0], json.dumps(key[5], sort_keys=True)] = float(value)
    found = []
    for kernel in KERNELS:
        problem, cache = Problem("gemm", *SHAPE, TOKENS, SPARSITY), str(folder / "serial")
        task = of_job(Job(kernel, problem, by_name(gpu), CudaClock(1000.0), CATALOGUE, "cuda:0", cache), {})
        known = [(point, times.get((kernel, json.dumps(point, sort_keys=True)))) for point in task.points]
        found += [Trial(task, point, us) for point, us in known if us is not None]
    return found


@dataclass(frozen=True)
class Serial:
    """What one by one came to. seconds: of each candidate that was done. found: those that could be timed, with their microseconds.
    ratio: the interval of its winner's time over that of the pipeline's winner."""

    seconds: tuple[float, ...]
    found: tuple[tuple[Trial, float], ...]
    ratio: tuple[float, float]

    @property
    def winner(self) -> tuple[Trial, float]:
        """The fastest, and its time."""
        return min(self.found, key=lambda pair: pair[1])


def one_by_one(trials: Sequence[Trial], limit: float) -> Serial:
    """Candidates after each other in one process, from an empty cache, until so many seconds are over.

    The sample is random, with the pipeline's winner in it. Where both have winners of one kernel, these are timed against each other at the
    end, interleaved, on fresh inputs. Raises UsageError where not one could be timed.
    """
    best = fastest(trials)
    sample = [best, *(trial for trial in random.Random(0).sample(list(trials), len(trials)) if trial is not best)][:ONE_BY_ONE]
    seconds, found = list[float](), list[tuple[Trial, float]]()
    with Worker() as worker:
        worker.call(*waking("autotune.candidate", CATALOGUE), 120.0)
        for trial in sample:
            if sum(seconds) > limit:
                break
            started = time.monotonic()
            us = worker.call("autotune.candidate:evaluate", (trial.task.job, dict(trial.point)), TRIAL_SECONDS + 60)
            seconds.append(time.monotonic() - started)
            if not isinstance(us, Failure):
                found.append((trial, us))
        if not found:
            raise UsageError("not one candidate could be timed one by one")
        plain = Serial(tuple(seconds), tuple(found), (1.0, 1.0))
        other, us = plain.winner
        if other is best:
            return plain
        if other.task is not best.task:
            return replace(plain, ratio=(us / best.us, us / best.us))
        samples = worker.call("autotune.candidate:finals", (best.task.job, [dict(other.point), dict(best.point)]), 120.0)
    return replace(plain, ratio=ratio_interval(samples[0], samples[1]))


def fastest(trials: Sequence[Trial]) -> Trial:
    """The pipeline's winner."""
    return min(trials, key=lambda trial: trial.us)


def told(wall: float, usage: Mapping[str, Any], trials: Sequence[Trial], serial: Serial) -> list[str]:
    """The figures as lines for people."""
    count, machines, done = int(usage["evaluated"]), cores(), len(serial.seconds)
    alone = statistics.fmean(serial.seconds) * count
    compiling, device = usage["compile_seconds"] / machines, usage["device_seconds"]
    larger = max(compiling, device)
    ratios = [us / trial.us for trial, us in serial.found]
    best, (other, us), (low, high) = fastest(trials), serial.winner, serial.ratio
    spread = f"median of {len(ratios)}, {min(ratios):.3f} to {max(ratios):.3f}"
    same = low <= 1 <= high or max(high - 1, 1 - low) <= NOISE
    return [
        f"{count} candidates ({len(trials)} timed, the others failed or were pruned), {machines} cores, {usage['compilers']} compiling",
        f"pipeline, all of it           {wall:8.1f} s   (the tuner's own clock: {usage['seconds']:.1f} s)",
        f"one by one, without finals    {alone:8.1f} s   ({done} done in {sum(serial.seconds):.1f} s, {count - done} extrapolated)",
        f"speed-up                      {alone / wall:8.2f}     (wanted: 3)",
        f"compiling / cores             {compiling:8.1f} s   ({usage['compiled']} kernels in {usage['compile_seconds']:.1f} s)",
        f"GPU time                      {device:8.1f} s   (the device's process at work, finals included)",
        f"1.3 x the larger              {1.3 * larger:8.1f} s   (pipeline: {wall / larger:.2f} x)",
        f"times, one by one / pipeline  {statistics.median(ratios):8.3f}     ({spread})",
        f"winner, pipeline              {best.us:8.2f} µs  {best.task.job.kernel} {dict(best.point)}",
        f"winner, one by one            {us:8.2f} µs  {other.task.job.kernel} {dict(other.point)}",
        f"the same within noise         {'yes' if same else 'NO':>8}     (their ratio, interleaved: {low:.4f} to {high:.4f})",
    ]
