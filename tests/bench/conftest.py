"""The suites' cases as benchmarks: which cases, and where they are measured."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module

import pytest
import torch

from autotune.command import Parser
from autotune.measure import FULL, QUICK, Plan
from kernels.errors import TerSparseError
from kernels.gpu import by_name, claim, detect
from suites import arguments, catalogue
from suites.bench import Bench, Fault
from suites.case import Case, asked
from suites.executor import ON_DEVICE, DeviceArguments, Executor, Local, Worker, catalogued, measure_case
from suites.on_gpu import Lab
from suites.record import CaseRecord
from suites.session import only


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tersparse")
    told = "which cases: --suite, --model, --shape … of suites.run, or --quick (default: --quick)"
    group.addoption("--cases", default="--quick", metavar="ARGUMENTS", help=told)
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


def chosen(config: pytest.Config) -> tuple[argparse.Namespace, tuple[Case, ...]]:
    """What --cases asks for; pytest's UsageError for what is no choice of interleaved cases."""
    parser = Parser(prog="--cases", add_help=False)
    arguments.add_choice(parser)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", nargs="+", default=[], choices=("ternary", "uniform", "zero"))
    parser.set_defaults(state="interleaved")
    try:
        args = parser.parse_args(shlex.split(config.getoption("--cases", default="--quick")))
        cases = catalogue.plan(arguments.selection(args))
        lab = the_lab(config)
        only(lab.kernels_for if lab else catalogued(), args.kernel, cases)
    except (TerSparseError, ValueError) as error:  # shlex: a quotation that does not end
        raise pytest.UsageError(f"--cases: {error}") from None
    return args, tuple(case for case in cases if not case.problem.refusal)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    lab = the_lab(metafunc.config)
    args, cases = chosen(metafunc.config)
    every = lab.kernels_for if lab else catalogued()
    pairs = [
        (case, kernel.name) for case in cases for kernel in every(case.problem.op) if asked(kernel.name, args.kernel, case.suite)
    ]
    metafunc.parametrize(("case", "kernel"), pairs, ids=[f"{case.key}-{kernel}" for case, kernel in pairs])


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Iterator[Measured]:
    lab, (args, _) = the_lab(request.config), chosen(request.config)
    plan = (lab.plan if lab else None) or (QUICK if args.quick else FULL)
    executor: Executor
    if lab is not None:
        executor = Local(Bench(by_name("h200"), lab.clock, lab.monitor, lab.kernels_for, "cpu", only=args.kernel))
    else:
        if not torch.cuda.is_available():
            pytest.skip("GPU times need a GPU, and there is none here")
        gpu = claim(args.gpu, detect(args.device), required=True)
        executor = Worker(ON_DEVICE, DeviceArguments(gpu, args.device, "", plan.turn_us, tuple(args.kernel)))
    yield Measured(executor, plan)
    executor.close()
