"""A child process that runs jobs one after another: what faults or hangs kills only the child, and the next job gets a new one."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import IO, Any, TypeAlias

from autotune.failures import failure_of, one_line, poisons_device
from kernels.errors import Failure, TerSparseError

START_SECONDS = 120.0
DYING_SECONDS = 30.0
"""A child that has hung up is given so long to end: the driver takes a context down meanwhile."""
Job: TypeAlias = tuple[str, tuple[Any, ...]]
"""("module:name" of a function, its arguments)."""
_SERVE = "import sys; sys.path[:] = {path!r}; from autotune.worker import serve; serve({handle}, {parent}, {first!r}, {nice}, {device!r})"


class Worker:
    """Runs `function(*arguments)` of an importable module in a child process with a session of its own; use as a context manager.

    environment: variables added to the child's. first: jobs (function, arguments) of every child as it starts, nobody waits for their
    results; a thread that one returns is joined after the last. nice: how much the child gives way to others. device: a CUDA device
    ("cuda:1") that it opens meanwhile. The child starts with the first call, or at `begin`, keeps its caches between jobs, and is killed
    with its whole process group on a timeout, on its death, on Ctrl+C in the parent, and by `close`. Not to be shared by threads.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, first: Sequence[Job] = (), nice: int = 0, device: str = "") -> None:
        self._environment, self._first, self._nice, self._device = dict(environment or {}), tuple(first), nice, device
        self._ready = False
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: Connection | None = None
        self._log: IO[bytes] | None = None

    def call(self, function: str, arguments: tuple[Any, ...], timeout: float) -> Any:
        """The job's result, or a Failure: timeout, died of a signal, out of memory, or what the function raised.

        function: "module:name". timeout: seconds, importing the module not counted. A TerSparseError of the job is raised here: it is bad
        input, not a failure of the candidate.
        """
        answers = list(self.stream(function, arguments, timeout))
        return answers[-1] if answers else None

    def stream(self, function: str, arguments: tuple[Any, ...], timeout: float) -> Iterator[Any]:
        """The items of a job that yields, as they come; a Failure as the last item where it does not finish. timeout: seconds per item."""
        try:
            started = self._start()
            if started is not None:
                yield started
                return
            assert self._channel is not None
            self._channel.send((function, arguments))
            yield from self._receive(timeout)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            yield self._obituary()
        except TerSparseError:
            raise  # the child has answered and lives
        except BaseException:
            self.close()
            raise

    def _receive(self, timeout: float) -> Iterator[Any]:
        assert self._channel is not None
        limit = START_SECONDS
        while True:
            if not self._channel.poll(limit):
                self.close()
                yield Failure("timeout", f"no answer within {limit:g} s; killed")
                return
            kind, value = self._read()
            if kind == "imported":
                limit = timeout
                continue
            if kind == "done":
                return
            if kind == "raise":
                raise value
            yield value
            if kind == "fatal":
                self.close()
            if kind in ("fatal", "failed"):
                return

    def _read(self) -> tuple[str, Any]:
        """The child's next message. Raises EOFError where it has died, also in the middle of one."""
        assert self._channel is not None
        try:
            kind, value = self._channel.recv()
        except OSError:
            raise EOFError from None
        return kind, value

    def begin(self) -> None:
        """Start the child where there is none, and do not wait for it."""
        if self._child is not None and self._child.poll() is None:
            return
        self.close()
        self._channel, theirs = Pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed in close(), it outlives this function
        code = _SERVE.format(path=sys.path, handle=theirs.fileno(), parent=os.getpid(), first=pickle.dumps(self._first), nice=self._nice,
                            device=self._device)
        self._child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, pass_fds=[theirs.fileno()],
            start_new_session=True, env={**os.environ, **self._environment},
        )
        theirs.close()

    def _start(self) -> Failure | None:
        self.begin()
        assert self._channel is not None
        if not self._ready:
            if not self._channel.poll(START_SECONDS):
                self.close()
                return Failure("timeout", f"the worker process did not start within {START_SECONDS:g} s")
            self._read()
            self._ready = True
        return None

    def _obituary(self) -> Failure:
        """What the dead child died of, with the last line it wrote."""
        assert self._child is not None
        assert self._log is not None
        try:
            code = self._child.wait(DYING_SECONDS)
        except subprocess.TimeoutExpired:  # it closed its end, or hangs in its own end
            self.close()
            return Failure("launch", "the worker process hung up and did not end; killed")
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        self.close()
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        telling = [line for line in lines if "error" in line.lower()]
        last = (telling or lines)[-1:]
        return Failure("launch", f"the worker process {how}" + "".join(f": {line[:200]}" for line in last))

    def kill(self) -> None:
        """Kill the child from another thread: the call in flight ends with a Failure."""
        child = self._child
        if child is not None and child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill the child and everything it started."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):  # the whole group may be gone already
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
            self._child, self._ready = None, False
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def wake(modules: Sequence[str]) -> None:
    """A job that only imports: what the next ones need, while there is nothing else to do."""
    for name in modules:
        importlib.import_module(name)


def waking(*modules: str) -> Job:
    """The job `wake`."""
    return "autotune.worker:wake", (modules,)


def serve(handle: int, parent: int, first: bytes, nice: int, device: str) -> None:
    """The child's side: answers jobs until the parent closes the channel or is gone. first: the pickled jobs that come before those."""
    channel = Connection(handle)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    if device.startswith("cuda:"):
        threading.Thread(target=_open, args=(int(device.removeprefix("cuda:")),), daemon=True).start()
    os.nice(nice)
    channel.send(("ready", None))
    begun = []
    for name, arguments in pickle.loads(first):
        with contextlib.suppress(ImportError):  # the first call that needs the module will say so
            begun.append(_function(name)(*arguments))
    for thread in begun:
        if isinstance(thread, threading.Thread):
            thread.join()
    while True:
        try:
            function, arguments = channel.recv()
        except EOFError:
            return
        _answer(channel, function, arguments)


def _function(text: str) -> Callable[..., Any]:
    module, _, name = text.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _open(index: int) -> None:
    """Open the device's context through the driver, about a second that importing torch need not wait for; torch finds it open.

    What does not work here does not work for the first job either, which says so.
    """
    with contextlib.suppress(OSError):
        driver, place, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
        if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(place), index) == 0:
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), place)


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _answer(channel: Connection, function: str, arguments: tuple[Any, ...]) -> None:
    try:
        job = _function(function)
        channel.send(("imported", None))
        result = job(*arguments)
        for item in result if isinstance(result, Iterator) else (result,):
            channel.send(("item", item))
        channel.send(("done", None))
    except TerSparseError as error:
        channel.send(("raise", type(error)(one_line(error))))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        channel.send(("fatal" if poisons_device(error) else "failed", failure_of(error)))
