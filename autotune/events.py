"""What a tuning run tells while it goes: an observer whose every method may be overridden."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.errors import Failure

if TYPE_CHECKING:
    from autotune.search import Point
    from autotune.task import Task


class Observer:
    """Hears of a run, from several threads; does nothing with it."""

    def begin(self, task: Task, device: str) -> None:
        """A case is begun on a device."""

    def trial(self, task: Task, point: Point, outcome: float | Failure) -> None:
        """A candidate has an outcome: microseconds, or a failure."""

    def halving(self, task: Task, count: int, turns: int) -> None:
        """So many candidates are timed again, for so many turns."""

    def finals(self, task: Task) -> None:
        """The finalists are timed."""

    def finished(self, task: Task) -> None:
        """The case is done, or given back."""

    def compiled(self, done: int, of: int) -> None:
        """So many compilations are done, of those asked for so far."""

    def say(self, text: str) -> None:
        """A line for people."""
