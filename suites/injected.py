"""A kernel that is really slower: its own Triton code with a delay inside, loaded in the measuring process, for testing the gate."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from autotune.measure import Plan, interleaved
from kernels.errors import Failure, UsageError
from kernels.gpu import Gpu
from kernels.inputs import Inputs, make_inputs
from kernels.kernel import Kernel, Outputs, Prepared
from kernels.problem import Problem
from kernels.space import Config
from kernels.tuned import lookup
from suites.case import Case
from suites.executor import DeviceArguments, Local, on_device
from suites.record import CaseRecord
from suites.statistics import at_full_clock

SLOWED = "suites.injected:slowed_device"
TRIES = 4
CLOSE = 0.15
"""A delay that comes to its share within this much of it is close enough; what it really came to is recorded."""
CYCLES_PER_US = 1500.0
_COMPARED = Plan(rounds=8, max_rounds=8, relative_width=0.0, seconds=1.0, call_samples=0)


@dataclass(frozen=True)
class SlowedCase(Case):
    """A case with one kernel, by name, slowed by a share.

    cycles, came_to: the delay and what it came to, where that is known already. guess: the delay to try first, where another share tells.
    """

    kernel: str = ""
    share: float = 0.0
    cycles: int = 0
    came_to: float = 0.0
    guess: int = 0

    @classmethod
    def of(
        cls, case: Case, kernel: str, share: float, known: CaseRecord | None = None, other: CaseRecord | None = None,
    ) -> SlowedCase:
        """That case. known: its record with the same delay. other: with another one."""
        cycles, came_to = _delay(known, kernel)
        elsewhere, came_there = _delay(other, kernel)
        return cls(
            case.suite, case.model, case.layer, case.problem, case.cache, case.state, case.data, kernel, share, cycles, came_to,
            round(elsewhere * share / came_there) if came_there > 0 else 0,
        )


def _delay(record: CaseRecord | None, kernel: str) -> tuple[int, float]:
    """The cycles that a record's kernel was slowed by, and what they came to; zeros where it was not."""
    result = record.result(kernel) if record else None
    notes = result.notes if result else {}
    return int(notes.get("injected_cycles", 0)), float(notes.get("injected_measured", 0.0))


def function_of(kernel: Kernel, problem: Problem, gpu: Gpu) -> Any:
    """The one Triton function that the kernel launches for this problem, or None for a library or a kernel of several."""
    if kernel.resolve is not None:
        return None
    config, _ = lookup(kernel, problem, gpu)
    functions = {id(unit.function): unit.function for unit in kernel.compile_units(problem, config)}
    return next(iter(functions.values())) if len(functions) == 1 else None


def injectable(kernel: Kernel, problem: Problem, gpu: Gpu) -> bool:
    """Whether a delay can be put into this kernel: one plain Triton function (the delay is none of Gluon's)."""
    function = function_of(kernel, problem, gpu)
    return function is not None and "gluon" not in type(function).__module__


def delayed_source(source: str, function: str, cycles: int) -> str:
    """A module's text, with a wait at the start of the Triton function of that name. UsageError where it has none."""
    tree = ast.parse(source)
    found = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function), None)
    if found is None:
        raise UsageError(f"no function {function} to slow")
    first = found.body[1] if ast.get_docstring(found) is not None and len(found.body) > 1 else found.body[0]
    lines = source.splitlines()
    lines.insert(first.lineno - 1, " " * first.col_offset + f"wait_cycles({cycles})")
    future = [node.end_lineno or 0 for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    lines.insert(max(future, default=0), "from suites.waiting import wait_cycles")
    return "\n".join(lines) + "\n"


@contextmanager
def delayed(function: Any, cycles: int) -> Iterator[Any]:
    """A copy of a Triton function that waits so many cycles in every program before it does anything else."""
    original = sys.modules[function.fn.__module__]
    with tempfile.TemporaryDirectory(prefix="tersparse-") as folder:
        path = Path(folder) / f"{original.__name__.rpartition('.')[2]}_{cycles}.py"
        path.write_text(delayed_source(inspect.getsource(original), function.fn.__name__, cycles), encoding="utf-8")
        yield getattr(_load(path), function.fn.__name__)


def slowed(kernel: Kernel, function: Any, copy: Any) -> Kernel:
    """The kernel, launching the copy in the place of the function. Others that launch the function are left alone."""
    def prepare(problem: Problem, inputs: Inputs, config: Config) -> Prepared:
        prepared = kernel.prepare(problem, inputs, config)

        def run() -> Outputs:
            holders = [
                (module, name) for module in list(sys.modules.values()) if module.__name__.startswith("kernels.")
                for name, value in vars(module).items() if value is function
            ]
            try:
                for module, name in holders:
                    setattr(module, name, copy)
                return prepared.run()
            finally:
                for module, name in holders:
                    setattr(module, name, function)

        return replace(prepared, run=run)

    return replace(kernel, prepare=prepare, resolve=lambda problem, inputs, gpu: lookup(kernel, problem, gpu)[0])


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tersparse_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass
class Slowed(Local):
    """Measures slowed cases; how long a delay has to be is found by trying. The kernel's result says what it really came to."""

    def case(self, case: Case, plan: Plan, excluded: dict[str, Failure]) -> CaseRecord:
        """The record of one `SlowedCase`. UsageError where its kernel cannot be slowed."""
        named = case.kernel if isinstance(case, SlowedCase) else ""
        kernel = next((own for own in self.bench.kernels(case.problem.op) if own.name == named), None)
        function = function_of(kernel, case.problem, self.bench.gpu) if kernel else None
        if not isinstance(case, SlowedCase) or kernel is None or function is None:
            raise UsageError(f"{named}: not a kernel that can be slowed")
        cycles, came_to = (case.cycles, case.came_to) if case.cycles else self._cycles(kernel, function, case)
        with delayed(function, cycles) as copy:
            slow = slowed(kernel, function, copy)
            bench = replace(self.bench, kernels=lambda op: [slow if own is kernel else own for own in self.bench.kernels(op)])
            record = Local(bench, self.run, weights=self.weights).case(case, plan, excluded)
        notes = {"injected": case.share, "injected_measured": round(came_to, 5), "injected_cycles": cycles}
        results = tuple(
            replace(result, notes={**result.notes, **notes}) if result.kernel == named else result for result in record.results
        )
        return replace(record, results=results)

    def _cycles(self, kernel: Kernel, function: Any, case: SlowedCase) -> tuple[int, float]:
        """The delay that comes nearest to the share, and the share that it comes to, interleaved with the kernel as it is."""
        inputs, (config, _) = make_inputs(case.problem, self.bench.device), lookup(kernel, case.problem, self.bench.gpu)

        def timer(made: Kernel) -> Any:
            return self.bench.clock.timer([made.prepare(case.problem, inputs, config).run], cold=False)

        plain, best = timer(kernel), (0, 0.0)
        cycles = case.guess or max(1, round(case.share * plain.sample() * CYCLES_PER_US))
        for _ in range(TRIES):
            with delayed(function, cycles) as copy:
                other = timer(slowed(kernel, function, copy))
            self.bench.warm()
            taken = interleaved({"plain": plain, "slowed": other}, _COMPARED)
            other.close()
            logs = np.log([taken["plain"].kernel_us, taken["slowed"].kernel_us])
            came_to = math.expm1(float(np.median((logs[1] - logs[0])[at_full_clock(logs)])))
            if not best[0] or abs(came_to - case.share) < abs(best[1] - case.share):
                best = cycles, came_to
            if abs(came_to - case.share) <= CLOSE * case.share:
                break
            cycles = max(1, round(cycles * min(4.0, case.share / max(came_to, case.share / 4))))
        plain.close()
        return best


def slowed_device(device: DeviceArguments, mark: Callable[[str], None]) -> Slowed:
    """The executor of a child that measures slowed kernels on a CUDA device."""
    local = on_device(device, mark)
    return Slowed(local.bench, local.run, local.measured_roofs)
