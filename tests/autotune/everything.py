"""A catalogue with a scripted kernel for every op that the suites measure, under the names of the real ones; times as in `scripted`."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import replace

from autotune.job import Job
from kernels.kernel import Kernel
from kernels.problem import Op
from kernels.space import ConfigSpace
from tests.autotune import scripted
from tests.autotune.scripted import Script
from tests.patience import hang

HOLD = "TERSPARSE_TEST_HOLD"
"""An environment variable: after so many candidates a process goes no further, so that a run that is to be interrupted cannot end."""
EVALUATED = itertools.count()
NAMES: dict[Op, tuple[str, ...]] = {
    "gemm": ("dense-triton", "plain", "sparse-wgmma"), "layer": ("dense-triton",), "prepare": ("two-pass",), "activation": ("activation",),
    "forward": ("dense-triton",), "input-grad": ("unpack-dot",), "weight-grad": ("convert-dot",),
}


def kernel(name: str, op: Op) -> Kernel:
    axes = {"a": (5, 6, 7), "b": (2, 3, 4), "c": (2,)} if name != "plain" else {}
    return replace(scripted.kernel(name, (1, 1, 1)), op=op, space=ConfigSpace(Script, axes), default_config=default)


def default(problem: object, gpu: object) -> Script:
    return Script(6, 3, 2) if getattr(problem, "tokens", 0) == 128 else Script(5, 3, 2)


def kernels_for(op: Op) -> tuple[Kernel, ...]:
    return tuple(kernel(name, op) for name in NAMES.get(op, ()))


def find(name: str, op: Op) -> Kernel:
    return next(one for one in kernels_for(op) if one.name == name)


def evaluate(job: Job, config: dict[str, int]) -> float:
    if HOLD in os.environ and next(EVALUATED) >= int(os.environ[HOLD]):
        hang()
    time.sleep(0.002)
    return scripted.sample(job.clock, config)


def finals(job: Job, configs: Sequence[dict[str, int]]) -> list[tuple[float, ...]]:
    return scripted.finals(job, configs)
