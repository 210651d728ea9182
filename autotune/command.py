"""What every command shares: one-line errors with their exit codes, and the reading of shapes and tokens. Needs no torch."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from kernels.errors import OutputError, TerSparseError, UsageError

INTERRUPTED = 130
OPTIONAL = ("torch", "triton", "safetensors")
"""Modules that a plain install may lack."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UsageErrors of one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UsageError(message)


def guarded(name: str, body: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Run a command's body and return its exit code: errors become one line on stderr and their code, an interrupt becomes 130.

    What the operating system refuses (no space for a temporary file, say) counts as an OutputError.
    """
    try:
        return body()
    except TerSparseError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return OutputError.exit_code
    except KeyboardInterrupt:
        print(f"{name}: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        print(f"{name}: {error.name} is not installed; it comes with the extra gpu: pip install 'tersparse[gpu]'", file=sys.stderr)
        return UsageError.exit_code
    except SystemExit as stop:  # --help
        return int(stop.code or 0)


def parse_shape(text: str) -> tuple[int, int]:
    """(out_features, in_features) of `NxK`, such as 13824x2560; UsageError otherwise."""
    found = re.fullmatch(r"([1-9]\d*)[xX×]([1-9]\d*)", text.strip())
    if not found:
        raise UsageError(f"unknown shape {text!r}; allowed: out_features x in_features, such as 13824x2560")
    return int(found[1]), int(found[2])


def parse_tokens(texts: Sequence[str]) -> tuple[int, ...]:
    """Distinct numbers of tokens from words that may hold commas; UsageError for what is no positive integer."""
    values = [value.strip() for text in texts for value in text.split(",") if value.strip()]
    if texts and not values:
        raise UsageError(f"no tokens in {' '.join(texts)!r}; allowed: positive integers, such as 512,4096")
    for value in values:
        if not value.isdecimal() or int(value) < 1:
            raise UsageError(f"unknown tokens {value!r}; allowed: positive integers, such as 512,4096")
    return tuple(dict.fromkeys(map(int, values)))
