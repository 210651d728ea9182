"""What a worker process does with a candidate: bind it, check it, time it. Correctness comes before the clock."""

from __future__ import annotations

import functools
import statistics
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch

from autotune.clock import Timer
from autotune.compile import use_cache
from autotune.job import COPIES, Job
from autotune.measure import FULL, Plan, bind, copies_needed, paired
from kernels.errors import Failure, TerSparseError
from kernels.gpu import Gpu
from kernels.inputs import Inputs, Weights, clone, make_inputs, make_weights
from kernels.judge import judge, poison
from kernels.kernel import Kernel, Prepared
from kernels.problem import Problem

QUICK_TURNS = 3
FEW_TURNS = 7
"""Of a cold candidate, whose turns are short where it has the most copies."""
TOGETHER = 4
"""So many candidates are bound at once when they are timed again: each holds its own copies of the weight."""
FRESH = 1009
"""Seed of the inputs of the finals: other numbers than the candidates were chosen on."""


def ready(device: str, cache: str | None) -> threading.Thread | None:
    """Begin what the first candidate would wait for, and return the thread that does it; None where the device is none of CUDA's.

    That is Triton's driver, which a C compiler builds where the cache does not have it (a second), and the library of the reference's
    products.
    """
    if not device.startswith("cuda:"):
        return None
    import triton

    use_cache(cache)

    def open_libraries() -> None:
        torch.cuda.set_device(device)
        triton.runtime.driver.active.get_current_device()
        product = torch.ones((64, 64), dtype=torch.float64, device=device)
        torch.mm(product, product).sum().item()

    thread = threading.Thread(target=open_libraries, daemon=True)
    thread.start()
    return thread


def foresee(catalogue: str, problem: Problem, gpu: Gpu, names: Sequence[str], device: str) -> threading.Thread | None:
    """Begin what the first candidate of this problem would wait for, and return the thread that does it; None as for `ready`."""
    if not device.startswith("cuda:"):
        return None
    thread = threading.Thread(target=prepare_case, args=(catalogue, problem, gpu, names, device), daemon=True)
    thread.start()
    return thread


def prepare_case(catalogue: str, problem: Problem, gpu: Gpu, names: Sequence[str], device: str) -> None:
    """Make the inputs, and the hashes by which Triton's cache knows these kernels (0.2 s for one with many parts)."""
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    _inputs(problem, device, 0)
    for kernel in import_module(catalogue).kernels_for(problem.op):
        if kernel.name in names:
            for unit in kernel.compile_units(problem, kernel.default_config(problem, gpu)):
                getattr(unit.function, "cache_key", None)


def evaluate(job: Job, config: Mapping[str, Any]) -> float | Failure:
    """Median microseconds per call of a config after its outputs were found right; else the failure. Device faults are raised."""
    timer = _timer(job, config, 0)
    if isinstance(timer, Failure):
        return timer
    try:
        return statistics.median(timer.sample() for _ in range(FEW_TURNS if job.cold else QUICK_TURNS))
    finally:
        timer.close()


def again(job: Job, configs: Sequence[Mapping[str, Any]], turns: int) -> list[float | Failure]:
    """Median microseconds per call of each config over so many interleaved turns."""
    plan = Plan(turns, turns, 0.0, float("inf"), 0)
    results: list[float | Failure] = []
    for first in range(0, len(configs), TOGETHER):
        samples = _interleaved(job, configs[first : first + TOGETHER], plan, 0, known=True)
        results += [own if isinstance(own, Failure) else statistics.median(own) for own in samples]
    return results


def finals(job: Job, configs: Sequence[Mapping[str, Any]]) -> list[tuple[float, ...] | Failure]:
    """Paired samples of each config on fresh inputs, microseconds per call, interleaved; what was timed last is checked again."""
    return _interleaved(job, configs, FULL, FRESH)


def _interleaved(
    job: Job, configs: Sequence[Mapping[str, Any]], plan: Plan, seed: int, known: bool = False
) -> list[tuple[float, ...] | Failure]:
    """Paired samples; what was timed last is checked. known: they were right on these inputs before they were ever timed."""
    return paired(lambda config: _timer(job, config, seed, known), configs, plan, lambda outputs: _wrong(job, outputs, seed))


def _timer(job: Job, config: Mapping[str, Any], seed: int, known: bool = False) -> Timer | Failure:
    use_cache(job.cache)
    if job.device.startswith("cuda:"):
        torch.cuda.set_device(job.device)
    try:
        kernel = job.find()
        bound = _bind(job, kernel, config, _inputs(job.problem, job.device, seed))
        poison(bound)
        if not known and (wrong := _wrong(job, bound.run(), seed)) is not None:
            return wrong
        copies = min(COPIES, copies_needed(bound.footprint, job.gpu.l2_bytes, job.cold))
        more = [_bind(job, kernel, config, _copy(job.problem, job.device, seed, place)) for place in range(1, copies)]
        return bind(job.clock, [one.run for one in (bound, *more)], job.cold)
    except TerSparseError as error:
        return Failure("refused", str(error))


def _bind(job: Job, kernel: Kernel, config: Mapping[str, Any], inputs: Inputs) -> Prepared:
    return kernel.prepare(job.problem, inputs, kernel.space.from_dict(config))


def _wrong(job: Job, outputs: Any, seed: int) -> Failure | None:
    mismatch = judge(job.problem, _inputs(job.problem, job.device, seed), outputs, job.find())
    return None if mismatch is None else Failure("wrong", str(mismatch))


@functools.lru_cache(maxsize=1)
def _inputs(problem: Problem, device: str, seed: int) -> Inputs:
    """The inputs of the case in hand; those of the case before are let go."""
    _copy.cache_clear()
    weights = None if problem.op == "activation" else _weights(problem.with_(op="prepare", tokens=0, bias=False), device, seed)
    return make_inputs(problem, device, seed, weights=weights)


@functools.lru_cache(maxsize=2)
def _weights(layer: Problem, device: str, seed: int) -> Weights:
    """A layer's weight, the same for all numbers of tokens, which come after each other; kept for the search's seed and the finals'."""
    return make_weights(layer, device, seed)


@functools.cache
def _copy(problem: Problem, device: str, seed: int, place: int) -> Inputs:
    """The place-th further copy, shared by all candidates of a case."""
    del place
    inputs: Any = _inputs(problem, device, seed)  # clone keeps the type, whichever of the union it is
    copy: Inputs = clone(inputs)
    return copy
