"""Where candidates run: slots, each one device and the child process on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from autotune.worker import Worker


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
    """A device of this machine, with a child process of its own."""

    def __init__(self, device: str) -> None:
        self._device, self._worker = device, Worker()

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


def local_slots(devices: Sequence[str]) -> list[Slot]:
    """One slot per device of this machine."""
    return [LocalSlot(device) for device in devices]
