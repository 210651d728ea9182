"""Files of JSON lines: damage is told from a last line that an interrupted write has cut off. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kernels.errors import RecordError


def values(file: Path) -> Iterator[tuple[str, Any]]:
    """The value of each line, after the file and line that it is from.

    A last line that was cut off (no newline, not JSON) is dropped. RecordError for anything else that does not parse, or a whole number
    beyond 64 bits.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_int=_integer)
        except (json.JSONDecodeError, RecursionError):
            if number == len(lines):
                return
            raise RecordError(f"{file}:{number}: not JSON") from None
        except ValueError:
            raise RecordError(f"{file}:{number}: holds a whole number beyond 64 bits") from None
        yield f"{file}:{number}", value


def _integer(text: str) -> int:
    """ValueError for what no field holds: floats overflow on it."""
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError(text)
    return value
