"""Lanes: `gpu` needs a device, `interpreter` needs TRITON_INTERPRET=1, `compile` must not have it. Random numbers are always the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# No example is too slow on a machine that is, and none comes up on one machine only.
settings.register_profile("tersparse", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tersparse")


def pytest_configure() -> None:
    """What a shell starts in the background ignores Ctrl+C, and so would the commands that tests start and interrupt. A worker for each
    core has one thread: as many as there are cores, in each of them, would wait for one another."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU here"))
        if item.get_closest_marker("interpreter") and not INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="runs in the interpreter lane: TRITON_INTERPRET=1 pytest -m interpreter"))
        if item.get_closest_marker("compile") and INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="the compiler does not run in the interpreter's process"))


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """What a test draws without a seed of its own depends neither on those before it nor on the process that it runs in."""
    torch.manual_seed(0)


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parent.parent
