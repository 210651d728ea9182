"""Reading many records at the price of the few that count: what a later line supersedes is skipped before it is parsed.

A results file grows with every run, and of each case only the last line counts. The lines are first walked for their keys alone, which the
writer puts in front (`suites.record.to_line`); a line that does not begin that way is parsed like any other, so only time depends on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.errors import RecordError
from reports import database
from suites.record import Record, RunRecord, from_dict, read

_TEXT = rb'"((?:[^"\\]|\\.)*)"'
_NAMES = b"".join(b',"' + name + b'":' + _TEXT for name in (b"suite", b"model", b"layer", b"state", b"cache"))
_HEAD = re.compile(rb'\{"type":"case","run":' + _TEXT + _NAMES + rb',"problem":\{[^{}]*\},"label":' + _TEXT)
_EVIDENCE = re.compile(rb'\],"evidence":"(\w+)"')


@dataclass(frozen=True)
class _Place:
    """Where a line stands."""

    file: int
    number: int
    offset: int
    length: int


def read_latest(paths: Sequence[Path], most: int | None = None) -> tuple[list[tuple[Path, Record]], int]:
    """The records of files (.jsonl, .sqlite) and folders in order, of each case only the last; and how many cases were left out.

    most: at most so many cases of each kind of evidence, those written last. RecordError for what cannot be read, as `suites.record.read`.
    """
    files = [file for path in paths for file in files_of(path)]
    places: dict[tuple[Any, ...], _Place] = {}
    for index, file in enumerate(files):
        if file.suffix != database.SUFFIX:
            _walk(index, file, places)
    kept, left_out = _newest(places, most)
    found = list(_parsed(files, kept))
    return [*found, *((file, record) for file in files if file.suffix == database.SUFFIX for record in database.read(file))], left_out


def files_of(path: Path) -> list[Path]:
    """The results files that a path names: itself, or those in a folder; RecordError where there is none."""
    if not path.exists():
        raise RecordError(f"{path}: no such file or folder; a run is a folder, a .jsonl file or a {database.SUFFIX} file")
    found = sorted([*path.glob("*.jsonl"), *path.glob(f"*{database.SUFFIX}")]) if path.is_dir() else [path]
    if not found:
        raise RecordError(f"{path}: no .jsonl file in this folder")
    return found


def every(store: Path) -> Iterator[Record]:
    """Every record of a file, or of the .jsonl files in a folder and those below it; RecordError where there is none."""
    files = sorted(store.rglob("*.jsonl")) if store.is_dir() else files_of(store)
    if not files:
        raise RecordError(f"{store}: no .jsonl file in this folder or below")
    for file in files:
        yield from database.every(file) if file.suffix == database.SUFFIX else read(file)


def _walk(index: int, file: Path, places: dict[tuple[Any, ...], _Place]) -> None:
    """Note where the lines of a file stand, the last one of each case; what is no case is kept under a key of its own."""
    offset = 0
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    head = _HEAD.match(line)
                    whole = head is not None and line.endswith(b"}\n")
                    key = (*head.groups()[1:], *_EVIDENCE.findall(line, head.end())) if head and whole else (index, number)
                    places[key] = _Place(index, number, offset, len(line))
                offset += len(line)
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error.strerror}") from None


def _newest(places: dict[tuple[Any, ...], _Place], most: int | None) -> tuple[list[_Place], int]:
    """The places in order, without the oldest cases beyond `most` of each kind of evidence."""
    if most is None:
        return list(places.values()), 0
    kinds: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for key in places:
        if len(key) != 2:
            kinds.setdefault(key[6:], []).append(key)
    dropped = set()
    for keys in kinds.values():
        ordered = sorted(keys, key=lambda key: (places[key].file, places[key].number))
        dropped |= set(ordered[: max(0, len(ordered) - most)])
    return [place for key, place in places.items() if key not in dropped], len(dropped)


def _parsed(files: Sequence[Path], places: Sequence[_Place]) -> Iterator[tuple[Path, Record]]:
    """The records at these places, in their order; the first line of each file opens its run."""
    last = {place.file: place.offset for place in sorted(places, key=lambda place: place.offset)}
    first = {place.file: place.offset for place in sorted(places, key=lambda place: -place.offset)}
    with ExitStack() as stack:
        streams = {index: stack.enter_context(files[index].open("rb")) for index in first}
        for place in places:
            file, stream = files[place.file], streams[place.file]
            stream.seek(place.offset)
            record = _record(stream.read(place.length), f"{file}:{place.number}", place.offset == last[place.file])
            if record is not None and place.offset == first[place.file] and not isinstance(record, RunRecord):
                raise RecordError(f"{file}:{place.number}: a results file starts with its run record")
            if record is not None:
                yield file, record


def _record(line: bytes, where: str, last: bool) -> Record | None:
    """The record on a line; None for a last line that an interruption cut off."""
    try:
        data = json.loads(line)
    except UnicodeDecodeError as error:
        raise RecordError(f"{where}: cannot be read: {error}") from None
    except (json.JSONDecodeError, RecursionError):
        if last and not line.endswith(b"\n"):
            return None
        raise RecordError(f"{where}: not JSON") from None
    return from_dict(data, where)
