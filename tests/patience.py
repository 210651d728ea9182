"""Waiting in tests, for what happens and not for how long it takes: machines differ and stutter, and few tests are about time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from autotune.worker import Worker

PATIENCE = 300.0
"""Seconds after which a test gives up on what has to come; nothing that works takes nearly as long, on whatever machine."""
HANGING = "hanging"


def until(condition: Callable[[], object], what: str) -> None:
    """Return when the condition holds; it has to, sooner or later."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def alive(process: int) -> bool:
    """Whether a process runs (one that ended and that nobody has asked about does not)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def hang() -> None:
    """For a candidate that hangs: its process says so in its name, then sleeps."""
    Path("/proc/self/comm").write_text(HANGING)
    time.sleep(3600)


def hangs(process: int) -> bool:
    """Whether a process has come to `hang`."""
    try:
        return Path(f"/proc/{process}/comm").read_text().strip() == HANGING
    except (FileNotFoundError, ProcessLookupError):
        return False


class Patient:
    """The parent's end of a worker's channel: no answer comes in time when the child hangs, not when the machine lets it wait."""

    def __init__(self, channel: Connection, child: int) -> None:
        self._channel, self._child = channel, child

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def poll(self, seconds: float) -> bool:
        """As a connection's, the seconds being over as soon as the child hangs."""
        end = time.monotonic() + max(seconds, PATIENCE)
        while not self._channel.poll(0.02):
            if hangs(self._child) or time.monotonic() > end:
                return bool(self._channel.poll(0))
        return True


@contextmanager
def only_hangs_take_too_long() -> Iterator[None]:
    """Whose limits are short because candidates hang: a limit is over for those that do, and for no other, however slow the machine is."""
    begin = Worker.begin

    def patiently(worker: Worker) -> None:
        begin(worker)
        channel, child = worker._channel, worker._child
        if isinstance(channel, Connection) and child is not None:
            worker._channel = Patient(channel, child.pid)  # type: ignore[assignment]  # stands in for a connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "begin", patiently)
        yield
