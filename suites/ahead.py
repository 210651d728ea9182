"""Compiling ahead: every Triton kernel of the planned cases runs once, on few tokens, in processes on all cores, before anything is timed.

What they compile lands in Triton's own cache, where the measuring process finds it. The 708 default cases need some 900
compilations of seconds each; a script of this kind needed 33 s for 805 of them in 14 processes beside an H200 (2026-11-22). What fails
here fails again where it is measured, and is recorded there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autotune.worker import Worker
from kernels.errors import Failure
from kernels.gpu import Gpu
from kernels.kernel import CompileUnit, Kernel
from kernels.problem import Op, Problem
from kernels.tuned import lookup
from suites.case import Case

TOKENS = 256
"""Most tokens that a kernel is run on here: its machine code does not depend on more of them."""
FEW = 16
"""Fewer kernels than this are compiled when they are measured: starting processes takes longer."""
MEMORY_GB = 8
"""Device memory that one process may need."""
SECONDS = 400.0


@dataclass(frozen=True)
class Compilation:
    """A kernel, by name, on the smallest problem that it compiles alike for."""

    kernel: str
    problem: Problem


def compilations(cases: Sequence[Case], kernels: Callable[[Op], Sequence[Kernel]], gpu: Gpu) -> list[Compilation]:
    """What the cases make Triton compile, each once; libraries, and kernels that search for themselves, are left out."""
    found: dict[object, Compilation] = {}
    for problem in dict.fromkeys(case.problem for case in cases if not case.problem.refusal):
        for kernel in kernels(problem.op):
            if kernel.resolve is not None or kernel.unavailable(problem, gpu) is not None:
                continue
            config, _ = lookup(kernel, problem, gpu)
            units = kernel.compile_units(problem, config)
            if not units:
                continue
            # A GEMM compiles what its units say; other ops launch more, which depends on the width and the few tokens too.
            few = min(problem.tokens, TOKENS), problem.tokens % 16
            width = () if problem.op == "gemm" else (problem.in_features, *few, problem.sparsity)
            key = (kernel.name, problem.op, width, tuple(map(_identity, units)))
            if key not in found or problem.out_features < found[key].problem.out_features:
                found[key] = Compilation(kernel.name, problem)
    return list(found.values())


def _identity(unit: CompileUnit) -> tuple[object, ...]:
    """What tells one compilation of a unit from another."""
    values = (*sorted(unit.constexprs.items()), *sorted(unit.options.items()), *sorted(unit.since.items()))
    return (unit.function.__name__, tuple(sorted(unit.signature.items())), repr(values), unit.divisible)


def compile_ahead(work: Sequence[Compilation], gpu: Gpu, index: int, processes: int | None = None) -> tuple[int, int]:
    """Compile on all cores, as far as device memory goes. Returns how many kernels ran, and how many did not."""
    cores = len(os.sched_getaffinity(0))
    count = max(1, min(processes or max(1, cores - 1), gpu.memory_gb // MEMORY_GB, len(work)))
    shares = [tuple(work[first::count]) for first in range(count)]
    answers: list[tuple[int, int]] = [(0, len(share)) for share in shares]

    def run(number: int) -> None:
        with Worker() as worker:
            answer = worker.call("suites.ahead:compile_share", (shares[number], gpu, f"cuda:{index}"), SECONDS)
        if not isinstance(answer, Failure):
            answers[number] = answer

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done for done, _ in answers), sum(failed for _, failed in answers)


def compile_share(share: Sequence[Compilation], gpu: Gpu, device: str) -> tuple[int, int]:
    """The child's side: run every kernel once; how many ran, and how many did not."""
    import torch

    from kernels.catalogue import find
    from kernels.inputs import make_inputs

    done, on_cuda = 0, torch.device(device).type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device)  # before anything opens a context on device 0
    for item in share:
        kernel, few = find(item.kernel, item.problem.op), item.problem.with_(tokens=min(item.problem.tokens, TOKENS))
        config, _ = lookup(kernel, item.problem, gpu)
        try:
            kernel.prepare(few, make_inputs(few, device), config).run()
            if on_cuda:
                torch.cuda.synchronize(device)
        except Exception:  # whatever it is comes again, and is recorded, where the kernel is measured
            continue
        done += 1
    return done, len(share) - done
