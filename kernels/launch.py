"""Launches of Triton functions that are made again and again, at a part of what Triton's own launch takes the host.

Triton looks at every argument of every launch for what it may specialize, writes the options into a text to look the machine code up,
and calls hooks. Here a launch like one before goes straight to the machine code that Triton chose then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from triton.runtime.jit import JITFunction

MOST_LAUNCHES = 8192
"""Kinds of launches that are remembered, before all are forgotten: those of all layers, by numbers of tokens."""


class Launch:
    """A kind of launch: a Triton or Gluon function with everything but its tensors.

    kernel: its parameters are descriptors (TMA's), tensors, integers, compile-time values, in this order. constants: these and options.
    Whoever calls it gives the same number of descriptors each time, whose blocks, types and layouts follow from the constants.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], integers: tuple[int, ...], **constants: Any) -> None:
        self._kernel, self._grid, self._integers, self._constants = kernel, grid, integers, constants
        self._triton = isinstance(kernel, JITFunction)
        self._codes: dict[object, tuple[Any, ...]] = {}

    def __call__(self, tensors: Sequence[torch.Tensor | None], descriptors: Sequence[Any] = ()) -> None:
        """Launch on the current stream of the tensors' device; the first of them is one.

        Addresses that are no multiples of 16 take Triton's way, as everything does under hooks of profilers and in Triton's interpreter.
        """
        if not self._triton:
            self._launched(tensors, descriptors)
            return
        assert tensors[0] is not None
        driver, device = triton.runtime.driver.active, tensors[0].get_device()
        if device != driver.get_current_device():
            with torch.cuda.device(device):
                self(tensors, descriptors)
            return
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        kind = (device, *[None if tensor is None else tensor.dtype for tensor in tensors])
        together = 0
        for address in addresses:
            if address is not None:
                together |= address
        code, hooks = self._codes.get(kind), triton.knobs.runtime
        if code is None or together & 15 or hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:
            compiled = self._launched(tensors, descriptors)
            if not together & 15:
                self._remember(kind, compiled, len(descriptors) + len(tensors))
            return
        run, width, height, depth, function, metadata, rest = code
        run(width, height, depth, driver.get_current_stream(device), function, metadata, None, None, None, *descriptors, *addresses, *rest)

    def start(self, device: int, addresses: Sequence[int | None],
              tensors: Callable[[], Sequence[torch.Tensor | None]]) -> None:
        """The same on the current stream of the current device, of this index, for tensors whose types are the same every time.

        addresses: theirs, multiples of 16. tensors: gives them where Triton has to see them: the first time, and under hooks.
        """
        code, hooks = self._codes.get(device), triton.knobs.runtime
        if code is None or hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:
            compiled = self._launched(tensors(), ())
            if self._triton:
                self._remember(device, compiled, len(addresses))
            return
        run, width, height, depth, function, metadata, rest = code
        stream = triton.runtime.driver.active.get_current_stream(device)
        run(width, height, depth, stream, function, metadata, None, None, None, *addresses, *rest)

    def _launched(self, tensors: Sequence[torch.Tensor | None], descriptors: Sequence[Any]) -> Any:
        return self._kernel[self._grid](*descriptors, *tensors, *self._integers, **self._constants)

    def _remember(self, kind: object, compiled: Any, given: int) -> None:
        rest = (*self._integers, *(None,) * (len(self._kernel.arg_names) - given - len(self._integers)))
        self._codes[kind] = (compiled.run, *self._grid, *(1,) * (3 - len(self._grid)), compiled.function, compiled.packed_metadata, rest)


@functools.cache
def _known() -> dict[Any, tuple[Launch, Any]]:
    """The launches so far, each with its function, so that the id of this stays its own."""
    return {}


def launch(kernel: Any, grid: tuple[int, ...], tensors: Sequence[torch.Tensor | None], integers: tuple[int, ...], **constants: Any) -> None:
    """`Launch(kernel, grid, integers, **constants)(tensors)`, one object for all launches that are alike."""
    known, key = _known(), (id(kernel), grid, integers, (*constants.items(),))
    found = known.get(key)
    if found is None:
        if len(known) >= MOST_LAUNCHES:
            known.clear()
        found = known[key] = Launch(kernel, grid, integers, **constants), kernel
    found[0](tensors)


def current_stream_handle(device: torch.device) -> int:
    """The current stream of a CUDA device as the driver knows it."""
    handle: int = triton.runtime.driver.active.get_current_stream(device.index)
    return handle
