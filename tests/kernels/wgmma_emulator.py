"""The emulator's Hopper half: wgmma, bulk copies, mbarriers, clusters and stmatrix, for all threads of one part of a program at once.

Products, copies and stores happen at once or (`late`) at the last wait that allows it, so that a register, a stage or a buffer given away
too early is seen. All threads run in step: a missing named barrier or fence is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from kernels.ternary_gemm.sparse_wgmma_ptx import DESCRIPTOR, X_DESCRIPTOR, Y_DESCRIPTOR
from tests.kernels.cluster_emulator import DEVICE, SHARED, WINDOW
from tests.kernels.decode_emulator import Program, floats
from tests.kernels.ptx_emulator import HALVES, Array, signed, split_operands

if TYPE_CHECKING:
    from tests.kernels.launch_emulator import Block

MAPS = {X_DESCRIPTOR: 1 << 41, Y_DESCRIPTOR: 1 << 42}
"""Addresses of the TMA descriptors among the parameters."""
SKIPPED = ("bar.sync", "fence", "wgmma.fence", "griddepcontrol.launch_dependents")
THREAD = np.arange(128)
ROW = 16 * (THREAD // 32) + THREAD % 32 // 4


class Threads(Program):
    """The threads of one part of a program, from `first` on, with registers of their own.

    begun: which have waited for the launches before this one. met: None, False from their arrival at the cluster's barrier on, then
    True.
    """

    def __init__(self, block: Block, threads: int, first: int) -> None:
        super().__init__(block.launch.memory, threads)
        self.block, self.late, self.first = block, block.launch.late, first
        self.begun, self.met = np.zeros(threads, bool), None if block.launch.cluster > 1 else True
        self.products: list[list[Callable[[], None]]] = [[]]
        self.stores: list[list[list[Callable[[], None]]]] = [[[]] for _ in range(threads)]

    def assembly(self, text: str, constraints: str, operands: list[int], **_: object) -> int:
        """A block of PTX: operands are the same for all threads, and so is the result."""
        kinds = [kind for kind in constraints.split(",")[1:] if kind in "rl"]
        assert [kind == "l" for kind in kinds] == [operand >= DEVICE for operand in operands], "an address in 32 bits, or a number in 64"
        self.operands = [operand & (1 << 64 if kind == "l" else 1 << 32) - 1 for operand, kind in zip(operands, kinds, strict=True)]
        lines = parse(text)
        labels = {line[:-1]: place for place, line in enumerate(lines) if line.endswith(":")}
        waiting: dict[str, Array] = {}
        hidden: list[dict[str, Array | None]] = []
        active, place = np.ones(self.threads, bool), 0
        while place < len(lines):
            line, place = lines[place], place + 1
            if line == "{":
                hidden.append({})
            elif line == "}":
                self._leave(hidden.pop())
            elif line.startswith(".reg"):
                # A register may have the name of one outside of its scope.
                if hidden:
                    hidden[-1] |= {name: self.registers.pop(name, None) for name in declared(line)}
            elif line.endswith(":"):
                active = active | waiting.pop(line[:-1], False)
            elif active.any() and (found := self._guard(line, active))[0].any():
                guard, line = found
                if not line.startswith("bra"):
                    self._execute(line, guard)
                elif (target := line.split()[1]) in labels and labels[target] >= place:
                    waiting[target], active = guard, active & ~guard
                else:
                    self.block.launch.pause()
                    place = labels[target]
        assert not waiting
        assert not hidden
        (result,) = np.unique(self.registers.pop("$0", np.zeros(1)))
        return int(result)

    def _leave(self, hidden: dict[str, Array | None]) -> None:
        """Leave a scope: its registers are gone, those outside are to be seen again."""
        for name, outside in hidden.items():
            self.registers.pop(name, None)
            if outside is not None:
                self.registers[name] = outside

    def check_nothing_left(self) -> None:
        """At the end: products and stores are done, the cluster was met."""
        assert not any(self.products), "a product is in flight at the end"
        assert not any(any(groups) for groups in self.stores), "shared memory is stored from at the end"
        assert self.met, "a part of a program that did not wait for its cluster"

    def value(self, name: str) -> Array:
        if name == "%tid.x":
            return np.arange(self.first, self.first + self.threads, dtype=np.uint64)
        if name == "%cluster_ctarank" or name in MAPS:
            return np.full(self.threads, MAPS.get(name, self.block.rank), np.uint64)
        if name.startswith("$"):
            return np.full(self.threads, self.operands[int(name[1:]) - 1], np.uint64)
        found = self.registers.get(name)
        return super().value(name) if found is None else found

    def _guard(self, line: str, active: Array) -> tuple[Array, str]:
        if not line.startswith("@!"):
            return super()._guard(line, active)
        predicate, line = line[2:].split(None, 1)
        return active & ~self.registers[predicate].astype(bool), line

    def _execute(self, line: str, guard: Array) -> None:
        opcode, _, rest = line.partition(" ")
        if opcode.startswith(SKIPPED):
            return
        kind, operands = opcode.split("."), operands_of(rest)
        if kind[0] == "mbarrier":
            self._meet(kind[1], operands, guard)
        elif kind[0] == "elect":
            warps = guard.reshape(-1, 32)
            assert (warps == warps[:, :1]).all(), "all threads of a warp are needed"
            # Which lane, the hardware says.
            self._set(operands[0].split("|")[1], self.value("%tid.x") % np.uint64(32) == (31 if self.late else 0), guard)
        elif kind[0] == "griddepcontrol":
            assert kind[1] == "wait"
            self.begun |= guard
        elif kind[0] in ("barrier", "wgmma"):
            assert guard.all(), "all threads of a warp are needed"
            self._together(kind, operands)
        elif kind[0] == "prefetch":
            assert set(self._address(operands[0])[guard]) <= set(MAPS.values())
        elif kind[0] == "mapa":
            at = self._address(operands[1])
            assert (at < self.block.allocated).all(), "an address outside of shared memory"
            self._set(operands[0], at.astype(np.uint64) + np.uint64(WINDOW) * (self.value(operands[2]) + np.uint64(1)), guard)
        elif kind[:2] == ["st", "async"]:
            self._send(operands, guard)
        elif kind[0] == "stmatrix":
            self._store_matrices(operands)
        elif kind[:3] == ["cp", "async", "bulk"]:
            self._bulk(kind, operands, guard)
        elif opcode != "mov.b32" or operands[0] != "$0":
            super()._execute(line.replace(".u64", ".b64") if kind[0] in ("ld", "st") else line, guard)

    def _meet(self, name: str, operands: list[str], guard: Array) -> None:
        """mbarriers: set up, arrive, wait and ask."""
        if name == "init":
            for at in self._address(operands[0])[guard]:
                self.block.initialize(int(at), int(operands[1]))
        elif name == "arrive":
            announced = self.value(operands[2]) if len(operands) > 2 else np.zeros(self.threads, np.uint64)
            for at, size in zip(self._address(operands[1])[guard], announced[guard], strict=True):
                rank, place = divmod(int(at), WINDOW)
                assert not rank or self.met, "a barrier of a program that may not have begun"
                block = self.block.peer(rank - 1) if rank else self.block
                block.barriers[place].change(arrivals=1, announced=int(size))
        else:
            places, (parity,) = self._address(operands[1]), np.unique(self.value(operands[2])[guard])
            for at in np.unique(places[guard]):
                if name == "try_wait":
                    self.block.wait(int(at), int(parity))
                passed = self.block.barriers[int(at)].phase != parity and not (self.late and name == "test_wait")
                self._set(operands[0], np.full(self.threads, passed), guard & (places == at))

    def _together(self, kind: list[str], operands: list[str]) -> None:
        """What every warp does as a whole."""
        if kind[:3] == ["barrier", "cluster", "arrive"]:
            assert self.met is not False, "an arrival at the cluster's barrier without a wait for the one before"
            self.met, self.meeting = False, self.block.meeting.arrive(self.threads)
        elif kind[:3] == ["barrier", "cluster", "wait"]:
            assert self.met is False, "a wait for the cluster without an arrival, or a second one"
            self.block.launch.until(lambda: self.block.meeting.meetings > self.meeting)
            self.met = True
        elif kind[1] == "wait_group":
            self._finish(int(operands[0]))
        elif kind[1] == "commit_group":
            self.products.append([])
        else:
            product = self._product(operands, "sp" in kind)
            if self.late:
                self.products[-1].append(product)
            else:
                product()

    def _finish(self, pending: int) -> None:
        """All closed groups of products but the newest so many."""
        done = max(0, len(self.products) - 1 - pending)
        for product in [product for group in self.products[:done] for product in group]:
            product()
        self.products = self.products[done:]

    def _send(self, operands: list[str], guard: Array) -> None:
        """st.async.v4.b32 from every thread into the shared memory of a program of the cluster, which counts the bytes on its barrier."""
        assert self.met, "shared memory of a program that may not have begun"
        names = operands[1].strip("{}").replace(" ", "").split(",")
        words = np.stack([self.value(name)[guard] for name in names], 1).astype(np.uint32)
        to, bar = self._address(operands[0])[guard], self._address(operands[2])[guard]
        assert (to % 16 == 0).all(), "misaligned"
        assert (to // WINDOW == bar // WINDOW).all(), "sums to one program, their bytes counted by another"
        for rank, at in {(int(start) // WINDOW - 1, int(place) % WINDOW) for start, place in zip(to, bar, strict=True)}:
            peer, mine = self.block.peer(rank), bar == (rank + 1) * WINDOW + at
            lanes = (to[mine] % WINDOW)[:, None] + np.arange(16)
            assert lanes.max() < peer.allocated, "an address outside of shared memory"
            values = words[mine].view(np.uint8)
            peer.barriers[at].send(partial(peer.shared.__setitem__, lanes, values), values.size)

    def _compute(self, kind: list[str], a: list[Array]) -> Array:
        if kind[0] == "cvt" and kind[2:] in (["bf16x2", "f32"], ["f16x2", "f32"]):
            return HALVES[kind[2]](floats(a[0])) << np.uint64(16) | HALVES[kind[2]](floats(a[1]))
        if kind[:2] == ["min", "s32"]:
            return np.where(signed(a[0]) < signed(a[1]), a[0], a[1])
        if kind == ["not", "pred"]:
            return a[0] ^ np.uint64(1)
        if kind[0] in ("div", "xor", "or", "cvta"):
            return {"div": lambda: a[0] // a[1], "xor": lambda: a[0] ^ a[1], "or": lambda: a[0] | a[1], "cvta": lambda: a[0]}[kind[0]]()
        return super()._compute(kind, a)

    def _place(self, at: Array) -> Array:
        """Where an address lies in the launch's memory."""
        assert ((at >= 0) & (at < self.block.allocated) | (at >= DEVICE)).all(), "an address of nothing"
        assert self.begun.all() or (at < SHARED).all(), "device memory before the launches before this one have ended"
        return self._where(at)

    def _where(self, at: Array) -> Array:
        return np.where(at < SHARED, at + self.block.number * SHARED, at - DEVICE + self.block.launch.programs * SHARED)

    def _read(self, at: Array, size: int) -> Array:
        assert (at % size == 0).all(), "misaligned"
        return self.memory.view(f"u{size}")[self._place(at) // size].astype(np.uint64)

    def _write(self, at: Array, value: Array, size: int) -> None:
        assert (at % size == 0).all(), "misaligned"
        self.memory.view(f"u{size}")[self._place(at) // size] = value.astype(f"u{size}")

    def _copy(self, kind: list[str], operands: list[str], guard: Array) -> None:
        """cp.async of four bytes, zeros behind its source size."""
        if kind[2] == "wait_all":
            for target, source, size in self.groups[0]:
                self._write(target, np.where(size > 0, self._read(source, 4), 0), 4)
            self.groups = [[]]
        else:
            assert operands[2] == "4"
            size = self.value(operands[3] if len(operands) > 3 else "4")
            self.groups[0].append((self._address(operands[0])[guard], self._address(operands[1])[guard], size[guard]))

    def _bulk(self, kind: list[str], operands: list[str], guard: Array) -> None:
        if kind[3] in ("commit_group", "wait_group"):
            for thread in np.flatnonzero(guard):
                self._groups(self.stores[thread], None if kind[3] == "commit_group" else int(operands[0]))
        elif kind[3] == "tensor":
            self._boxes(kind, operands, guard)
        else:
            assert operands[2] == "2048"
            for start, first, bar, begun in zip(*(self._address(operands[i])[guard] for i in (0, 1, 3)), self.begun[guard], strict=True):
                assert begun or self.block.launch.is_constant(int(first)), "device memory before the launches before this one have ended"
                lanes = np.arange(2048)
                source, target = self._where(first + lanes), self._place(start + lanes)
                self.block.barriers[int(bar)].send(partial(self._move, target, source), 2048)

    def _move(self, target: Array, source: Array) -> None:
        self.memory[target] = self.memory[source]

    def _boxes(self, kind: list[str], operands: list[str], guard: Array) -> None:
        """TMA: a box of activations from device memory, or one of the output to it."""
        assert self.begun[guard].all(), "device memory before the launches before this one have ended"
        store = kind[5] == "global"
        place, tensor_map, corner = operands[2 if store else 0], operands[0 if store else 1], operands[1 if store else 2]
        column, row = (signed(self.value(name)) for name in re.findall(r"[\w$]+", corner))
        at = self._address(place)
        assert (self._address(tensor_map)[guard] == MAPS[Y_DESCRIPTOR if store else X_DESCRIPTOR]).all()
        for thread in np.flatnonzero(guard):
            if store:
                self.stores[thread][-1].append(partial(self.block.store_box, int(column[thread]), int(row[thread]), int(at[thread])))
            else:
                assert ("multicast::cluster" in kind[-1]) == (len(operands) > 4)
                assert len(operands) < 5 or self.met, "shared memory of a program that may not have begun"
                ranks = [rank for rank in range(8) if int(operands[4]) >> rank & 1] if len(operands) > 4 else [self.block.rank]
                for rank in ranks:
                    box = int(row[thread]), int(column[thread]), int(at[thread]), int(self._address(operands[3])[thread])
                    self.block.peer(rank).load_box(*box)

    def _groups(self, groups: list[list[Callable[[], None]]], pending: int | None) -> None:
        """Close the open group (pending None), or run all closed ones but the newest so many; early: as soon as closed."""
        if pending is None:
            groups.append([])
        while len(groups) > 1 + (pending or 0) and not (pending is None and self.late):
            for store in groups.pop(0):
                store()

    def _store_matrices(self, operands: list[str]) -> None:
        """stmatrix x4, transposed: lane l of a warp holds values 2 (l % 4) and the next of row l / 4 of the transposed matrix."""
        at = self._address(operands[0]).reshape(-1, 32)
        lane = np.arange(32)
        for matrix, name in enumerate(operands[1].strip("{}").replace(" ", "").split(",")):
            word = self.registers[name].reshape(-1, 32)
            for half in range(2):
                rows = at[:, 8 * matrix + 2 * (lane % 4) + half]
                self._write((rows + 2 * (lane // 4)).flatten(), (word >> np.uint64(16 * half)).flatten() & np.uint64(0xFFFF), 2)

    def _product(self, operands: list[str], sparse: bool) -> Callable[[], None]:
        """wgmma.mma_async(.sp) m64nNk64 (k32) on 8-bit integers, A and metadata from registers, B in 128-byte-swizzled shared memory.

        The descriptor and whether the accumulators count are taken now, registers and memory when the product runs.
        """
        accumulators, fragments = (operand.strip("{}").replace(" ", "").split(",") for operand in operands[:2])
        descriptor, keep = self.registers[operands[2]], self.registers[operands[-1]].astype(bool)
        assert (descriptor >> np.uint64(16) == DESCRIPTOR >> 16).all()

        def run() -> None:
            a = register_operand([self.registers[name] for name in fragments])
            a = spread(a, self.registers[operands[3]].reshape(2, 128)) if sparse else a
            columns, tokens = a.shape[2], 2 * len(accumulators)
            row, column = np.divmod(np.arange(tokens * columns), columns)
            start = (int(descriptor[0]) & 0x3FFF) << 4
            at = start + row // 8 * 1024 + row % 8 * 128 + column
            b = self.block.shared[at ^ (at >> 7 & 7) << 4].view(np.int8).reshape(tokens, columns)
            product = (a.astype(np.float64) @ b.T.astype(np.float64)).astype(np.int64)
            index = np.arange(len(accumulators))[:, None]
            part = product[:, ROW + 8 * (index >> 1 & 1), 8 * (index // 4) + 2 * (THREAD % 4) + (index & 1)]
            for name, sums in zip(accumulators, part.transpose(1, 0, 2).reshape(-1, self.threads), strict=True):
                self.registers[name] = (np.where(keep, self.registers[name], 0) + sums.astype(np.uint64)) & np.uint64(0xFFFFFFFF)

        return run


def register_operand(fragments: list[Array]) -> Array:
    """[2, 64, 32]: the values of operand A that two warpgroups hold in four registers a thread."""
    values = np.zeros((2, 64, 32), np.int64)
    for j, register in enumerate(fragments):
        word = register.astype(np.uint32).view(np.int8).reshape(2, 128, 4)
        for byte in range(4):
            values[:, ROW + 8 * (j & 1), 4 * (THREAD % 4) + 16 * (j >> 1) + byte] = word[:, :, byte]
    return values


def spread(kept: Array, metadata: Array) -> Array:
    """[2, 64, 64] logical values of [2, 64, 32] kept ones; metadata: a word a thread."""
    dense = np.zeros((2, 64, 64), np.int64)
    row, first, group = ROW + 8 * (THREAD % 2), 16 * (THREAD % 4 >> 1), np.arange(2)[:, None]
    before = np.zeros_like(metadata)
    for index in range(16):
        place = (metadata >> np.uint64(2 * index) & np.uint64(3)).astype(np.int64)
        assert not index % 2 or (place > before).all(), "metadata that the instruction does not allow"
        before, value = place, (first + index)[None]
        dense[group, row[None], 4 * (value // 2) + place] = kept[group, row[None], value]
    return dense


def swizzled(start: int, size: int) -> Array:
    """The bytes of a buffer of 128-byte rows, in the order of its rows."""
    at = start + np.arange(size)
    return at ^ (at >> 7 & 7) << 4


@cache
def parse(text: str) -> tuple[str, ...]:
    """Instructions without semicolons, declarations, braces of scopes, and labels with a colon behind them."""
    lines = []
    for part in text.replace("_${:uid}", "").split(";"):
        line = " ".join(part.split())
        while found := re.match(r"([{}]|\w+:) ?", line):
            lines.append(found[1])
            line = line[found.end() :]
        lines += [line] if line else []
    return tuple(lines)


@cache
def operands_of(text: str) -> list[str]:
    """`split_operands`, which is asked the same again and again."""
    return split_operands(text)


@cache
def declared(line: str) -> tuple[str, ...]:
    """The names in a line of .reg."""
    names: list[str] = []
    for stem, count in re.findall(r"(\w+)(?:<(\d+)>)?(?:,|$)", line):
        names += [f"{stem}{i}" for i in range(int(count))] if count else [stem]
    return tuple(names)
