"""One tuner per folder: a lock that names its owner and its age, and that the operating system frees when its owner dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

from kernels.errors import OutputError, UsageError


class FolderLock:
    """Holds a folder for this process from `__enter__` to `__exit__`.

    Raises UsageError where another process holds it, naming process, host and age; OutputError where the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._file: IO[str] | None = None

    def __enter__(self) -> FolderLock:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("a+", encoding="utf-8", errors="replace")
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read()
            file.close()
            raise UsageError(f"{self._path.parent} is in use by {_owner(owner)}; wait for it or end it") from None
        except OSError as error:  # a file system without locks, say
            file.close()
            raise OutputError(f"{self._path}: cannot be locked: {error.strerror}") from None
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}))
        file.flush()
        self._file = file
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()  # frees the lock; the file stays, since removing it would race with the next owner
            self._file = None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else who asks so is in that folder meanwhile; waits until it is free. Raises OutputError where it cannot be made or locked."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be locked: {error.strerror}") from None
        yield
    finally:
        os.close(handle)


def _owner(text: str) -> str:
    try:
        row = json.loads(text)
        return f"process {row['process']} on {row['host']}, for {max(0.0, time.time() - row['since']):.0f} s"
    except (json.JSONDecodeError, KeyError, TypeError):
        return "another process"
