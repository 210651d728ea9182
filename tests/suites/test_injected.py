"""Kernels that are really slower: the delay is in their machine code, and nobody else launches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from autotune.clock import FakeCall, FakeClock
from autotune.compile import Compiled, compile_unit
from autotune.conditions import FakeMonitor
from kernels.catalogue import find
from kernels.errors import UsageError
from kernels.gpu import by_name
from kernels.inputs import Inputs, make_inputs
from kernels.kernel import Kernel, Outputs, Prepared
from kernels.problem import Problem, Sparsity
from kernels.space import Config, config_to_dict
from kernels.ternary_gemm import dense_triton
from kernels.tuned import lookup
from suites.bench import Bench
from suites.case import Case
from suites.injected import Slowed, SlowedCase, delayed, delayed_source, function_of, injectable, slowed
from tests.suites.fakes import PLAN, gemm

H200 = by_name("h200")
PROBLEM = Problem("gemm", 256, 256, 64, Sparsity(2, 4))
DENSE = find("dense-triton", "gemm")


def test_the_wait_comes_first_in_the_named_function() -> None:
    source = (
        "\"\"\"Doc.\"\"\"\nfrom __future__ import annotations\n\ndef other(x):\n    return x\n\n"
        "def kernel(x):\n    \"\"\"Its own.\"\"\"\n    y = x\n"
    )
    assert delayed_source(source, "kernel", 77) == (
        '"""Doc."""\nfrom __future__ import annotations\nfrom suites.waiting import wait_cycles\n\ndef other(x):\n    return x\n\n'
        'def kernel(x):\n    """Its own."""\n    wait_cycles(77)\n    y = x\n'
    )
    assert delayed_source("def kernel(x):\n    y = x\n", "kernel", 5).splitlines()[2] == "    wait_cycles(5)"
    with pytest.raises(UsageError, match="no function another"):
        delayed_source(source, "another", 1)


def test_which_kernels_can_be_slowed() -> None:
    assert injectable(DENSE, PROBLEM, H200)
    assert not injectable(find("dense-bf16", "gemm"), PROBLEM, H200)
    assert not injectable(find("cusparselt-int8-scaled", "gemm"), PROBLEM, H200)


def test_only_the_slowed_kernel_launches_the_copy() -> None:
    seen: list[object] = []

    def prepare(problem: Problem, inputs: Inputs, config: Config) -> Prepared:
        def run() -> Outputs:
            seen.append(dense_triton.dense_gemm)
            return {}

        return Prepared(run)

    kernel: Kernel = replace(DENSE, prepare=prepare)
    function = function_of(DENSE, PROBLEM, H200)
    inputs, config = make_inputs(PROBLEM), lookup(DENSE, PROBLEM, H200)[0]
    with delayed(function, 9) as copy:
        slow = slowed(kernel, function, copy)
        slow.prepare(PROBLEM, inputs, config).run()
        kernel.prepare(PROBLEM, inputs, config).run()
        assert slow.resolve is not None
        assert slow.resolve(PROBLEM, inputs, H200) == config
    assert seen == [copy, function]
    assert dense_triton.dense_gemm is function


@pytest.mark.compile
def test_the_delay_is_in_the_machine_code() -> None:
    function = function_of(DENSE, PROBLEM, H200)
    (unit,) = DENSE.compile_units(PROBLEM, lookup(DENSE, PROBLEM, H200)[0])
    plain = compile_unit(unit, H200)
    with delayed(function, 1234) as copy:
        slow = compile_unit(replace(unit, function=copy), H200)
    assert isinstance(plain, Compiled)
    assert isinstance(slow, Compiled)
    assert slow.spills == 0
    assert slow.instructions["CS2R"] == plain.instructions["CS2R"] + 2, "two reads of the clock"
    assert slow.instructions["BRA"] == plain.instructions["BRA"] + 1, "and a loop"
    assert slow.instructions["IGMMA"] == plain.instructions["IGMMA"]


@pytest.mark.gpu
def test_a_delay_takes_its_time_and_changes_no_number() -> None:
    from autotune.clock import CudaClock

    problem = Problem("gemm", 4096, 4096, 512, Sparsity(2, 4))
    inputs, (config, _) = make_inputs(problem, "cuda"), lookup(DENSE, problem, H200)
    plain, function = DENSE.prepare(problem, inputs, config), function_of(DENSE, problem, H200)
    clock = CudaClock(1000.0)
    with delayed(function, 20_000) as copy:
        slow = slowed(DENSE, function, copy).prepare(problem, inputs, config)
        assert torch.equal(slow.run()["y"], plain.run()["y"])
        times = [clock.timer([made.run], cold=False).sample() for made in (plain, slow)]
    assert 8.0 < times[1] - times[0] < 100.0, "20,000 cycles are at least 10 µs, in each of a few waves"


def test_the_delay_is_found_by_timing_it() -> None:
    """A kernel that takes 50 µs, and 1.3 ns for every cycle that the function it launches waits."""

    def prepare(problem: Problem, inputs: Inputs, config: Config) -> Prepared:
        right = gemm("dense-triton", 50.0).prepare(problem, inputs, config)

        def run() -> Outputs:
            launched.append(dense_triton.dense_gemm.fn.__module__)
            return right.run()

        return replace(right, run=run)

    def cost(call: Callable[[], object]) -> float:
        if isinstance(call, FakeCall):
            return call.cost_us
        call()
        name, _, cycles = launched[-1].rpartition("_")
        return 50.0 + (1.3e-3 * int(cycles) if name.startswith("tersparse") else 0.0)

    launched: list[str] = []
    clock = FakeClock(cost, noise=1e-4)
    kernels = [replace(DENSE, prepare=prepare), gemm("theirs", 100.0, "baseline")]
    bench = Bench(H200, clock, FakeMonitor(lambda: clock.seconds), lambda op: kernels, "cpu")
    case = Case("prefill", "m", "Wo", Problem("gemm", 16, 32, 4, Sparsity(2, 4)), "hot")
    record = Slowed(bench).case(SlowedCase.of(case, "dense-triton", 0.05), PLAN, {})
    slow, theirs = record.results
    assert (slow.status, theirs.status) == ("ok", "ok")
    assert slow.notes["injected"] == 0.05
    assert slow.notes["injected_measured"] == pytest.approx(0.05, rel=0.15)
    assert sum(slow.samples_us) / len(slow.samples_us) == pytest.approx(50.0 * (1 + slow.notes["injected_measured"]), rel=1e-3)
    assert "injected" not in theirs.notes
    assert slow.config == config_to_dict(lookup(DENSE, case.problem, H200)[0])
    tries = len(launched)
    again = Slowed(bench).case(SlowedCase.of(case, "dense-triton", 0.05, record), PLAN, {})
    assert again.results[0].notes == slow.notes, "what is known is not tried again"
    assert len(launched) - tries < tries
    for named in (SlowedCase.of(case, "theirs", 0.05), case):
        with pytest.raises(UsageError, match="not a kernel that can be slowed"):
            Slowed(bench).case(named, PLAN, {})
