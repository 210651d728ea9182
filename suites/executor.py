"""Where cases are measured: in this process, or in a child that may die without taking the run with it."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from autotune import worker
from autotune.measure import Plan
from kernels.errors import Failure
from kernels.gpu import Gpu
from kernels.kernel import Kernel
from kernels.problem import Op
from suites.bench import Bench, Fault
from suites.case import Case, asked
from suites.record import CaseRecord, RoofRecord
from suites.runner import WeightStore, run_case
from suites.warming import CAP_W, Warmer

if TYPE_CHECKING:
    import torch

CASE_SECONDS = 400.0
"""Seconds that a case may take, library searches and compilation included, before the kernel in flight counts as hanging."""
MARK_BYTES = 128


class Executor(Protocol):
    """Measures cases and roofs. `case` and `roofs` raise Fault when the process that measures is lost; the next call finds a new one."""

    def case(self, case: Case, plan: Plan, excluded: dict[str, Failure]) -> CaseRecord:
        """The record of one case, without the excluded kernels."""

    def roofs(self) -> list[RoofRecord]:
        """The ceilings of the device."""

    def fresh(self) -> None:
        """Let a fresh process measure what comes next."""

    def close(self) -> None:
        """End the child, if there is one."""


@dataclass
class Local:
    """Measures in this process, for tests and fakes: a lost device cannot be helped here. Roofs are whatever `measured_roofs` gives."""

    bench: Bench
    run: str = ""
    measured_roofs: Callable[[], list[RoofRecord]] = list
    weights: WeightStore = field(default_factory=WeightStore)

    def case(self, case: Case, plan: Plan, excluded: dict[str, Failure]) -> CaseRecord:
        """The record of one case."""
        return run_case(case, self.bench, plan, self.weights, self.run, excluded)

    def roofs(self) -> list[RoofRecord]:
        """The ceilings of the device."""
        return self.measured_roofs()

    def fresh(self) -> None:
        """This process stays; only its weights are made anew."""
        self.weights = WeightStore()

    def close(self) -> None:
        """Nothing to end."""


def measure_case(executor: Executor, case: Case, plan: Plan) -> CaseRecord:
    """The record of a case, whatever dies on the way.

    A kernel that takes the device with it is recorded as failed, and the case is run again without it.
    Raises Fault when the case cannot be measured even so (its inputs alone kill the process).
    """
    excluded: dict[str, Failure] = {}
    while True:
        try:
            return executor.case(case, plan, excluded)
        except Fault as fault:
            if fault.kernel is None or fault.kernel in excluded:
                raise
            excluded[fault.kernel] = fault.failure


class Worker:
    """Measures in a child process, which is killed when it hangs and born again when it died.

    factory: "module:name" of a function (arguments, mark) that makes the child's executor. seconds: the most that one case may take.
    """

    def __init__(self, factory: str, arguments: Any, seconds: float = CASE_SECONDS) -> None:
        self._factory, self._arguments, self._seconds = factory, arguments, seconds
        self._process = worker.Worker()
        self._mark = tempfile.NamedTemporaryFile(prefix="tersparse-")  # noqa: SIM115  closed with the child

    def case(self, case: Case, plan: Plan, excluded: dict[str, Failure]) -> CaseRecord:
        """The record of one case, from the child."""
        record: CaseRecord = self._ask((case, plan, excluded))
        return record

    def roofs(self) -> list[RoofRecord]:
        """The ceilings of the device, from the child."""
        roofs: list[RoofRecord] = self._ask(())
        return roofs

    def fresh(self) -> None:
        """End the child; the next question finds a new one."""
        self._process.close()

    def close(self) -> None:
        """End the child and all that it started."""
        self._process.close()
        self._mark.close()

    def _ask(self, question: tuple[Any, ...]) -> Any:
        Path(self._mark.name).write_bytes(b"")
        arguments = (self._factory, self._arguments, self._mark.name, question)
        answer = self._process.call("suites.executor:answer", arguments, self._seconds)
        if isinstance(answer, Failure):
            answer = Lost(None, answer)
        if not isinstance(answer, Lost):
            return answer
        self._process.close()
        kernel, step = in_flight(Path(self._mark.name).read_bytes())
        failure = Failure(answer.failure.stage, f"{answer.failure.reason} (in step: {step})")
        raise Fault(answer.kernel or kernel, failure)


@dataclass(frozen=True)
class Lost:
    """What a child answers when its device is lost: by which kernel (None: the one in flight), and how."""

    kernel: str | None
    failure: Failure


def in_flight(mark: bytes) -> tuple[str | None, str]:
    """Kernel and step of a mark "<kernel>\t<step>"; the kernel is None where none was running."""
    kernel, _, step = mark.decode(errors="replace").rstrip().partition("\t")
    return kernel or None, step or "start"


def answer(factory: str, arguments: Any, mark: str, question: tuple[Any, ...]) -> CaseRecord | list[RoofRecord] | Lost:
    """The child's side of `Worker`: a case's record, or the roofs for an empty question."""
    executor = _serving(factory, arguments, mark)
    try:
        return executor.case(*question) if question else executor.roofs()
    except Fault as fault:
        return Lost(fault.kernel, fault.failure)


@functools.cache
def _serving(factory: str, arguments: Any, mark: str) -> Executor:
    """The child's executor, made once. The mark is a file: it outlives whatever happens to the child."""
    file = os.open(mark, os.O_WRONLY)
    module, _, name = factory.partition(":")
    made: Executor = getattr(import_module(module), name)(arguments, lambda text: os.pwrite(file, text.encode().ljust(MARK_BYTES), 0))
    return made


@dataclass(frozen=True)
class DeviceArguments:
    """What a child needs to measure. index: of the CUDA device. run: its id. turn_us: the plan's. only: kernels' names, none: all.

    warm: whether a device that rested is loaded before the rounds of a case.
    """

    gpu: Gpu = field(hash=False)
    index: int
    run: str
    turn_us: float
    only: tuple[str, ...] = ()
    warm: bool = False


ON_DEVICE = "suites.executor:on_device"


def on_device(arguments: DeviceArguments, mark: Callable[[str], None]) -> Local:
    """The executor of a child that measures on a CUDA device."""
    import torch

    from autotune.clock import CudaClock
    from autotune.conditions import device_facts, nvml_monitor
    from autotune.roofs import measure_roofs

    torch.cuda.set_device(arguments.index)
    clock, monitor = CudaClock(arguments.turn_us), nvml_monitor(arguments.index)
    bench = Bench(arguments.gpu, clock, monitor, catalogued(arguments.only), "cuda", mark, arguments.only)
    if arguments.warm:
        cap = device_facts(arguments.index).get("power_cap_w")
        load = _load(torch.device("cuda", arguments.index))
        bench = replace(bench, warm=Warmer(monitor, load, cap if isinstance(cap, float) else CAP_W))

    def roofs() -> list[RoofRecord]:
        mark("\troofs")
        before = monitor.snapshot()
        measured = measure_roofs(clock)
        conditions = {"before": before, "after": monitor.snapshot()}
        return [RoofRecord(arguments.run, roof.name, roof.value, roof.unit, tuple(roof.samples), conditions) for roof in measured]

    return Local(bench, arguments.run, roofs)


def _load(device: torch.device) -> Callable[[], None]:
    """What keeps a device busy for about 3 ms; returns when it is done."""
    import torch

    factors = torch.zeros(2, 4096, 4096, dtype=torch.bfloat16, device=device).normal_()
    product = torch.empty_like(factors[0])

    def load() -> None:
        for _ in range(16):
            torch.mm(factors[0], factors[1], out=product)
        torch.cuda.synchronize(device)

    return load


def catalogued(only: Sequence[str] = ()) -> Callable[[Op], Sequence[Kernel]]:
    """The catalogue's kernels by op, or those of these names."""
    from kernels.catalogue import kernels_for

    return lambda op: [kernel for kernel in kernels_for(op) if asked(kernel.name, only)]
