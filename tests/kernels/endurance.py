"""Many kernels in one process: bound in guarded memory, recorded in CUDA graphs, replayed again and again in mixed order on two streams.

Every replay compares what it wrote with the first, judged outputs (`tests.kernels.recordings`). After every round each guard, each input,
each output and memory that nobody owns must be what it was; then some graphs are thrown away and captured anew, in another order. All of it
runs on a CPU too, so that it can itself be tested, with kernels that misbehave.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from itertools import cycle, zip_longest
from typing import Any

import torch

from kernels.inputs import Inputs, make_inputs
from kernels.judge import judge
from kernels.kernel import Kernel
from kernels.problem import Problem
from kernels.space import Config
from tests.kernels.guarded import PATTERN, GuardedMemory
from tests.kernels.recordings import Bound, Recording, bits, recorded

LANES = 2
"""Streams that replay at the same time. A bound kernel stays on one of them: its workspace serves one launch at a time."""
LENGTHS = (1, 2, 3, 5)
"""Kernels in a graph, in turn."""
MOST = 12
"""Complaints that are told."""
SPARE = 200
"""Blocks of freed memory that are watched in a round."""


class Endurance:
    """device: "cuda", or "cpu" for kernels that run there. Call `bind` for every kernel, `record` once, then `run`."""

    def __init__(self, device: str, seed: int = 0) -> None:
        self.memory = GuardedMemory(device)
        self.bound: list[Bound] = []
        self.recordings: list[Recording] = []
        self._device, self._random = device, random.Random(seed)
        self._lanes: list[Any] = [torch.cuda.Stream() for _ in range(LANES)] if device == "cuda" else [None] * LANES
        self._inputs: dict[Problem, tuple[Inputs, dict[str, torch.Tensor]]] = {}

    def bind(self, kernel: Kernel, problem: Problem, config: Config) -> None:
        """Bind a kernel and call it once; kernels on the same problem read the same inputs."""
        label, inputs, lane = f"{kernel} on {problem}", self._made(problem), len(self.bound) % LANES
        with self.memory.of(label):
            prepared = kernel.prepare(problem, inputs, config)
        self.memory.name({f"{name} of {label}": tensor for name, tensor in prepared.buffers.items()})
        self.synchronize()
        with self._on(lane):
            first = prepared.run()
        self.synchronize()
        self.bound.append(Bound(kernel, problem, inputs, prepared, first, lane, is_dangerous(kernel, problem, config)))

    def _made(self, problem: Problem) -> Inputs:
        if problem not in self._inputs:
            with self.memory.of(f"inputs of {problem}"):
                inputs = make_inputs(problem, self._device, seed=len(self._inputs))
            tensors = {entry.name: value for entry in fields(inputs) if (value := getattr(inputs, entry.name)) is not None}
            self.memory.name({f"input {name} of {problem}": tensor for name, tensor in tensors.items()})
            self._inputs[problem] = inputs, {name: tensor.clone() for name, tensor in tensors.items()}
        return self._inputs[problem][0]

    def record(self) -> None:
        """Every kernel once in a graph with others, in random order; and the dangerous ones once more, among themselves, each twice in a
        row. The first replay of each graph is judged."""
        for lane in range(LANES):
            members = [bound for bound in self.bound if bound.lane == lane]
            for some, times in ((members, 1), ([bound for bound in members if bound.dangerous], 2)):
                self._random.shuffle(some)
                lengths = cycle(LENGTHS)
                while some:
                    length = next(lengths)
                    chain = tuple(bound for bound in some[:length] for _ in range(times))
                    self.recordings.append(self._judged(recorded(lane, chain, self._lanes[lane])))
                    del some[:length]

    def _judged(self, recording: Recording) -> Recording:
        self._replay_alone(recording)
        for member, outputs, right in zip(recording.members, recording.outputs, recording.right, strict=True):
            mismatch = judge(member.problem, member.inputs, outputs, member.kernel)
            assert mismatch is None, f"{member}, when {recording} was replayed for the first time: {mismatch}"
            for name, tensor in right.items():
                tensor.copy_(outputs[name])
        return recording

    def _replay_alone(self, recording: Recording) -> None:
        self.synchronize()
        with self._on(recording.lane):
            recording.replay()
        self.synchronize()

    def run(self, replays: int, rounds: int) -> list[str]:
        """Replay every graph that often, looking at everything after each of the rounds. What was found wrong, and who does it; empty
        where nothing was."""
        for number in range(rounds):
            self._forget(self.recordings)
            nobodys = self._nobodys()
            for _ in range(replays // rounds):
                self._replay_all()
            found = self._complaints(self.recordings)
            found += [f"{len(block)} bytes that nobody owns were written" for block in nobodys if bool((block != PATTERN).any())]
            if found:
                return [f"in round {number + 1} of {rounds}: {line}" for line in found[:MOST]] + self._culprits()
            self._renew()
        return []

    def _nobodys(self) -> list[torch.Tensor]:
        """Memory that others have freed, full of known bytes for a round: a kernel that still reads or writes there is found out."""
        most = 24 if self._device == "cuda" else 12
        sizes = [2 ** self._random.uniform(9, most) for _ in range(SPARE)]
        return [torch.full((int(size),), PATTERN, dtype=torch.uint8, device=self._device) for size in sizes]

    def _renew(self) -> None:
        """Throw some graphs away and capture their kernels anew, in another order."""
        for index in self._random.sample(range(len(self.recordings)), len(self.recordings) // 5):
            old = self.recordings[index]
            order = self._random.sample(range(len(old.members)), len(old.members))
            new = recorded(old.lane, tuple(old.members[at] for at in order), self._lanes[old.lane])
            for right, at in zip(new.right, order, strict=True):
                for name, tensor in right.items():
                    tensor.copy_(old.right[at][name])
            self.recordings[index] = new
        self.synchronize()

    def _replay_all(self) -> None:
        """Every graph once, in a random order, the lanes side by side."""
        orders = [[entry for entry in self.recordings if entry.lane == lane] for lane in range(LANES)]
        for order in orders:
            self._random.shuffle(order)
        for side_by_side in zip_longest(*orders):
            for lane, entry in enumerate(side_by_side):
                if entry is not None:
                    with self._on(lane):
                        entry.replay()

    def _forget(self, recordings: Sequence[Recording]) -> None:
        for entry in recordings:
            entry.wrong.zero_()
        self.synchronize()

    def _complaints(self, recordings: Sequence[Recording]) -> list[str]:
        """What is not as it was: guards, inputs, and the outputs of these graphs."""
        self.synchronize()
        found = [str(hit) for hit in self.memory.hits()]
        for problem, (inputs, copies) in self._inputs.items():
            wrong = [name for name, copy in copies.items() if not bool((bits(getattr(inputs, name)) == bits(copy)).all())]
            found += [f"input {name} of {problem} was written" for name in wrong]
        for entry in recordings:
            counts = entry.wrong.tolist()
            for member, outputs, right, wrong_replays in zip(entry.members, entry.outputs, entry.right, counts, strict=True):
                wrong = [name for name, tensor in right.items() if not bool((bits(outputs[name]) == bits(tensor)).all())]
                if wrong_replays or wrong:
                    now = f"; now {', '.join(wrong)}" if wrong else ""
                    found.append(f"{member} gave other bits in {wrong_replays} replays{now}")
        return found

    def _culprits(self) -> list[str]:
        """Which graphs, and which kernels of them, do such a thing alone. (A kernel whose weights were overwritten stays wrong: it is named
        too.)"""
        found: list[str] = []
        for entry in self.recordings:
            if not self._guilty(entry):
                continue
            names = [str(member) for index, member in enumerate(entry.members) if self._guilty(self._alone(entry, index))]
            found.append(f"again when it runs alone: {', '.join(names) or f'no kernel of the graph {entry}, but the graph'}")
        return found or ["no graph does so when it is replayed alone"]

    def _alone(self, recording: Recording, index: int) -> Recording:
        """One kernel of a graph in a graph of its own, with the same idea of what is right."""
        alone = recorded(recording.lane, (recording.members[index],), self._lanes[recording.lane])
        for name, tensor in recording.right[index].items():
            alone.right[0][name].copy_(tensor)
        return alone

    def _guilty(self, recording: Recording) -> bool:
        self._restore()
        self._forget([recording])
        self._replay_alone(recording)
        return bool(self._complaints([recording]))

    def _restore(self) -> None:
        """Guards and inputs as they were."""
        self.synchronize()
        self.memory.heal()
        for inputs, copies in self._inputs.values():
            for name, copy in copies.items():
                getattr(inputs, name).copy_(copy)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._device == "cuda":
            torch.cuda.synchronize()

    def _on(self, lane: int) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._lanes[lane]) if self._device == "cuda" else nullcontext()


def is_dangerous(kernel: Kernel, problem: Problem, config: Config) -> bool:
    """Whether parts of a tile meet (any config with several, or of a part of it), or a launch is a dependent one (on some GPU)."""
    every = (options for unit in kernel.compile_units(problem, config) for options in (unit.options, *unit.since.values()))
    return any(options.get("launch_pdl") for options in every) or any(parts > 1 for parts in _parts(config))


def _parts(config: Any) -> Iterator[int]:
    for entry in fields(config):
        value = getattr(config, entry.name)
        if entry.name in ("splits", "split_k"):
            yield int(value)
        elif hasattr(value, "__dataclass_fields__"):
            yield from _parts(value)
