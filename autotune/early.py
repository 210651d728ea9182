"""What a run will compile first, found before torch is imported: a process of its own plans while the others start.

Importing torch takes seconds, and planning needs nothing of it but the names of its types: the kernels' spaces, signatures and options
are plain values. So a child process puts those names in its place, enumerates the first candidates as the run itself does some seconds
later, and hands their compile units over. That is a forecast: the run asks for its own units, and a unit that it does not ask for
has cost its compilation and nothing else. Where planning asks torch for more than a type, the child ends with that error, and
compilation begins when the run has planned for itself.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from autotune import options as arguments
from autotune.clock import CudaClock
from autotune.compile import pickled
from autotune.pool import CompilePool
from autotune.search import strategy
from autotune.task import of_job
from autotune.tuned import all_known
from autotune.tuning import ahead
from autotune.worker import Worker
from kernels.errors import Failure, TerSparseError
from kernels.gpu import Gpu
from kernels.problem import Problem

PER_PROCESS = 8
"""Units handed over for each compiling process: more than they finish until the run has planned for itself."""
PLAN_SECONDS = 60.0
SIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8, "float8_e4m3fn": 1, "int8": 1, "uint8": 1, "int16": 2, "int32": 4,
         "int64": 8, "bool": 1}


@dataclass(frozen=True)
class Type:
    """A torch.dtype by name."""

    name: str
    itemsize: int
    is_floating_point: bool

    def __repr__(self) -> str:
        return f"torch.{self.name}"


def stand_in() -> None:
    """Let this process take a module with torch's types, and no more, for torch. For a process that only plans, never for one that runs.

    Raises RuntimeError where torch itself has been imported.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch is imported in this process already")
    module = ModuleType("torch", stand_in.__doc__)
    for name, size in SIZES.items():
        setattr(module, name, Type(name, size, name.startswith(("float", "bfloat"))))
    for name in ("Tensor", "dtype"):
        setattr(module, name, type(name, (), {}))
    sys.modules["torch"] = module


@dataclass(frozen=True)
class Plan:
    """What the forecast is about, as it travels: the options, problems and GPU of a run. table: of tuned configs. processes: that compile.
    brief, evaluations: see `autotune.tools.Tools`."""

    options: argparse.Namespace
    wanted: Sequence[Problem]
    gpu: Gpu
    catalogue: str
    table: Path
    processes: int
    brief: bool
    evaluations: float


def units(plan: Plan) -> Iterator[tuple[int, bytes]]:
    """A job of that child: (order, pickled unit) of the first candidates, as `Tuning.compile_ahead` will submit them."""
    stand_in()
    options, left = plan.options, PER_PROCESS * plan.processes
    search, known = strategy(arguments.search(options)), all_known(plan.table)
    for order, job in enumerate(arguments.jobs(options, plan.wanted, plan.gpu, CudaClock(), plan.catalogue)):
        task = of_job(job, {}, known)
        for later, place in ahead(search(task.points, task.starts, 0), plan.processes, plan.brief, plan.evaluations):
            for unit in task.units(task.points[place]):
                if not left:
                    return
                left -= 1
                yield order + later, pickled(unit)


class Forecast:
    """Hands a plan's first units to the compiling processes, from a child process that ends when it has; `close` ends it sooner."""

    def __init__(self, plan: Plan, pool: CompilePool) -> None:
        self._worker = Worker()
        self._worker.begin()
        self._thread = threading.Thread(target=self._feed, args=(plan, pool), daemon=True)
        self._thread.start()

    def _feed(self, plan: Plan, pool: CompilePool) -> None:
        with self._worker, contextlib.suppress(TerSparseError, OSError):  # what is wrong the run itself says
            for item in self._worker.stream("autotune.early:units", (plan,), PLAN_SECONDS):
                if not isinstance(item, Failure):
                    pool.submit_pickled(item[1], item[0])

    def close(self) -> None:
        """End the child."""
        while self._thread.is_alive():
            self._worker.kill()
            self._thread.join(0.1)
