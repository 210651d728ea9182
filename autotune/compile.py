"""Cross-compilation without a device: what the compiler made of a kernel, read from the machine code."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from autotune.failures import one_line
from autotune.machine_code import Loop, main_loop
from kernels.errors import Failure, UsageError
from kernels.gpu import Gpu
from kernels.kernel import CompileUnit

UNIT_SECONDS = 120.0
_MATRIX = {"IMMA", "HMMA", "QMMA", "IGMMA", "HGMMA", "QGMMA", "WARPGROUP"}
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)", re.MULTILINE)
WAIT_FOR_ALL = "WARPGROUP.DEPBAR all"
"""Counted among the instructions: waits that leave no product in flight. A pipelined loop waits for all but one, or once for several."""
_WAIT_FOR_ALL = re.compile(r"WARPGROUP\.DEPBAR\S*\s+gsb\d+,\s*0x0\b")
_USAGE = re.compile(r"\b(REG|STACK|LOCAL):(\d+)")


@dataclass(frozen=True)
class Compiled:
    """What a unit became.

    registers: per thread. spills: bytes of local memory per thread (0 without spilling). shared_bytes: per block. instructions: how
    often each appears in the machine code, by name without modifiers; matrix instructions also with their first ("IGMMA.SP",
    "WARPGROUP.DEPBAR"). seconds: what compiling took, near nothing where Triton's own cache had it. warps: of a block, those that a
    kernel specializes included. loop: its main loop.
    """

    registers: int
    spills: int
    shared_bytes: int
    instructions: Mapping[str, int]
    seconds: float
    warps: int = 0
    loop: Loop | None = None


def use_cache(folder: str | None) -> None:
    """Let Triton keep its cache in that folder, in this process; None: where it is."""
    if folder is not None:
        import triton

        triton.knobs.cache.dir = folder


def settle_cache(folder: Path) -> int:
    """Make a cache that was compiled elsewhere usable in this folder; returns how many kernels it holds.

    Triton notes the files of each kernel by their absolute paths, which a copy to another place leaves behind. A note that cannot be read,
    or of files that are not here, goes: Triton would trip over it, and compiles such a kernel anew.
    """
    kernels = 0
    for note in folder.glob("*/__grp__*.json"):
        try:
            paths = dict(json.loads(note.read_text(encoding="utf-8"))["child_paths"])
        except (ValueError, KeyError, TypeError):
            paths = {}
        if not paths or not all((note.parent / name).is_file() for name in paths):
            note.unlink()
            continue
        kernels += 1
        here = {name: str(note.parent / name) for name in paths}
        if here != paths:
            temporary = note.with_name(f".{note.name}.{os.getpid()}")
            temporary.write_text(json.dumps({"child_paths": here}), encoding="utf-8")
            os.replace(temporary, note)
    return kernels


def refuse_interpreter() -> None:
    """UsageError in a process of Triton's interpreter, where nothing is compiled."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise UsageError("this process runs Triton's interpreter (TRITON_INTERPRET is set); compile in a process without it")


def compile_unit(unit: CompileUnit, gpu: Gpu) -> Compiled | Failure:
    """Compile for the GPU's architecture in this process; Failure("compile", one line) where that does not work, shared memory included.

    Raises UsageError in a process of Triton's interpreter.
    """
    refuse_interpreter()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import compile as triton_compile

    unit = unit.on(gpu.capability)
    started, target = time.perf_counter(), GPUTarget("cuda", gpu.capability, 32)
    try:
        kernel = triton_compile(_source(unit, target), target=target, options=dict(unit.options))
    except Exception as error:  # whatever a compiler throws at a candidate is that candidate's failure
        return Failure("compile", f"{type(error).__name__}: {one_line(error)}")
    seconds = time.perf_counter() - started
    shared = int(kernel.metadata.shared)
    if shared > gpu.shared_bytes:
        return Failure("compile", f"needs {shared} bytes of shared memory, {gpu.name} gives a block {gpu.shared_bytes}")
    try:
        usage, code = _machine_code(kernel.asm["cubin"])
    except (OSError, subprocess.SubprocessError) as error:
        return Failure("compile", f"the machine code cannot be read: {one_line(error)}")
    spills, warps = usage["STACK"] + usage["LOCAL"], int(kernel.metadata.num_warps)
    return Compiled(usage["REG"], spills, shared, count_instructions(code), seconds, warps, main_loop(code))


def _source(unit: CompileUnit, target: Any) -> Any:
    """What a launch would hand to the compiler, so that the launch finds it in Triton's cache: attributes are in the key."""
    from triton.compiler import ASTSource, make_backend
    from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

    function = unit.function
    special = [_specialized(unit, parameter) for parameter in function.params]
    values = {name: unit.constexprs.get(name) for name in function.arg_names}
    _, signature, constants, attributes = function._pack_args(make_backend(target), dict(unit.options), values, special, None)
    kind = GluonASTSource if isinstance(function, GluonJITFunction) else ASTSource
    return kind(function, signature, constants, attributes)


def _specialized(unit: CompileUnit, parameter: Any) -> tuple[str, Any]:
    """A parameter's type and what a launch notes of its value: "D" for a multiple of 16, None where it looks at nothing."""
    name, kind = parameter.name, unit.signature[parameter.name]
    if kind == "constexpr":
        return kind, unit.constexprs[name]
    if name in unit.divisible:
        return kind, "D"
    return kind, "" if kind.startswith(("*", "i", "u")) and kind != "u1" and not parameter.do_not_specialize else None


def _machine_code(cubin: bytes) -> tuple[dict[str, int], str]:
    """(REG, STACK, LOCAL) and the listing of a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True, timeout=60).stdout
        code = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True, timeout=60).stdout
    found = {"REG": 0, "STACK": 0, "LOCAL": 0}
    for name, value in _USAGE.findall(usage):
        found[name] = max(found[name], int(value))
    return found, code


def count_instructions(sass: str) -> dict[str, int]:
    """Instructions by name in a listing of machine code; matrix instructions also by name and first modifier."""
    counts: collections.Counter[str] = collections.Counter()
    for name, modifiers in _INSTRUCTION.findall(sass):
        counts[name] += 1
        if name in _MATRIX and modifiers:
            counts[name + "." + modifiers.split(".")[1]] += 1
    if waits := len(_WAIT_FOR_ALL.findall(sass)):
        counts[WAIT_FOR_ALL] = waits
    return dict(sorted(counts.items()))


def compile_pickled(data: bytes, gpu: Gpu, cache: str | None = None) -> Compiled | Failure:
    """`compile_unit` of what is sent to child processes. cache: folder of Triton's cache, by default Triton's own."""
    use_cache(cache)
    unit: CompileUnit = pickle.loads(data)
    return compile_unit(unit, gpu)


class _UnitPickler(pickle.Pickler):
    """Triton functions travel as module and name."""

    def reducer_override(self, value: Any) -> Any:
        if type(value).__module__.startswith("triton.") and hasattr(value, "fn") and hasattr(value, "arg_names"):
            return _find, (value.fn.__module__, value.fn.__qualname__)
        return NotImplemented


def pickled(unit: CompileUnit) -> bytes:
    """A unit as bytes, equal for equal units; `compile_pickled` reads them in another process."""
    buffer = io.BytesIO()
    _UnitPickler(buffer).dump(unit)
    return buffer.getvalue()


def _find(module: str, name: str) -> Any:
    return getattr(import_module(module), name)
