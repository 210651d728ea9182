"""Where candidates run: slots, each one device and the child process on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from autotune.worker import Job, Worker
from kernels.gpu import Gpu, detect


class SlotLost(Exception):
    """The slot itself is gone (a node of a cluster died, say); the candidate is not to blame."""


class Slot(Protocol):
    """One device. Not shared by threads, but for `kill`."""

    @property
    def device(self) -> str:
        """The device as jobs name it, such as "cuda:1"."""

    def call(self, function: str, arguments: tuple[Any, ...], timeout: float) -> Any:
        """As `Worker.call`. Raises SlotLost."""

    def kill(self) -> None:
        """From another thread: end what runs now."""

    def close(self) -> None:
        """End the slot's processes."""


class LocalSlot:
    """A device of this machine, with a child process of its own. first: what that does as it starts, see `Worker`."""

    def __init__(self, device: str, first: Sequence[Job] = ()) -> None:
        self._device, self._worker = device, Worker(first=first, device=device)

    def begin(self) -> None:
        """Start the child now, and do not wait for it."""
        self._worker.begin()

    @property
    def device(self) -> str:
        """The device as jobs name it."""
        return self._device

    def call(self, function: str, arguments: tuple[Any, ...], timeout: float) -> Any:
        """As `Worker.call`."""
        return self._worker.call(function, arguments, timeout)

    def kill(self) -> None:
        """End the child in the middle of what it does."""
        self._worker.kill()

    def close(self) -> None:
        """End the child."""
        self._worker.close()


def local_slots(devices: Sequence[str], begun: LocalSlot | None = None) -> list[Slot]:
    """One slot per device of this machine. begun: one that is there already, taken where its device is among them."""
    return [begun if begun is not None and device == begun.device else LocalSlot(device) for device in devices]


def models() -> list[Gpu]:
    """A job of such a process: every GPU of this machine, in CUDA's order."""
    found: list[Gpu] = []
    while (gpu := detect(len(found))) is not None:
        found.append(gpu)
    return found
