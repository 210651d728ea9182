"""The journal of a tuning run: one JSON line per finished candidate and per finished case, so that `--resume` goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernels.errors import Failure, OutputError, RecordError


class Journal:
    """Append-only; each line is on the disk before the next candidate starts.

    path: the .jsonl file. resume: whether what it holds already is used again (else it is only kept). Keys name everything a result
    depends on; a result under the same key is the same. Raises OutputError, and RecordError for a file that is not a journal.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
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
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                key, value = row["key"], row["value"]
            except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError):
                raise RecordError(f"{self.path}:{number}: not a line of a tuning journal") from None
            if resume:
                self._known[key] = value

    def get(self, *key: Any) -> Any:
        """The value under a key, or None."""
        return self._known.get(_text(key))

    def put(self, value: Any, *key: Any) -> None:
        """Append a value under a key."""
        self._known[_text(key)] = value
        try:
            self._file.write(json.dumps({"key": _text(key), "value": value}, sort_keys=True) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}; what was measured before is kept") from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def outcome_to_plain(outcome: float | Failure) -> Any:
    """A candidate's outcome as JSON data."""
    return {"stage": outcome.stage, "reason": outcome.reason} if isinstance(outcome, Failure) else outcome


def outcome_from_plain(data: Any) -> float | Failure:
    """What `outcome_to_plain` made."""
    return Failure(data["stage"], data["reason"]) if isinstance(data, Mapping) else float(data)


def _text(key: tuple[Any, ...]) -> str:
    return json.dumps(key, sort_keys=True)
