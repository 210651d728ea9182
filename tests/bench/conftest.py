"""The suites' cases as benchmarks: which cases, and where they are measured."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module

import pytest
import torch

from autotune.measure import FULL, QUICK, Plan
from kernels.errors import TerSparseError
from kernels.gpu import Gpu, by_name, detect
from kernels.kernel import Kernel
from kernels.problem import Op
from suites import arguments, catalogue
from suites.bench import Bench, Fault
from suites.case import Case, asked
from suites.executor import ON_DEVICE, DeviceArguments, Executor, Local, Worker, catalogued, measure_case
from suites.on_gpu import Lab
from suites.record import CaseRecord


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tersparse")
    group.addoption("--cases", default="--quick", metavar="ARGUMENTS", help="which cases, as arguments of suites.run (default: --quick)")
    group.addoption("--lab", metavar="MODULE:NAME", help="a function that makes the Lab in the place of a device, for tests")


@dataclass
class Measured:
    """Cases are measured when the first of their kernels is asked for: all of them together, interleaved, as the suites do."""

    executor: Executor
    plan: Plan
    records: dict[str, CaseRecord | Fault] = field(default_factory=dict)

    def case(self, case: Case) -> CaseRecord:
        """The record; fails the test where the process that measured died."""
        if case.key not in self.records:
            try:
                self.records[case.key] = measure_case(self.executor, case, self.plan)
            except Fault as fault:
                self.records[case.key] = fault
        found = self.records[case.key]
        if isinstance(found, Fault):
            pytest.fail(str(found), pytrace=False)
        return found


def the_lab(config: pytest.Config) -> Lab | None:
    name = config.getoption("--lab", default=None)
    if name is None:
        return None
    module, _, function = name.partition(":")
    lab: Lab = getattr(import_module(module), function)()
    return lab


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    lab = the_lab(metafunc.config)
    try:
        args = arguments.parser().parse_args(shlex.split(metafunc.config.getoption("--cases", default="--quick")))
        cases = catalogue.plan(arguments.selection(args))
    except TerSparseError as error:
        raise pytest.UsageError(f"--cases: {error}") from None

    def kernels(op: Op) -> Sequence[Kernel]:
        return lab.kernels_for(op) if lab else catalogued()(op)

    pairs = [
        (case, kernel.name) for case in cases if not case.problem.refusal
        for kernel in kernels(case.problem.op) if asked(kernel.name, args.kernel, case.suite)
    ]
    metafunc.parametrize(("case", "kernel"), pairs, ids=[f"{case.key}-{kernel}" for case, kernel in pairs])


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Iterator[Measured]:
    lab, index = the_lab(request.config), 0
    args = arguments.parser().parse_args(shlex.split(request.config.getoption("--cases", default="--quick")))
    plan = (lab.plan if lab else None) or (QUICK if args.quick else FULL)
    if lab is None and not torch.cuda.is_available():
        pytest.skip("GPU times need a GPU, and there is none here")
    gpu: Gpu = by_name("h200") if lab else (detect(index) or by_name("h200"))
    executor: Executor
    if lab is not None:
        executor = Local(Bench(gpu, lab.clock, lab.monitor, lab.kernels_for, "cpu", only=args.kernel))
    else:
        executor = Worker(ON_DEVICE, DeviceArguments(gpu, index, "", plan.turn_us, tuple(args.kernel)))
    yield Measured(executor, plan)
    executor.close()
