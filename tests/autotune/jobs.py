"""Jobs for the worker's tests: they really hang, crash and raise."""

from __future__ import annotations

import ctypes
import gc
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

from kernels.errors import ShapeError


def add(first: int, second: int) -> int:
    return first + second


def process() -> int:
    return os.getpid()


def variable(name: str) -> str | None:
    return os.environ.get(name)


def count(limit: int) -> Iterator[int]:
    yield from range(limit)


def count_then_abort(limit: int) -> Iterator[int]:
    yield from range(limit)
    os.abort()


def hang_with_child(path: str) -> None:
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    with open(path, "w") as file:
        file.write(f"{os.getpid()} {grandchild.pid}")
    time.sleep(3600)


def segfault() -> None:
    ctypes.string_at(0)


def leave(status: int) -> None:
    print("some last words", file=sys.stderr, flush=True)
    os._exit(status)


def divide(number: int) -> float:
    return 1 / number


def bad_input() -> None:
    raise ShapeError("x is 3-D, expected 2-D")


def cuda_fault() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA` to enable assertions.")


def out_of_memory() -> None:
    raise RuntimeError("CUDA out of memory. Tried to allocate 3.00 GiB.")


def torch_of_a_plan(names: tuple[str, ...]) -> list[str]:
    """What planning sees of torch."""
    from autotune.early import stand_in

    if "torch" not in sys.modules:
        stand_in()
    return [repr(getattr(sys.modules["torch"], name)) for name in names]


def loaded(module: str) -> bool:
    return module in sys.modules


def later() -> threading.Thread:
    """Begins something and returns."""
    thread = threading.Thread(target=lambda: (time.sleep(0.5), sys.modules.setdefault("late.module", sys)))
    thread.start()
    return thread


def channel() -> Connection:
    """The child's end of what it answers through."""
    (found,) = [one for one in gc.get_objects() if isinstance(one, Connection)]
    return found


def half_an_answer() -> None:
    """Dies in the middle of what it writes to the parent."""
    os.write(channel().fileno(), struct.pack("!i", 100) + b"only so much")
    os._exit(9)


def hang_up_and_stay(seconds: float) -> None:
    """Closes what it answers through, as a process does that hangs in its own end."""
    channel().close()
    time.sleep(seconds)
