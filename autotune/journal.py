"""The journal of a tuning run: one JSON line per finished candidate and per finished case, so that `--resume` goes on where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernels.errors import Failure, OutputError, RecordError


class Journal:
    """Append-only; each line is on the disk before the next candidate starts. Threads may share it.

    path: the .jsonl file. resume: whether what it holds already is used again (else it is only kept). Keys name everything a result
    depends on; a result under the same key is the same. Raises OutputError, and RecordError for a file that is not a journal.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._load(resume)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from None

    def _load(self, resume: bool) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(self.path, len(whole))  # in place: rewriting would lose everything on a full disk
        known = {_text(key): value for key, value in _rows(self.path, whole)}
        if resume:
            self._known = known

    def get(self, *key: Any) -> Any:
        """The value under a key, or None."""
        return self._known.get(_text(key))

    def put(self, value: Any, *key: Any) -> None:
        """Append a value under a key."""
        text = _text(key)
        line = json.dumps({"key": text, "value": value}, sort_keys=True) + "\n"
        with self._lock:
            self._known[text] = value
            try:
                self._file.write(line)
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise OutputError(f"{self.path}: cannot be written: {error.strerror}; what was measured before is kept") from None

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # what it could not write, `put` has told
            self._file.close()


def rows(path: Path) -> Iterator[tuple[list[Any], Any]]:
    """(key, value) of every line of a journal; a last one that was not finished is left out. Raises RecordError for what is no journal."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from None
    return _rows(path, content[: content.rfind(b"\n") + 1])


def _rows(path: Path, whole: bytes) -> Iterator[tuple[list[Any], Any]]:
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            key, value = json.loads(row["key"]), row["value"]
        except (ValueError, TypeError, KeyError):
            raise RecordError(f"{path}:{number}: not a line of a tuning journal") from None
        if not isinstance(key, list):
            raise RecordError(f"{path}:{number}: not a line of a tuning journal")
        yield key, value


class PoisonList:
    """Candidates that could not be run: not tried again until their kernel's source, the driver or the compiler changes.

    path: a file beside the journal. retry: forget nothing, but try them all the same. Keys as in the journal. What merely is refused,
    wrong, or out of memory is no poison: it is found out again at no risk.
    """

    FATAL = ("timeout", "launch", "compile")

    def __init__(self, path: Path, retry: bool = False) -> None:
        self._retry, self._journal = retry, Journal(path, resume=not retry)

    def get(self, *key: Any) -> Failure | None:
        """Why that candidate is not tried, or None."""
        known = self._journal.get(*key)
        return None if known is None else Failure(known["stage"], known["reason"])

    def retries(self, failure: Failure) -> bool:
        """Whether a candidate that failed so in an earlier run is tried again though the journal knows it."""
        return self._retry and failure.stage in self.FATAL

    def put(self, failure: Failure, *key: Any) -> None:
        """Remember a candidate, where its failure is of the kind that may kill a process."""
        if failure.stage in self.FATAL and self._journal.get(*key) is None:
            self._journal.put(outcome_to_plain(failure), *key)

    def close(self) -> None:
        """Close the file."""
        self._journal.close()


def outcome_to_plain(outcome: float | Failure) -> Any:
    """A candidate's outcome as JSON data."""
    return {"stage": outcome.stage, "reason": outcome.reason} if isinstance(outcome, Failure) else outcome


def outcome_from_plain(data: Any) -> float | Failure:
    """What `outcome_to_plain` made."""
    return Failure(data["stage"], data["reason"]) if isinstance(data, Mapping) else float(data)


def _text(key: Sequence[Any]) -> str:
    return json.dumps(key, sort_keys=True)
