"""Tuning a kernel of your own: a Triton kernel in a file, its axes, its check. See examples/tune_your_own.py."""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from autotune.clock import Clock, CudaClock, Timer
from autotune.conditions import library_versions
from autotune.executor import local_slots
from autotune.journal import Journal, PoisonList
from autotune.lock import FolderLock
from autotune.measure import FULL, Plan, bind, paired
from autotune.search import Budget, Point, strategy
from autotune.task import Task
from autotune.tools import TRIAL_SECONDS, Tools
from autotune.tuning import Found, Tuning
from kernels.errors import Failure, NoGpu, UsageError
from kernels.gpu import Gpu, detect, unlisted

QUICK_TURNS = 3


@dataclass(frozen=True)
class OwnKernel:
    """A kernel to tune.

    prepare(device, seed, config): makes inputs and returns a call without arguments that launches on the current stream, capturable in a
    CUDA graph. check(device, seed, result): why what the call returned is wrong, or None. axes: name to values; the first of each is the
    default (where that is rejected, the first combination that is not). reject(config): why one is not worth trying, or None.
    """

    prepare: Callable[[str, int, Point], Callable[[], Any]]
    check: Callable[[str, int, Any], str | None]
    axes: Mapping[str, Sequence[Any]]
    reject: Callable[[Point], str | None] = lambda config: None

    def points(self) -> tuple[Point, ...]:
        """Every combination that is not rejected, the default first."""
        every = (dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values()))
        return tuple(point for point in every if self.reject(point) is None)


@dataclass(frozen=True)
class BoundCall:
    """A call and its config."""

    call: Callable[[], Any]
    config: Point = field(hash=False)

    def __call__(self) -> Any:
        """What the kernel returns."""
        return self.call()


@dataclass(frozen=True)
class OwnJob:
    """An own kernel as it travels to the worker: the file it is in, and its name there."""

    file: str
    name: str
    clock: Clock
    device: str

    def find(self) -> OwnKernel:
        """The kernel itself."""
        return load(self.file, self.name)


def load(file: str, name: str) -> OwnKernel:
    """The OwnKernel of that name in a Python file. Raises UsageError where there is none, and what importing the file raises."""
    module_name = f"tuned_{hashlib.sha256(file.encode()).hexdigest()[:12]}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None or not Path(file).is_file():
            raise UsageError(f"{file}: not a Python file")
        module = sys.modules[module_name] = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:  # half a module is none
            del sys.modules[module_name]
            raise
    kernel = getattr(module, name, None)
    if not isinstance(kernel, OwnKernel):
        raise UsageError(f"{file}: there is no OwnKernel named {name}")
    return kernel


def evaluate(job: OwnJob, config: Point) -> float | Failure:
    """Median microseconds per call of a config after its result was found right; else the failure."""
    timer = _timer(job, config, 0)
    if isinstance(timer, Failure):
        return timer
    try:
        return statistics.median(timer.sample() for _ in range(QUICK_TURNS))
    finally:
        timer.close()


def again(job: OwnJob, configs: Sequence[Point], turns: int) -> list[float | Failure]:
    """Median microseconds per call of each config over so many interleaved turns."""
    samples = _interleaved(job, configs, Plan(turns, turns, 0.0, float("inf"), 0), 0)
    return [own if isinstance(own, Failure) else statistics.median(own) for own in samples]


def finals(job: OwnJob, configs: Sequence[Point]) -> list[tuple[float, ...] | Failure]:
    """Paired samples of each config on fresh inputs; what was timed last is checked again."""
    return _interleaved(job, configs, FULL, 1)


def _interleaved(job: OwnJob, configs: Sequence[Point], plan: Plan, seed: int) -> list[tuple[float, ...] | Failure]:
    return paired(lambda config: _timer(job, config, seed), configs, plan, lambda result: _wrong(job, seed, result))


def _timer(job: OwnJob, config: Point, seed: int) -> Timer | Failure:
    if job.device.startswith("cuda:"):
        import torch

        torch.cuda.set_device(job.device)
    call = BoundCall(job.find().prepare(job.device, seed, config), config)
    return _wrong(job, seed, call()) or bind(job.clock, [call], cold=False)


def _wrong(job: OwnJob, seed: int, result: Any) -> Failure | None:
    reason = job.find().check(job.device, seed, result)
    return None if reason is None else Failure("wrong", reason)


def tune(
    file: str, name: str = "KERNEL", *, runs: Path = Path("runs"), search: str | None = None, seconds: float | None = None,
    clock: Clock | None = None, device: str = "cuda:0", gpu: Gpu | None = None, resume: bool = True,
    retry: bool = False,
) -> Found:
    """Tune the OwnKernel `name` of a Python file (`__file__` of your script) on one device, in a child process.

    What was measured is kept in `runs`/own-NAME, where the next call with the same file finds it. seconds: budget. search: its
    name in `autotune.search`, by default local within a budget and exhaustive without. resume: use what was measured before. retry: try
    again what killed its process before. The winner is
    `found.points[found.verdict.winner]`; `found.verdict.better` says whether it beats the default for certain.
    Raises NoGpu where the device's own clock is to be used and there is no device, UsageError where the file has no such kernel or all of
    its configs are rejected.
    """
    index = device.removeprefix("cuda:")
    path, found = str(Path(file).resolve()), detect(int(index) if index.isdecimal() else 0)
    if clock is None and found is None:
        raise NoGpu(f"a GPU is needed to tune a kernel, and this machine has no {device}")
    gpu = gpu or found or unlisted("unknown")
    points = load(path, name).points()
    if not points:
        raise UsageError(f"{file}: {name} has no config: an axis is empty, or all of them are rejected")
    source = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    versions = library_versions()
    job = OwnJob(path, name, clock or CudaClock(), device)
    shape = json.dumps([sorted(points[0])])
    identity = (name, shape, source, versions, job.clock.name, gpu.name)
    trouble = (name, shape, source, versions["driver"], versions["triton"], gpu.name)
    task = Task(name, identity, trouble, points, job, gpu, functions=__name__)
    folder = runs / f"own-{name}"
    with ExitStack() as stack:
        stack.enter_context(FolderLock(folder))
        journal, poison = Journal(folder / "journal.jsonl", resume), PoisonList(folder / "poison.jsonl", retry)
        stack.callback(journal.close)
        stack.callback(poison.close)
        (slot,) = local_slots([device])
        stack.callback(slot.close)
        make = strategy(search or ("exhaustive" if seconds is None else "local"))
        tools = Tools(journal, poison, search=make, trial_seconds=TRIAL_SECONDS, stop=threading.Event())
        return Tuning(task, tools).run(slot, Budget(seconds))


def table(found: Found) -> str:
    """The finalists, fastest first, and what became of the rest."""
    if found.verdict is None:
        return f"nothing tuned: {found.reason}"
    verdict = found.verdict
    lines = []
    for place in sorted(verdict.times, key=lambda place: verdict.times[place]):
        notes = [text for told, text in ((place == 0, "default"), (place == verdict.winner, f"best with {verdict.chance:.0%}")) if told]
        lines.append(f"{verdict.times[place]:9.2f} µs  {dict(found.points[place])}  {', '.join(notes)}".rstrip())
    lines.append(f"{found.evaluated} of {found.of} tried, {len(found.failures)} failed" + "".join(f"\n  {each}" for each in found.failures))
    return "\n".join(lines)
