"""A few dozen PTX instructions, executed for all threads of a program at once: what the emulators of the kernels' text share.

Registers are arrays over threads. Barriers and branches are skipped: the text is run in the order in which it is written. What it cannot
show is a race.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

THREADS = 256
MASK32, MASK64 = 0xFFFFFFFF, (1 << 64) - 1
SKIPPED = ("bra", "bar.sync", "//")
Array = np.ndarray[Any, Any]


def signed(value: Array) -> Array:
    return value.astype(np.uint32).view(np.int32).astype(np.int64)


def bf16_bits(value: Array) -> Array:
    bits = value.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)) & np.uint64(0xFFFF)


def f16_bits(value: Array) -> Array:
    return value.astype(np.float16).view(np.uint16).astype(np.uint64)


HALVES: dict[str, Callable[[Array], Array]] = {"bf16": bf16_bits, "bf16x2": bf16_bits, "f16": f16_bits, "f16x2": f16_bits}
COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "gt": np.greater, "ge": np.greater_equal,
}


class Machine:
    """registers: by name, one value per thread. memory: one address space of bytes for global and (below `shared_bytes`) shared."""

    def __init__(self, memory: Array) -> None:
        self.memory = memory
        self.registers: dict[str, Array] = {}

    def run(self, text: str, operands: list[int]) -> None:
        """Execute a block; $1 … are the operands, the same for every thread."""
        for index in range(len(operands), 0, -1):
            text = text.replace(f"${index}", str(operands[index - 1] & MASK64))
        text = re.sub(r"^\s*\w+_\$\{:uid\}:", "", text, flags=re.MULTILINE)
        for line in statements(text):
            self._execute(line)

    def value(self, name: str, bits: int = 32) -> Array:
        """The value of an operand as unsigned integers."""
        if re.fullmatch(r"-?\d+|0x[0-9A-Fa-f]+", name):
            return np.full(THREADS, int(name, 0) & (MASK64 if bits == 64 else MASK32), dtype=np.uint64)
        if name == "%tid.x":
            return np.arange(THREADS, dtype=np.uint64)
        return np.zeros(THREADS, np.uint64) if name == "global_smem" else self.registers[name]

    def real(self, name: str) -> Array:
        """The value of a float operand."""
        return np.zeros(THREADS, np.float32) if name == "0f00000000" else self.registers[name]

    def _execute(self, line: str) -> None:
        guard = np.ones(THREADS, bool)
        if line.startswith("@"):
            predicate, line = line[1:].split(None, 1)
            guard = ~self.registers[predicate[1:]] if predicate.startswith("!") else self.registers[predicate]
        opcode, _, rest = line.partition(" ")
        if opcode.startswith(SKIPPED):
            return
        operands = split_operands(rest)
        kind = opcode.split(".")
        if kind[0] == "ld":
            self._load(kind, operands, guard)
        elif kind[0] == "st":
            self._store(kind, operands, guard)
        elif kind[0] == "setp":
            self._compare(kind, operands)
        else:
            self.registers[operands[0]] = self._compute(kind, operands)

    def _compute(self, kind: list[str], operands: list[str]) -> Array:
        name, wide = kind[0], kind[-1] in ("b64", "u64", "s64")
        if kind[-1] == "f32" and name in ("mov", "mul", "fma"):
            a = [self.real(operand) for operand in operands[1:]]
            if name == "fma":
                return (a[0].astype(np.float64) * a[1] + a[2]).astype(np.float32)
            return a[0] if name == "mov" else a[0] * a[1]
        if name == "cvt" and kind[1] == "rn":
            return self._convert(kind, operands)
        a = [self.value(operand, 64 if wide else 32) for operand in operands[1:]]
        if (name == "mad" and kind[1] == "wide") or (name == "mul" and kind[1] == "wide"):
            third = self.value(operands[3], 64) if name == "mad" else np.uint64(0)
            return a[0] * a[1] + third
        amount = a[1] if len(a) > 1 else a[0]
        found = {
            "mov": lambda: a[0], "cvt": lambda: a[0], "prmt": lambda: a[0], "min": lambda: np.minimum(a[0], amount),
            "add": lambda: a[0] + amount, "sub": lambda: a[0] - amount, "mul": lambda: a[0] * amount, "mad": lambda: a[0] * amount + a[2],
            "and": lambda: a[0] & amount, "xor": lambda: a[0] ^ amount, "shl": lambda: a[0] << amount, "shr": lambda: self._right(kind, a),
        }[name]()
        return found & np.uint64(MASK64 if wide or name == "cvt" else MASK32)

    @staticmethod
    def _right(kind: list[str], a: list[Array]) -> Array:
        if kind[1] == "s32":
            return (signed(a[0]) >> a[1].astype(np.int64)).astype(np.uint64)
        return a[0] >> a[1]

    def _convert(self, kind: list[str], operands: list[str]) -> Array:
        if kind[2:] == ["f32", "s32"]:
            return signed(self.value(operands[1])).astype(np.float32)
        round_to = HALVES[kind[2]]
        if kind[2].endswith("x2"):
            return round_to(self.real(operands[1])) << np.uint64(16) | round_to(self.real(operands[2]))
        return round_to(self.real(operands[1]))

    def _compare(self, kind: list[str], operands: list[str]) -> None:
        a, b = (self.value(operand) for operand in operands[1:3])
        if kind[-1] == "s32":
            a, b = signed(a), signed(b)
        found = COMPARE[kind[1]](a, b)
        self.registers[operands[0]] = found & self.registers[operands[3]] if len(operands) > 3 else found

    def _address(self, operand: str) -> Array:
        base, _, offset = operand.strip("[]").partition("+")
        return (self.value(base, 64) + np.uint64(int(offset or 0))).astype(np.int64)

    def _load(self, kind: list[str], operands: list[str], guard: Array) -> None:
        names = operands[0].strip("{}").replace(" ", "").split(",")
        at = self._address(operands[1])
        for index, name in enumerate(names):
            before = self.registers.get(name, np.zeros(THREADS, np.uint64))
            real = kind[-1] == "f32"
            before = before.astype(np.float32).view(np.uint32).astype(np.uint64) if real else before
            loaded = before.copy()
            for thread in np.flatnonzero(guard):
                start = at[thread] + 4 * index
                loaded[thread] = int.from_bytes(self.memory[start : start + 4].tobytes(), "little")
            self.registers[name] = loaded.astype(np.uint32).view(np.float32) if real else loaded

    def _store(self, kind: list[str], operands: list[str], guard: Array) -> None:
        names = operands[1].strip("{}").replace(" ", "").split(",")
        at, size = self._address(operands[0]), 2 if kind[-1] == "b16" else 4
        for index, name in enumerate(names):
            value = self.registers[name]
            bits = value.astype(np.float32).view(np.uint32) if kind[-1] == "f32" else value
            for thread in np.flatnonzero(guard):
                start = at[thread] + size * index
                self.memory[start : start + size] = np.frombuffer(int(bits[thread]).to_bytes(8, "little")[:size], np.uint8)


def statements(text: str) -> Iterator[str]:
    """Instructions without their semicolons; scopes and declarations left out."""
    for part in text.split(";"):
        line = " ".join(part.split())
        line = re.sub(r"^(\{ |\} )+", "", line)
        if line and line not in ("{", "}") and not line.startswith(".reg"):
            yield line


def split_operands(text: str) -> list[str]:
    """Operands at the top level: commas inside of braces do not count."""
    return [part.strip() for part in re.split(r",(?![^{]*\})", text) if part.strip()]
