"""A case as the tuner sees it: plain candidates, what to call for one, and what is known of each before it is run."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

from autotune.job import Job
from autotune.prune import bound_us
from autotune.search import Point, nearest
from autotune.table import shape_distance
from kernels.gpu import Gpu
from kernels.kernel import CompileUnit
from kernels.problem import Op
from kernels.space import Config, config_to_dict
from kernels.tuned import source_hash
from kernels.tuned_table import Entry

NEIGHBOURS = 3
"""So many nearest tuned shapes lend their winners as starts."""
PREDICTED = 3
"""So many candidates that the kernel's own cost model takes for the fastest are starts, too."""
FUNCTIONS = "autotune.candidate"
_NUMBER = re.compile(r"\d+(?:[,.]\d+)*")


def _nothing(point: Point) -> Sequence[CompileUnit]:
    return ()


def _no_bound(point: Point) -> float:
    return 0.0


@dataclass(frozen=True)
class Task:
    """One case to tune.

    label: for people. identity: JSON data that results depend on, other than the candidate. trouble: the same for a candidate that kills:
    driver, compiler, source. points: the candidates, the default first. starts: places to begin a search with.
    functions: module with `evaluate(job, point)`, `again(job, points, turns)` and `finals(job, points)`, called in the worker process with
    `job`, which names its device in a field `device`. rejected: candidates that the space refused, by reason.
    units(point): what to compile ahead. bound_us(point): a time it cannot beat.
    """

    label: str
    identity: tuple[Any, ...]
    trouble: tuple[Any, ...]
    points: tuple[Point, ...]
    job: Any
    gpu: Gpu
    starts: tuple[int, ...] = (0,)
    functions: str = FUNCTIONS
    rejected: Mapping[str, int] = field(default_factory=dict)
    units: Callable[[Point], Sequence[CompileUnit]] = _nothing
    bound_us: Callable[[Point], float] = _no_bound

    def on(self, device: str) -> Any:
        """The job on that device."""
        return replace(self.job, device=device)


@lru_cache(maxsize=64)
def _candidates(catalogue: str, kernel: str, op: Op) -> tuple[Config, ...]:
    """All that a kernel's space names, which is the same for every problem and up to thousands."""
    return tuple(import_module(catalogue).find(kernel, op).space.candidates())


def of_job(job: Job, versions: Mapping[str, str | None], known: Sequence[Entry] = (), functions: str = FUNCTIONS) -> Task:
    """The task of a kernel of the catalogue. known: tuned entries of this and other GPUs, whose winners are good places to begin."""
    kernel, problem = job.find(), job.problem
    allowed = [kernel.default_config(problem, job.gpu)]
    reasons: Counter[str] = Counter()
    for config in _candidates(job.catalogue, job.kernel, problem.op):
        reason = kernel.space.reject(problem, job.gpu, config)
        if reason is None:
            allowed.append(config)
        else:
            reasons[reason] += 1
    rejected: Counter[str] = Counter()
    for reason, count in reasons.items():
        rejected[_NUMBER.sub("#", reason)] += count
    configs = list(dict.fromkeys(allowed))
    points = tuple(config_to_dict(config) for config in configs)
    source = source_hash(kernel)
    return Task(
        label=f"{kernel.name} {problem}",
        identity=(kernel.name, str(problem), source, dict(versions), job.clock.name),
        trouble=(kernel.name, str(problem), source, versions.get("driver"), versions.get("triton"), job.gpu.name),
        points=points, job=job, gpu=job.gpu, functions=functions, rejected=rejected,
        starts=starts(job, points, known),
        units=lambda point: kernel.compile_units(problem, kernel.space.from_dict(point)),
        bound_us=partial(bound_us, problem, job.gpu),
    )


def starts(job: Job, points: Sequence[Point], known: Sequence[Entry]) -> tuple[int, ...]:
    """Places to begin with: the default, then in turns what won for the nearest tuned shapes and what the cost model likes best."""
    from autotune.predict import likely  # here: it needs the kernels' modules, and the command says what to install where torch is missing

    kernel = job.find()
    lent = nearest(points, winners(job, known))
    predicted = likely(kernel.name, job.problem, job.gpu, [kernel.space.from_dict(point) for point in points], PREDICTED)
    turns = (place for pair in itertools.zip_longest(lent, predicted) for place in pair if place is not None)
    return tuple(dict.fromkeys([0, *turns]))


def winners(job: Job, known: Sequence[Entry], count: int = NEIGHBOURS) -> list[Point]:
    """Configs that won for the nearest other shapes of this kernel, nearest first."""
    problem = job.problem
    shape = (problem.out_features, problem.in_features, problem.tokens)

    def away(entry: Entry) -> tuple[bool, float]:
        other = (entry.out_features, entry.in_features, entry.tokens)
        return entry.sparsity != str(problem.sparsity), shape_distance(shape, other)

    own = [entry for entry in known if (entry.kernel, entry.op) == (job.kernel, problem.op) and not entry.stays]
    return [entry.config for entry in sorted(own, key=away)[:count]]
