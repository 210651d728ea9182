"""What the children of the executor's tests are made of; imported by name in the child."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from kernels.gpu import by_name
from suites.bench import Bench
from suites.executor import Local
from suites.record import RoofRecord
from tests.patience import hang
from tests.suites.fakes import OURS, THEIRS, gemm, lab


def executor(arguments: Any, mark: Callable[[str], None]) -> Local:
    """An executor with a baseline that dies, hangs or raises as `arguments` says."""
    made = lab((OURS, THEIRS, gemm("deadly", 80.0, "baseline", unavailable=ACTS[arguments])))
    bench = Bench(by_name("h200"), made.clock, made.monitor, made.kernels_for, "cpu", mark)
    return Local(bench, "run", lambda: [RoofRecord("run", "copy", 1e12, "B/s")])


def dies(problem: object, gpu: object) -> str | None:
    os.kill(os.getpid(), signal.SIGSEGV)
    return None


def hangs(problem: object, gpu: object) -> str | None:
    hang()
    return None


ACTS: dict[str, Callable[[object, object], str | None]] = {"dies": dies, "hangs": hangs, "nothing": lambda p, g: None}
