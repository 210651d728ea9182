"""Exceptions as values: which stage of a candidate failed, in one line."""

from __future__ import annotations

from kernels.errors import Failure, Stage

_STAGES: dict[str, Stage] = {
    "CompilationError": "compile", "CompileTimeAssertionFailure": "compile", "UnsupportedLanguageConstruct": "compile",
    "PTXASError": "compile", "OutOfResources": "compile", "OutOfMemoryError": "memory", "MemoryError": "memory", "Unmeasurable": "measure",
}
"""By class name, so that neither torch nor triton is needed to read an error."""


def one_line(error: BaseException) -> str:
    """The line of an exception's text that says most: the first with "error" in it, else the last; its class where there is no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()]
    return ((telling or lines[-1:]) or [type(error).__name__])[0][:300]


def failure_of(error: BaseException) -> Failure:
    """The failure that an exception of a candidate stands for; out of memory and CUDA faults are told apart by the text."""
    names = [kind.__name__ for kind in type(error).__mro__]
    stage: Stage = next((_STAGES[name] for name in names if name in _STAGES), "launch")
    line = one_line(error)
    if stage == "launch" and "out of memory" in str(error).lower():
        stage = "memory"
    named = type(error).__name__
    return Failure(stage, line if named in ("RuntimeError", line) else f"{named}: {line}")


def poisons_device(error: BaseException) -> bool:
    """Whether the process's CUDA context is lost: a CUDA error other than memory that merely ran out."""
    text = str(error).lower()
    return ("cuda error" in text or "[cuda]" in text or "cublas_status_execution_failed" in text) and "out of memory" not in text
