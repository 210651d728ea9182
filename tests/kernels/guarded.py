"""Memory with watched neighbours: while the mode is on, every tensor that torch allocates lies between two guards of known bytes.

Works on any device, because it moves what torch has allocated instead of allocating in its place: kernels, packers and generators of
inputs run as they are, and their outputs, workspaces and packed weights all get neighbours. Tensors made while a CUDA graph is captured
stay in the graph's pool, as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GUARD = 1 << 16
"""Bytes before and behind every buffer. A multiple of 512, so that buffers start where torch's allocator would have them start."""
PATTERN = 0xA5
"""Every byte of a guard, and of a buffer that nobody has written yet."""
UNWRITTEN = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
KERNELS = str(Path(__file__).resolve().parents[2] / "kernels")


@dataclass(frozen=True)
class Hit:
    """Bytes of a guard that somebody has written: how many, on which side of the buffer, and how far from it the nearest lies."""

    buffer: str
    side: str
    count: int
    distance: int

    def __str__(self) -> str:
        return f"{self.count} bytes {self.side} {self.buffer}, the nearest {self.distance} bytes from it"


@dataclass
class _Buffer:
    name: str
    nbytes: int
    storage: StorageWeakRef


class GuardedMemory(TorchDispatchMode):
    """As a context manager: allocations between guards. device: the type of device whose tensors are moved. Buffers live as long as
    somebody holds a tensor of them; `hits` looks at the guards of those that do."""

    def __init__(self, device: str, guard: int = GUARD) -> None:
        super().__init__()
        self._device, self._guard = device, guard
        self._buffers: dict[int, _Buffer] = {}
        self._owner = "nobody"

    @contextmanager
    def of(self, owner: str) -> Iterator[None]:
        """The mode, with a name for what is allocated meanwhile."""
        self._owner = owner
        with self:
            yield

    def name(self, tensors: Mapping[str, Any]) -> None:
        """Better names for buffers than the line that allocated them; what is no tensor, or lies in no buffer, is left out."""
        for name, tensor in tensors.items():
            buffer = self._buffers.get(tensor.untyped_storage()._cdata) if isinstance(tensor, torch.Tensor) else None
            if buffer is not None:
                buffer.name = name

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._device == "cuda" and torch.cuda.is_current_stream_capturing():
            return result
        name = func.overloadpacket.__name__
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        if name == "lift_fresh":  # a tensor made of numbers, that nobody else has seen
            given = set()

        def place(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or value.device.type != self._device or _storage(value) in given:
                return value
            return self._moved(value, name)

        return tree_map(place, result)

    def _moved(self, tensor: torch.Tensor, made_by: str) -> torch.Tensor:
        """The same tensor between guards; PATTERN in place of what nobody has written."""
        nbytes = tensor.untyped_storage().nbytes()
        if not nbytes:
            return tensor
        block = torch.full((nbytes + 2 * self._guard,), PATTERN, dtype=torch.uint8, device=tensor.device)
        if made_by not in UNWRITTEN:
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
            block[self._guard : self._guard + nbytes] = whole
        name = f"{tensor.dtype} {list(tensor.shape)} by {made_by} {_caller()} for {self._owner}"
        self._buffers[_storage(block)] = _Buffer(name, nbytes, StorageWeakRef(block.untyped_storage()))
        offset = self._guard // tensor.element_size() + tensor.storage_offset()
        moved = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return moved.set_(block.untyped_storage(), offset, tensor.shape, tensor.stride())

    def __len__(self) -> int:
        """How many buffers are alive."""
        return sum(1 for _ in self._alive())

    def hits(self) -> list[Hit]:
        """Every guard that is no longer what it was. Synchronizes."""
        alive = list(self._alive())
        if not alive:
            return []
        written = [(guard != PATTERN).any() for _, before, behind in alive for guard in (before, behind)]
        found, flags = [], torch.stack(written).tolist()
        for index, (buffer, before, behind) in enumerate(alive):
            if flags[2 * index]:
                found.append(_hit(buffer.name, "before", before.flip(0)))
            if flags[2 * index + 1]:
                found.append(_hit(buffer.name, "behind", behind))
        return found

    def heal(self) -> None:
        """Make all guards what they were."""
        for _, before, behind in self._alive():
            before.fill_(PATTERN)
            behind.fill_(PATTERN)

    def _alive(self) -> Iterator[tuple[_Buffer, torch.Tensor, torch.Tensor]]:
        """The buffers that somebody holds with the guards before and behind; the others are forgotten."""
        for key, buffer in list(self._buffers.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(buffer.storage.cdata)
            if storage is None:
                del self._buffers[key]
                continue
            block = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            yield buffer, block[: self._guard], block[self._guard + buffer.nbytes :]


def _hit(name: str, side: str, guard: torch.Tensor) -> Hit:
    """guard: its bytes, the nearest to the buffer first."""
    places = (guard != PATTERN).nonzero()[:, 0]
    return Hit(name, side, len(places), int(places[0]))


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _caller() -> str:
    """The innermost line of the kernels' own code, or of the test's, that asks for memory."""
    frame = sys._getframe(2)
    while frame.f_back is not None and not frame.f_code.co_filename.startswith(KERNELS):
        frame = frame.f_back
    return f"at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"

