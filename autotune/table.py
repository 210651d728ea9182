"""The file of tuned configs of a GPU: what its rows are for, and how it is written. Read by `kernels.tuned_table`. Needs neither torch nor
triton. See `autotune.tuned`."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernels.errors import OutputError
from kernels.kernel import Kernel
from kernels.problem import Problem, Sparsity
from kernels.tuned_table import SCHEMA, Entry, read_table


def key_of(kernel: Kernel, problem: Problem) -> tuple[str, str, int, int, int, str, str]:
    """The `Entry.key` for a problem."""
    return (
        kernel.op, kernel.name, problem.out_features, problem.in_features, problem.tokens, str(problem.sparsity), problem.dtype,
    )


def problem_of(entry: Entry) -> Problem:
    """The problem an entry is for, its weight with one scale."""
    sizes = entry.out_features, entry.in_features, entry.tokens
    return Problem(entry.op, *sizes, Sparsity.parse(entry.sparsity), dtype=entry.dtype)  # type: ignore[arg-type]  # as they were written


def shape_distance(first: Sequence[int], second: Sequence[int]) -> float:
    """Factors of two between two shapes, summed over their sizes."""
    return sum(abs(math.log2(max(1, a) / max(1, b))) for a, b in zip(first, second, strict=True))


def read(path: Path) -> tuple[Entry, ...]:
    """The winners of a file, none where there is no file. Raises RecordError for a file that is not of this schema."""
    return read_table(path).entries


def write(path: Path, entries: Iterable[Entry], made: Mapping[str, Any] | None = None) -> None:
    """Replace the file by these entries (those that say that a default stays among them), sorted, the last of equal keys winning; through
    a temporary file. OutputError when it fails."""
    rows = {entry.key: entry for entry in entries}
    winners, stays = ([rows[key] for key in sorted(rows) if rows[key].stays is stay] for stay in (False, True))
    head = {"schema": SCHEMA, **({"made": made} if made else {})}
    parts = [json.dumps(head, sort_keys=True)[1:-1], f'"entries": [\n{_lines(map(vars, winners))}\n]']
    if stays:
        parts.append(f'"defaults": [\n{_lines(map(_short, stays))}\n]')
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(f"{{{', '.join(parts)}}}\n")
            file.flush()
            os.fsync(file.fileno())  # or a power loss could leave an empty table under its name
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):  # it is gone where all went well
            temporary.unlink()


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return ",\n".join("  " + json.dumps(row, sort_keys=True) for row in rows)


def _short(stay: Entry) -> dict[str, Any]:
    """What is kept of an entry without a config: of the libraries only those that make it stale."""
    row = {name: value for name, value in vars(stay).items() if value not in (None, (), {}, "")}
    return {**row, "versions": {name: value for name, value in stay.versions.items() if name in ("triton", "driver")}}
