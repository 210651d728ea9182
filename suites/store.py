"""Writing results and texts: a record is on the disk before the next is measured, a file is replaced whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from kernels.errors import OutputError
from suites.record import Record, to_line


class Writer:
    """Appends records to a .jsonl file, each flushed to the disk before the next is measured; OutputError when that fails.

    An unfinished last line of an earlier, interrupted write is cut off when the file is opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _cut_unfinished_line(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from None

    def write(self, record: Record) -> None:
        """Append one record and wait until it is on the disk."""
        rest = memoryview((to_line(record) + "\n").encode("utf-8", "replace"))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}; what was measured before is kept") from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cut_unfinished_line(path: Path) -> None:
    if not path.is_file():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)  # in place: rewriting would lose everything on a full disk


def write_all(path: Path, records: Iterable[Record]) -> None:
    """Replace a file by these records, so that a failure or an interruption leaves the old one."""
    write_text(path, "".join(to_line(record) + "\n" for record in records))


def write_text(path: Path, text: str) -> None:
    """Write a text file, its folder too, whole or not at all (a device such as /dev/stdout: as it comes); OutputError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8", errors="replace")
        else:
            _replace(Path(os.path.realpath(path)), text)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


def _replace(path: Path, text: str) -> None:
    """Through a temporary file beside it, of which nothing is left when it fails."""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
