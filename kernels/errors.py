"""The errors of TerSparse, one tree.

    TerSparseError                 anything this project raises on purpose; its text is one line
    ├── UsageError                 a wrong argument: unknown model, suite, GPU, sparsity, an unwritable folder    (exit 2)
    ├── ShapeError                 shapes, dtypes, strides or devices that a kernel refuses before it launches    (exit 2)
    ├── NonFiniteError             a NaN or an infinity in a weight that is to be packed                          (exit 2)
    ├── SparsityError              weights that break the sparsity they claim                                     (exit 2)
    ├── PackError                  a packed file that is damaged, foreign, or of another layout or version        (exit 2)
    ├── RecordError                a results file of another schema, or damaged other than by a cut last line     (exit 2)
    ├── OutputError                results that cannot be written: no space, no permission                        (exit 2)
    ├── GpuMismatch                the device is not the GPU that was claimed                                     (exit 2)
    └── NoGpu                      a GPU is needed and there is none                                              (exit 5)

A candidate or a baseline that does not work is no exception but a value: `Failure(stage, reason)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stage = Literal["refused", "unavailable", "compile", "launch", "wrong", "timeout", "memory", "measure"]


class TerSparseError(Exception):
    """Base of every error that the project raises on purpose; `exit_code` is what a command returns for it."""

    exit_code = 2


class UsageError(TerSparseError):
    """A wrong argument; the text names what is allowed."""


class ShapeError(TerSparseError):
    """Shapes, dtypes, strides or devices that do not fit; raised before anything is launched."""


class NonFiniteError(TerSparseError):
    """A NaN or an infinity where a finite number is needed; the text names the tensor."""


class SparsityError(TerSparseError):
    """A weight with more non-zeros in a group than its sparsity allows."""


class PackError(TerSparseError):
    """A packed file that is damaged, foreign, or of another layout or version."""


class RecordError(TerSparseError):
    """A results file that cannot be read as this schema."""


class OutputError(TerSparseError):
    """A place that cannot be written to."""


class GpuMismatch(TerSparseError):
    """The device at hand is not the claimed GPU; the text names both."""


class NoGpu(TerSparseError):
    """A GPU is needed and none is there."""

    exit_code = 5


@dataclass(frozen=True)
class Failure:
    """Why something was not measured: the stage it failed in and one line of reason."""

    stage: Stage
    reason: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"
