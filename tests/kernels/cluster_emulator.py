"""What the parts of an emulated launch meet by: mbarriers that count arrivals and bytes, and the barrier of a cluster's programs."""

from __future__ import annotations

from collections.abc import Callable

SHARED, DEVICE = 1 << 18, 1 << 33
"""A program's addresses: shared memory from 0, device memory from DEVICE (an address cut to 32 bits leads nowhere)."""
WINDOW = 1 << 24
"""From here on, a window each: the shared memories of a cluster's programs."""


class Barrier:
    """An mbarrier: a phase ends when all arrivals are there and all bytes announced.

    Copies that complete on it land at once, or (`late`) when somebody waits for it.
    """

    def __init__(self, count: int, late: bool) -> None:
        self.count, self.pending, self.bytes, self.phase, self.late = count, count, 0, 0, late
        self.coming: list[tuple[Callable[[], None], int]] = []
        self.landed = 0

    def change(self, arrivals: int = 0, announced: int = 0) -> None:
        """Count arrivals, and bytes that will come."""
        assert self.pending >= arrivals, "more arrivals than the barrier counts"
        self.pending -= arrivals
        self.bytes += announced
        if not self.pending and not self.bytes:
            self.pending, self.phase, self.landed = self.count, self.phase ^ 1, 0

    def send(self, copy: Callable[[], None], size: int) -> None:
        """A copy of that many bytes, which completes here."""
        self.coming.append((copy, size))
        if not self.late:
            self.land()

    def land(self) -> None:
        """Everything under way arrives."""
        while self.coming:
            copy, size = self.coming.pop(0)
            copy()
            self.landed += size
            self.change(announced=-size)

    def passed(self, parity: int) -> bool:
        """For one who waits: whether the phase of that parity has ended."""
        if self.phase == parity:
            self.land()
        return self.phase != parity

    def check_left_alone(self) -> None:
        """At its program's end: nothing is under way, nothing has come in part (that nothing came is right where no tile is split)."""
        assert not self.coming, "a program ended with a copy into its shared memory under way"
        assert self.bytes >= 0, "bytes came that nobody announced"
        assert not (self.landed and self.bytes), "a program ended before all bytes that it announced had come"


class ClusterBarrier:
    """`barrier.cluster`: every thread of every program of a cluster arrives, then waits for all the others; again and again."""

    def __init__(self, threads: int) -> None:
        self.threads, self.missing, self.meetings = threads, threads, 0

    def arrive(self, threads: int) -> int:
        """Which meeting it is for."""
        assert self.missing >= threads, "more threads than the cluster has"
        self.missing -= threads
        if self.missing:
            return self.meetings
        self.missing, self.meetings = self.threads, self.meetings + 1
        return self.meetings - 1
