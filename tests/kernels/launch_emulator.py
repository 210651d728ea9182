"""A launch of the Hopper GEMM without a GPU: the Gluon kernel's Python functions as they stand, its PTX by `wgmma_emulator`.

Every program has its shared memory, a consumer of 256 threads and a producer of 128; programs stand in clusters. All take turns, one
running until it has to wait. Who waits in vain, or for what cannot come, fails.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.runtime.jit import ConstexprFunction

from kernels.ternary_gemm import sparse_wgmma_kernel as kernel
from kernels.ternary_gemm.sparse_wgmma_ptx import X_DESCRIPTOR, Y_DESCRIPTOR
from tests.kernels.cluster_emulator import DEVICE, SHARED, Barrier, ClusterBarrier
from tests.kernels.ptx_emulator import Array
from tests.kernels.wgmma_emulator import Threads, swizzled

CONSUMER, PRODUCER = 256, 128
"""Threads of the two parts of a program."""


class Pointer(int):
    """An address that the kernel turns into an integer itself."""

    def to(self, dtype: object, bitcast: bool) -> int:
        return int(self)


class Launch:
    """What the programs of one launch share: memory, first every program's shared one; TMA descriptors; whose turn it is."""

    def __init__(self, programs: int, cluster: int, late: bool, descriptors: dict[str, Any]) -> None:
        self.programs, self.cluster, self.late, self.descriptors = programs, cluster, late, descriptors
        self.turn = threading.Condition()
        self.turns, self.left = 0, 0
        self.waiting: list[Callable[[], bool]] = []
        self.texts = {name: cache(value) for name, value in vars(kernel).items() if isinstance(value, ConstexprFunction)}
        self.failures: list[BaseException] = []
        self.parts, self.end = [np.full(programs * SHARED, 0x5A, np.uint8)], 0
        self.memory = self.parts[0]
        self.tensors: dict[int, tuple[torch.Tensor, int]] = {}
        self.constant: torch.Tensor | None = None
        self.blocks = [Block(self, number) for number in range(programs)]
        self.meetings = [ClusterBarrier(cluster * (CONSUMER + PRODUCER)) for _ in range(programs // cluster)]

    def add(self, tensor: torch.Tensor) -> Pointer:
        """The address of a copy of the tensor, a guard behind it; one address a tensor."""
        if tensor.data_ptr() not in self.tensors:
            raw = tensor.view(-1).view(torch.uint8).numpy()
            self.tensors[tensor.data_ptr()] = tensor, self.end
            self.parts += [raw, np.full(-len(raw) % 1024 + 1024, 0x7F, np.uint8)]
            self.end += len(self.parts[-1]) + len(raw)
        return Pointer(DEVICE + self.tensors[tensor.data_ptr()][1])

    def is_constant(self, at: int) -> bool:
        """Whether an address lies in what no launch before this one writes."""
        if self.constant is None:
            return False
        first = DEVICE + self.tensors[self.constant.data_ptr()][1]
        return first <= at < first + self.constant.numel() * self.constant.element_size()

    def run(self) -> None:
        """All parts of all programs, then what they wrote back to the tensors."""
        actors = [actor for block in self.blocks for actor in block.actors]
        self.left = len(actors)
        with ThreadPoolExecutor(len(actors)) as pool:
            for actor in actors:
                pool.submit(self._take_turns, actor)
        if self.failures:
            raise self.failures[0]
        for tensor, at in self.tensors.values():
            size = tensor.numel() * tensor.element_size()
            tensor.view(-1).view(torch.uint8).copy_(torch.from_numpy(self.bytes_of(tensor).copy()))
            first = self.programs * SHARED + at
            guard = self.memory[first + size : first + size + -size % 1024 + 1024]
            assert (guard == 0x7F).all(), "something was written behind a tensor"

    def bytes_of(self, tensor: torch.Tensor) -> Array:
        """Its copy in this launch's memory."""
        first = self.programs * SHARED + self.tensors[tensor.data_ptr()][1]
        return self.memory[first : first + tensor.numel() * tensor.element_size()]

    def _take_turns(self, actor: Callable[[], None]) -> None:
        with self.turn:
            try:
                actor()
            except BaseException as failure:  # kept for the launch's caller; the first is the cause of the others
                self.failures.append(failure)
            finally:
                self.left -= 1
                self._pass_on()

    def until(self, condition: Callable[[], bool]) -> None:
        """Let others run until the condition holds; in vain where all that are left wait, and no condition of theirs holds."""
        self._pass_on()
        self.waiting.append(condition)
        while not (self.failures or condition()):
            assert len(self.waiting) < self.left or any(own() for own in self.waiting), "waited in vain"
            self.turn.wait()
        self.waiting.remove(condition)
        assert not self.failures, "another part of the launch failed"

    def pause(self) -> None:
        """Let others run once."""
        after = self.turns + 2  # of which one is this part's own
        self.until(lambda: self.turns >= after)

    def _pass_on(self) -> None:
        """Wake those that wait: something may have changed."""
        self.turns += 1
        self.turn.notify_all()


class Block:
    """One program: its shared memory, its barriers, and the Gluon that the kernel is written in."""

    def __init__(self, launch: Launch, number: int) -> None:
        self.launch, self.number, self.allocated, self.running = launch, number, 0, 2
        self.group, self.rank = divmod(number, launch.cluster)
        self.barriers: dict[int, Barrier] = {}
        self.actors: list[Callable[[], None]] = []

    @property
    def shared(self) -> Array:
        return self.launch.memory[self.number * SHARED : self.number * SHARED + self.allocated]

    @property
    def meeting(self) -> ClusterBarrier:
        return self.launch.meetings[self.group]

    def peer(self, rank: int) -> Block:
        """Another program of the cluster, which has to run still."""
        assert rank < self.launch.cluster, "no such program in the cluster"
        block = self.launch.blocks[self.group * self.launch.cluster + rank]
        assert block.running, "shared memory of a program that has ended"
        return block

    def names(self, threads: Threads) -> dict[str, Any]:
        """The kernel module's names; its functions are plain ones, which these threads run."""
        clusters = self.launch.programs // self.launch.cluster
        names = dict(vars(kernel)) | {
            "mbarrier": SimpleNamespace(init=self.initialize),
            "gl": SimpleNamespace(program_id=lambda axis: self.group, num_programs=lambda axis: clusters, static_range=range,
                                  int32=4, int64=8, assume=assume, allocate_shared_memory=self._allocate,
                                  warp_specialize=self._specialize, inline_asm_elementwise=threads.assembly),
        }
        names |= self.launch.texts
        names |= {name: plain(value.fn, names) for name, value in names.items() if isinstance(value, GluonJITFunction)}
        return names

    def _allocate(self, size: int, shape: list[int], layout: Any) -> Any:
        """The launch's only one: the kernel's text counts from the beginning of shared memory."""
        assert not self.allocated
        assert 2 ** len(layout.cga_layout) == self.launch.cluster, "every program of a cluster has all of it for itself"
        stride = size * math.prod(shape[1:])
        self.allocated = shape[0] * stride
        return SimpleNamespace(index=lambda i: i * stride)

    def _specialize(self, parts: list[tuple[Any, tuple[Any, ...]]], warps: list[Any], registers: list[int]) -> None:
        assert [int(count) for count in warps] == [PRODUCER // 32]
        for (function, arguments), first, count in zip(parts, (0, CONSUMER), (CONSUMER, PRODUCER), strict=True):
            self.actors.append(partial(self._act, function, arguments, Threads(self, count, first)))

    def _act(self, function: Any, arguments: tuple[Any, ...], threads: Threads) -> None:
        """A part of the program from its start to its end."""
        plain(function, self.names(threads))(*arguments)
        threads.check_nothing_left()
        self.running -= 1
        for barrier in self.barriers.values() if not self.running else ():
            barrier.check_left_alone()

    def initialize(self, at: int, count: int) -> None:
        """Set up a barrier."""
        assert at not in self.barriers, "a barrier set up twice"
        assert at % 8 == 0
        assert at + 8 <= self.allocated, "a barrier outside of shared memory"
        self.barriers[at] = Barrier(count, self.launch.late)

    def wait(self, at: int, parity: int) -> None:
        """Until the phase of that parity has ended."""
        barrier = self.barriers[at]
        if not barrier.passed(parity):
            self.launch.until(lambda: barrier.passed(parity))

    def load_box(self, row: int, column: int, at: int, bar: int) -> None:
        """A box of activations, zeros behind the edges, in the 128-byte swizzle."""
        assert at % 1024 == 0
        x = self.launch.descriptors[X_DESCRIPTOR]
        box = np.zeros(x.block_shape, np.int8)
        assert at + box.nbytes <= self.allocated

        def copy() -> None:
            part = x.base.numpy()[row : row + box.shape[0], column : column + box.shape[1]]
            box[: part.shape[0], : part.shape[1]] = part
            self.shared[swizzled(at, box.nbytes)] = box.view(np.uint8).flatten()

        self.barriers[bar].send(copy, box.nbytes)

    def store_box(self, row: int, token: int, at: int) -> None:
        """A box of the output from the 128-byte swizzle; what lies behind the edges is dropped."""
        assert at % 1024 == 0
        y = self.launch.descriptors[Y_DESCRIPTOR]
        out, (tokens, rows) = y.base, y.block_shape
        box = self.shared[swizzled(at, 128 * tokens)].reshape(tokens, 2 * rows)
        target = self.launch.bytes_of(out).reshape(out.shape[0], -1)[token : token + tokens, 2 * row : 2 * (row + rows)]
        target[:] = box[: target.shape[0], : target.shape[1]]


class Emulated:
    """`sparse_gemm` to be put in the kernel's place: launches itself on tensors in the CPU's memory."""

    def __init__(self, late: bool) -> None:
        self.late = late

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return partial(self._launch, grid[0])

    def _launch(self, clusters: int, x: Any, y: Any, *arguments: Any, num_warps: int, num_ctas: int, launch_pdl: bool,
                **constants: Any) -> None:
        assert (num_warps, num_ctas, launch_pdl) == (CONSUMER // 32, constants["SPLITS"] * constants["PAIR"], True)
        launch = Launch(clusters * num_ctas, num_ctas, self.late, {X_DESCRIPTOR: x, Y_DESCRIPTOR: y})
        passed = [launch.add(argument) if isinstance(argument, torch.Tensor) else argument for argument in arguments]
        launch.memory = np.concatenate(launch.parts)
        launch.constant = arguments[0] if constants.get("EARLY") else None
        for block in launch.blocks:
            entry = block.names(Threads(block, CONSUMER, 0))["sparse_gemm"]
            entry(x, y, *passed, **constants)
        launch.run()


def assume(fact: bool) -> None:
    """What the compiler is told has to be so."""
    assert fact


def plain(function: Any, names: dict[str, Any]) -> Any:
    """A function that sees these names as its module's."""
    return FunctionType(function.__code__, names)
