"""The emulator's Hopper half: wgmma, bulk copies, mbarriers and stmatrix, for all threads of one part of a program at once.

Products, copies and stores happen at once or (`late`) at the last wait that allows it, so that a register, a stage or a buffer given away
too early is seen. All threads run in step: a missing named barrier or fence is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from kernels.ternary_gemm.sparse_wgmma_epilogue import Y_DESCRIPTOR
from kernels.ternary_gemm.sparse_wgmma_ptx import DESCRIPTOR
from tests.kernels.decode_emulator import Program, floats
from tests.kernels.ptx_emulator import HALVES, Array, signed, split_operands

if TYPE_CHECKING:
    from tests.kernels.launch_emulator import Block

SHARED, DEVICE = 1 << 18, 1 << 33
"""A program's addresses: shared memory from 0, device memory from DEVICE (an address cut to 32 bits leads nowhere)."""
SKIPPED = ("bar.sync", "fence", "wgmma.fence", "wgmma.commit_group")
THREAD = np.arange(128)
ROW = 16 * (THREAD // 32) + THREAD % 32 // 4


class Threads(Program):
    """The threads of one part of a program, with registers of their own."""

    def __init__(self, block: Block, threads: int) -> None:
        super().__init__(block.launch.memory, threads)
        self.block, self.late = block, block.launch.late
        self.products: list[Callable[[], None]] = []
        self.stores: list[list[list[Callable[[], None]]]] = [[[]] for _ in range(threads)]

    def assembly(self, text: str, constraints: str, operands: list[int], **_: object) -> int:
        """A block of PTX: operands are the same for all threads."""
        kinds = [kind for kind in constraints.split(",")[1:] if kind in "rl"]
        assert [kind == "l" for kind in kinds] == [operand >= DEVICE for operand in operands], "an address in 32 bits, or a number in 64"
        self.operands = [operand & (1 << 64 if kind == "l" else 1 << 32) - 1 for operand, kind in zip(operands, kinds, strict=True)]
        lines = parse(text)
        labels = {line[:-1]: place for place, line in enumerate(lines) if line.endswith(":")}
        waiting: dict[str, Array] = {}
        hidden: list[dict[str, Array]] = []
        active, place = np.ones(self.threads, bool), 0
        while place < len(lines):
            line, place = lines[place], place + 1
            if line == "{":
                hidden.append({})
            elif line == "}":
                self.registers |= hidden.pop()
            elif line.startswith(".reg"):
                # A register may have the name of one outside of its scope.
                if hidden:
                    hidden[-1] |= {name: self.registers.pop(name) for name in declared(line) if name in self.registers}
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
        return 0

    def value(self, name: str) -> Array:
        if name == Y_DESCRIPTOR:
            return np.zeros(self.threads, np.uint64)
        if name.startswith("$"):
            return np.full(self.threads, self.operands[int(name[1:]) - 1], np.uint64)
        return super().value(name)

    def _guard(self, line: str, active: Array) -> tuple[Array, str]:
        if not line.startswith("@!"):
            return super()._guard(line, active)
        predicate, line = line[2:].split(None, 1)
        return active & ~self.registers[predicate].astype(bool), line

    def _execute(self, line: str, guard: Array) -> None:
        opcode, _, rest = line.partition(" ")
        if opcode.startswith(SKIPPED):
            return
        kind, operands = opcode.split("."), split_operands(rest)
        if kind[:2] == ["mbarrier", "arrive"]:
            for at in self._address(operands[1])[guard]:
                self.block.barriers[int(at)].change(arrivals=1)
        elif kind[0] == "mbarrier":
            (at,), (parity,) = np.unique(self._address(operands[1])[guard]), np.unique(self.value(operands[2])[guard])
            if kind[1] == "try_wait":
                self.block.wait(int(at), int(parity))
            passed = self.block.barriers[int(at)].phase != parity and not (self.late and kind[1] == "test_wait")
            self._set(operands[0], np.full(self.threads, passed), guard)
        elif kind[:2] == ["wgmma", "wait_group"]:
            self._finish(int(operands[0]))
        elif kind[0] == "wgmma":
            assert guard.all()
            self.products.append(self._product(operands, "sp" in kind))
            self._finish(len(self.products) if self.late else 0)
        elif kind[0] == "stmatrix":
            self._store_matrices(operands)
        elif kind[:3] == ["cp", "async", "bulk"]:
            self._bulk(kind, operands, guard)
        elif opcode != "mov.b32" or operands[0] != "$0":
            super()._execute(line.replace(".u64", ".b64") if kind[0] in ("ld", "st") else line, guard)

    def _finish(self, pending: int) -> None:
        """All products but the newest so many."""
        done = max(0, len(self.products) - pending)
        for product in self.products[:done]:
            product()
        self.products = self.products[done:]

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
        assert ((at < SHARED) | (at >= DEVICE)).all(), "an address of nothing"
        return np.where(at < SHARED, at + self.block.number * SHARED, at - DEVICE + self.block.launch.programs * SHARED)

    def _read(self, at: Array, size: int) -> Array:
        assert (at % size == 0).all(), "misaligned"
        return self.memory.view(f"u{size}")[self._place(at) // size].astype(np.uint64)

    def _write(self, at: Array, value: Array, size: int) -> None:
        assert (at % size == 0).all(), "misaligned"
        self.memory.view(f"u{size}")[self._place(at) // size] = value.astype(f"u{size}")

    def _atom(self, kind: list[str], operands: list[str], guard: Array) -> None:
        assert kind[-2:] == ["add", "u64"]
        for thread in np.flatnonzero(guard):
            one = self._address(operands[1])[thread : thread + 1]
            old = self._read(one, 8)
            self._write(one, old + np.uint64(int(operands[2])), 8)
            self._set(operands[0], np.repeat(old, self.threads), np.arange(self.threads) == thread)

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
            row, token = (self.value(name) for name in re.findall(r"\w+", operands[1]))
            at = self._address(operands[-1])
            for thread in np.flatnonzero(guard):
                store = partial(self.block.store_box, int(row[thread]), signed(token[thread : thread + 1])[0], int(at[thread]))
                self.stores[thread][-1].append(store)
        else:
            to, source, size = (self._address(operand)[guard] for operand in operands[:3])
            for start, first, count, bar in zip(to, source, size, self._address(operands[3])[guard], strict=True):
                lanes = np.arange(count)
                self.memory[self._place(start + lanes)] = self.memory[self._place(first + lanes)]
                self.block.barriers[int(bar)].change(announced=-int(count))

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
            for index, name in enumerate(accumulators):
                part = product[:, ROW + 8 * (index >> 1 & 1), 8 * (index // 4) + 2 * (THREAD % 4) + (index & 1)].flatten()
                self._set(name, np.where(keep, signed(self.registers[name]), 0) + part & 0xFFFFFFFF, np.ones(self.threads, bool))

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
def declared(line: str) -> tuple[str, ...]:
    """The names in a line of .reg."""
    names: list[str] = []
    for stem, count in re.findall(r"(\w+)(?:<(\d+)>)?(?:,|$)", line):
        names += [f"{stem}{i}" for i in range(int(count))] if count else [stem]
    return tuple(names)
