"""What orders every two accesses of different warps to a slot of the `mma.sp` GEMM's ring, read from the kernel's own text.

All warps run the same text, so one walk through it says what lies where in each of them. An access comes before another warp's if it is
complete in front of a release (`bar.sync`, or the arrival of a warp's first lane behind a `bar.warp.sync` that all lanes meet at) whose
acquire (`bar.sync`, the wait for that arrival) the other access stands behind. A copy is complete at its thread's `cp.async.wait_group`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from kernels.ternary_gemm.sparse_mma_epilogue import epilogue
from kernels.ternary_gemm.sparse_mma_ptx import barrier_at, fill, prime, shared_bytes, stage
from kernels.ternary_gemm.sparse_mma_tile import Tile
from tests.kernels.mma_emulator import WarpMachine
from tests.kernels.ptx_emulator import Array, statements

Lines = list[str]


@dataclass
class Walk:
    """A warp's way through the text. Places are counted in statements.

    copies: slot, place, stage. complete: by stage, the place. reads: slot, place. releases, acquires: by barrier of the block ("b…") and by
    arrival ("m…"), the place up to which accesses are released, and the place behind which another warp's are ordered by that.
    """

    at: int = 0
    stages: int = 0
    reading: int = 0
    synced: int = -1
    arrivals: int = 0
    waits: int = 0
    barriers: int = 0
    copies: list[tuple[int, int, int]] = field(default_factory=list)
    complete: dict[int, int] = field(default_factory=dict)
    reads: list[tuple[int, int]] = field(default_factory=list)
    releases: dict[str, int] = field(default_factory=dict)
    acquires: dict[str, int] = field(default_factory=dict)

    def run(self, lines: Lines, slots: dict[str, int]) -> None:
        """Statements in order; slots: what the operands of the text are that name slots."""
        filling = 0
        for line in lines:
            self.at += 1
            line = line.removeprefix("AGAIN_${:uid}: ")
            if found := re.match(r"mad\.lo\.u32 (w|base|to), (\$\d), \d+,", line):
                slot = slots[found[2]]
                self.reading, filling = (self.reading, slot) if found[1] == "to" else (slot, filling)
            elif "cp.async.cg" in line:
                self.copies.append((filling, self.at, self.stages))
            elif line.startswith("cp.async.commit_group"):
                self.stages += 1
            elif line.startswith("cp.async.wait_group"):
                for done in range(self.stages - int(line.split()[1])):
                    self.complete.setdefault(done, self.at)
            elif line.startswith(("ldmatrix", "ld.shared")):
                self.reads.append((self.reading, self.at))
            else:
                self._order(line)

    def _order(self, line: str) -> None:
        if line.startswith("bar.warp.sync"):
            self.synced = self.at
        elif line.startswith("bar.sync"):
            self.releases[f"b{self.barriers}"] = self.acquires[f"b{self.barriers}"] = self.at
            self.barriers += 1
        elif "mbarrier.arrive" in line:
            self.releases[f"m{self.arrivals}"] = self.synced
            self.arrivals += 1
        elif "mbarrier.test_wait" in line:
            self.acquires[f"m{self.waits}"] = self.at
            self.waits += 1

    def before(self, complete: int, issued: int) -> bool:
        """Whether what is complete at one place comes before what another warp issues at the other."""
        return any(complete <= released and self.acquires.get(name, self.at + 1) < issued for name, released in self.releases.items())

    def hazards(self) -> set[str]:
        """What two warps can do to each other."""
        found = set()
        for slot, copied, number in self.copies:
            complete = self.complete.get(number, self.at + 1)
            for other, read in self.reads:
                if other == slot and read > copied and not self.before(complete, read):
                    found.add("read too soon")
                if other == slot and read < copied and not self.before(read, copied):
                    found.add("overwritten too soon")
            for other, again, later in self.copies:
                if other == slot and later > number and not self.before(complete, again):
                    found.add("copied over")
        return found


def walked(tile: Tile, stages: int, change: Callable[[Lines], Lines] = list) -> Walk:
    """The kernel's way through four rounds of the ring; tiles end anywhere, since their ends use no slot. change: of a stage's text."""
    walk, filled = Walk(), list(statements(fill(tile)))
    for slot in range(stages - 1):
        walk.run(filled, {"$1": slot})
    walk.reading = 0
    walk.run(list(statements(prime(tile, stages))), {})
    lines, at, before = change(list(statements(stage(tile, stages)))), 0, stages - 1
    for _ in range(4 * stages):
        walk.run(lines, {"$1": at, "$2": (at + 1) % stages, "$3": before})
        before, at = at, (at + 1) % stages
    return walk


ROW_TILES, DEPTHS = (1, 2, 4, 5, 6, 8), (3, 4, 5, 6)


@pytest.mark.parametrize("stages", DEPTHS)
@pytest.mark.parametrize("tiles_n", ROW_TILES)
def test_every_two_accesses_to_a_slot_are_ordered(tiles_n: int, stages: int) -> None:
    walk = walked(Tile(4, 2, tiles_n, 2), stages)
    assert walk.arrivals == walk.waits + 1 == 4 * stages + 1
    assert {slot for slot, _ in walk.reads} == {slot for slot, _, _ in walk.copies} == set(range(stages))
    assert walk.hazards() == set()


def moved(lines: Lines, name: str, to: int) -> Lines:
    """The one statement with `name` in it, put in front of what was statement `to`."""
    (at,) = (index for index, line in enumerate(lines) if name in line)
    rest = lines[:at] + lines[at + 1 :]
    rest.insert(to if to <= at else to - 1, lines[at])
    return rest


def later_wait_for_copies(lines: Lines) -> Lines:
    return [re.sub(r"(wait_group) (\d)", lambda found: f"{found[1]} {int(found[2]) + 1}", line) for line in lines]


def no_warp_barrier(lines: Lines) -> Lines:
    return [line for line in lines if not line.startswith("bar.warp.sync")]


def fill_before_the_wait(lines: Lines) -> Lines:
    return moved(lines, "mbarrier.test_wait", lines.index("cp.async.commit_group"))


def read_on_before_the_wait(lines: Lines) -> Lines:
    return moved(lines, "mbarrier.test_wait", next(index for index, line in enumerate(lines) if "wait_group" in line))


def arrive_before_the_last_words(lines: Lines) -> Lines:
    return moved(lines, "mbarrier.arrive", 1)


def sync_before_the_last_words(lines: Lines) -> Lines:
    return moved(lines, "bar.warp.sync", 1)


PLANTED = [
    (later_wait_for_copies, "read too soon"), (no_warp_barrier, "read too soon"), (no_warp_barrier, "overwritten too soon"),
    (fill_before_the_wait, "overwritten too soon"), (read_on_before_the_wait, "read too soon"),
    (arrive_before_the_last_words, "overwritten too soon"), (sync_before_the_last_words, "overwritten too soon"),
]


@pytest.mark.parametrize("stages", DEPTHS)
@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: f"{planted[0].__name__}: {planted[1]}")
def test_planted_errors_are_seen(planted: tuple[Callable[[Lines], Lines], str], stages: int) -> None:
    change, hazard = planted
    assert hazard in walked(Tile(4, 2, 5, 1), stages, change).hazards()


class Exchange(WarpMachine):
    """Keeps which thread stores and loads which bytes of shared memory, and in what turn."""

    def __init__(self, memory: Array, tile: Tile, patch: pytest.MonkeyPatch) -> None:
        super().__init__(memory, tile.threads, False, patch)
        self.turn, self.used = 0, list[tuple[int, bool, Array, Array, int]]()

    def _execute(self, line: str) -> None:
        self.turn += line.startswith("bar.warp.sync")
        super()._execute(line)

    def _note(self, kind: list[str], at: Array, guard: Array, bytes_: int) -> None:
        if kind[1] == "shared":
            self.used.append((self.turn, kind[0] == "st", at[guard], np.flatnonzero(guard), bytes_))

    def _load(self, kind: list[str], operands: list[str], guard: Array) -> None:
        self._note(kind, self._address(operands[1]), guard, 16)
        super()._load(kind, operands, guard)

    def _store(self, kind: list[str], operands: list[str], guard: Array) -> None:
        self._note(kind, self._address(operands[0]), guard, 4)
        if kind[1] == "shared":
            super()._store(kind, operands, guard)


@pytest.mark.parametrize("tile", [Tile(4, 2, 5, 2), Tile(4, 2, 6, 1), Tile(2, 4, 8, 1), Tile(4, 1, 1, 2), Tile(2, 2, 2, 1)], ids=str)
def test_a_warp_exchanges_in_memory_of_its_own(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, size = 3, 8 * tile.exchange_pitch
    machine = Exchange(np.zeros(shared_bytes(tile, stages) + 8192, np.uint8), tile, monkeypatch)
    machine.registers.update({f"acc{i}": np.zeros(tile.threads, np.uint64) for i in range(tile.accumulators)})
    scales = shared_bytes(tile, stages) + 64
    machine.run(epilogue(tile, "bf16", stages), [0, 0, tile.block_t, tile.block_n, scales, scales, scales, scales])
    stored: set[int] = set()
    for turn, store, at, threads, width in machine.used:
        start = stages * tile.stage_bytes + threads // 32 * size
        assert (at >= start).all()
        assert (at + width <= start + size).all()
        assert start.max() + size <= barrier_at(tile, stages) - 16
        assert turn % 2 == (0 if store else 1), "stores and loads of a warp lie on different sides of its barriers"
        stored.update(at.tolist() if store else [])
    assert len(stored) == tile.threads * 2 * tile.exchange_tiles
    assert machine.turn == 2 * tile.tiles_t * tile.tiles_n // tile.exchange_tiles
