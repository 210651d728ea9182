"""A launch of the Hopper GEMM without a GPU: the Gluon kernel's Python functions as they stand, its PTX by `wgmma_emulator`.

Every program has its shared memory, a consumer of 256 threads and a producer of 32; they take turns, one running until it has to wait.
Barriers in shared memory count arrivals and bytes; who waits in vain, or for what cannot come, fails.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from triton.experimental.gluon._runtime import GluonJITFunction

from kernels.ternary_gemm import sparse_wgmma_kernel as kernel
from tests.kernels.ptx_emulator import Array
from tests.kernels.wgmma_emulator import DEVICE, SHARED, Threads, swizzled

PATIENCE = 10.0
"""Seconds for which a part of a launch waits for the others."""


class Pointer(int):
    """An address that the kernel turns into an integer itself."""

    def to(self, dtype: object, bitcast: bool) -> int:
        return int(self)


class Launch:
    """What the programs of one launch share: memory, first every program's shared one; whose turn it is."""

    def __init__(self, programs: int, late: bool, y: Any) -> None:
        self.programs, self.late, self.y, self.turn = programs, late, y, threading.Condition()
        self.failures: list[BaseException] = []
        self.parts, self.end = [np.full(programs * SHARED, 0x5A, np.uint8)], 0
        self.memory = self.parts[0]
        self.tensors: dict[int, tuple[torch.Tensor, int]] = {}

    def add(self, tensor: torch.Tensor) -> Pointer:
        """The address of a copy of the tensor, a guard behind it; one address a tensor."""
        if tensor.data_ptr() not in self.tensors:
            raw = tensor.view(-1).view(torch.uint8).numpy()
            self.tensors[tensor.data_ptr()] = tensor, self.end
            self.parts += [raw, np.full(-len(raw) % 1024 + 1024, 0x7F, np.uint8)]
            self.end += len(self.parts[-1]) + len(raw)
        return Pointer(DEVICE + self.tensors[tensor.data_ptr()][1])

    def run(self, actors: list[Callable[[], None]]) -> None:
        """All of them, then what they wrote back to the tensors."""
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
                self.turn.notify_all()

    def until(self, condition: Callable[[], bool]) -> None:
        """Let others run until the condition holds."""
        self.turn.notify_all()
        assert self.turn.wait_for(lambda: bool(self.failures) or condition(), PATIENCE), "waited in vain"
        assert not self.failures, "another part of the launch failed"

    def pause(self) -> None:
        """Let others run once."""
        self.turn.notify_all()
        assert self.turn.wait(PATIENCE), "waited in vain"
        assert not self.failures, "another part of the launch failed"


class Barrier:
    """An mbarrier: a phase ends when all arrivals are there and all bytes announced."""

    def __init__(self, count: int) -> None:
        self.count, self.pending, self.bytes, self.phase = count, count, 0, 0

    def change(self, arrivals: int = 0, announced: int = 0) -> None:
        assert self.pending >= arrivals, "more arrivals than the barrier counts"
        self.pending -= arrivals
        self.bytes += announced
        if not self.pending and not self.bytes:
            self.pending, self.phase = self.count, self.phase ^ 1


class Block:
    """One program: its shared memory, its barriers, and the Gluon that the kernel is written in."""

    def __init__(self, launch: Launch, number: int) -> None:
        self.launch, self.number, self.allocated = launch, number, 0
        self.barriers: dict[int, Barrier] = {}
        self.actors: list[Callable[[], None]] = []

    @property
    def shared(self) -> Array:
        return self.launch.memory[self.number * SHARED : (self.number + 1) * SHARED]

    def names(self, threads: Threads) -> dict[str, Any]:
        """The kernel module's names; its functions are plain ones, which these threads run."""
        names = dict(vars(kernel)) | {
            "fence_async_shared": lambda: None,
            "mbarrier": SimpleNamespace(MBarrierLayout=lambda: None, init=self._init, wait=self.wait, expect=self._expect),
            "tma": SimpleNamespace(async_copy_global_to_shared=self._load_box),
            "gl": SimpleNamespace(program_id=lambda axis: self.number, num_programs=lambda axis: self.launch.programs, static_range=range,
                                  int8=1, int32=4, int64=8, assume=assume, allocate_shared_memory=self._allocate,
                                  warp_specialize=self._specialize, inline_asm_elementwise=threads.assembly),
        }
        names |= {name: plain(value.fn, names) for name, value in names.items() if isinstance(value, GluonJITFunction)}
        return names

    def _allocate(self, size: int, shape: list[int], layout: object) -> Any:
        first, stride = self.allocated, size * math.prod(shape[1:])
        self.allocated += shape[0] * stride
        return SimpleNamespace(index=lambda i: first + i * stride)

    def _specialize(self, parts: list[tuple[Any, tuple[Any, ...]]], warps: list[int], registers: list[int]) -> None:
        for (function, arguments), count in zip(parts, (256, *(32 * count for count in warps)), strict=True):
            self.actors.append(partial(plain(function, self.names(Threads(self, count))), *arguments))

    def _init(self, at: int, count: int) -> None:
        self.barriers[at] = Barrier(count)

    def wait(self, at: int, parity: int) -> None:
        """Until the phase of that parity has ended."""
        barrier = self.barriers[at]
        if barrier.phase == parity:
            self.launch.until(lambda: barrier.phase != parity)

    def _expect(self, at: int, announced: int) -> None:
        self.barriers[at].change(arrivals=1, announced=announced)

    def _load_box(self, tensor_map: Any, corner: list[int], barrier: int, to: int) -> None:
        """A box of activations, zeros behind the edges, in the 128-byte swizzle."""
        box = np.zeros(tensor_map.block_shape, np.int8)
        part = tensor_map.base.numpy()[corner[0] : corner[0] + box.shape[0], corner[1] : corner[1] + box.shape[1]]
        box[: part.shape[0], : part.shape[1]] = part
        self.shared[swizzled(to, box.nbytes)] = box.view(np.uint8).flatten()
        self.barriers[barrier].change(announced=-box.nbytes)

    def store_box(self, row: int, token: int, at: int) -> None:
        """A box of the output from the 128-byte swizzle; what lies behind the edges is dropped."""
        assert at % 1024 == 0
        out, (tokens, rows) = self.launch.y.base, self.launch.y.block_shape
        box = self.shared[swizzled(at, 128 * tokens)].reshape(tokens, 2 * rows)
        target = self.launch.bytes_of(out).reshape(out.shape[0], -1)[token : token + tokens, 2 * row : 2 * (row + rows)]
        target[:] = box[: target.shape[0], : target.shape[1]]


class Emulated:
    """`sparse_gemm` to be put in the kernel's place: launches itself on tensors in the CPU's memory."""

    def __init__(self, late: bool) -> None:
        self.late = late

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return partial(self._launch, grid[0])

    def _launch(self, programs: int, x: Any, y: Any, *arguments: Any, num_warps: int, launch_cooperative_grid: bool,
                **constants: Any) -> None:
        assert (num_warps, launch_cooperative_grid) == (8, constants["SPLITS"] > 1)
        launch = Launch(programs, self.late, y)
        passed = [launch.add(argument) if isinstance(argument, torch.Tensor) else argument for argument in arguments]
        launch.memory = np.concatenate(launch.parts)
        actors = []
        for number in range(programs):
            block = Block(launch, number)
            entry = block.names(Threads(block, 256))["sparse_gemm"]
            entry(x, y, *passed, **constants)
            actors += block.actors
        launch.run(actors)


def assume(fact: bool) -> None:
    """What the compiler is told has to be so."""
    assert fact


def plain(function: Any, names: dict[str, Any]) -> Any:
    """A function that sees these names as its module's."""
    return FunctionType(function.__code__, names)
