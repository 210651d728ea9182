"""Tuned configs: a generated, committed JSON file per GPU, looked up by problem, never applied when its kernel has changed since.

They are made by `autotune.run`; here they are only read.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from kernels.gpu import Gpu
from kernels.kernel import Kernel
from kernels.problem import Problem
from kernels.space import Config
from kernels.tuned_table import REACH, Entry, Table, layer_of, read_table

FOLDER = Path(__file__).resolve().parent.parent / "autotune" / "tuned"


def source_hash(kernel: Kernel) -> str:
    """A hash of the source text that `kernel` is made of: the modules of its `prepare` and config, and of the Triton functions they use."""
    pending = {_module_of(kernel.prepare), kernel.space.config_type.__module__}
    texts: dict[str, str] = {}
    while pending:
        module = sys.modules[pending.pop()]
        texts[module.__name__] = inspect.getsource(module)
        functions = (value.fn for value in vars(module).values() if type(value).__module__.startswith("triton.") and hasattr(value, "fn"))
        pending |= {function.__module__ for function in functions} - texts.keys()
    return hashlib.sha256("\0".join(texts[name] for name in sorted(texts)).encode()).hexdigest()[:16]


def _module_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(inspect.unwrap(function).__module__)


def path_of(gpu: Gpu) -> Path:
    """The file of that GPU."""
    return FOLDER / f"{gpu.name}.json"


def forget() -> None:
    """Read every file again when it is asked for next: one was written."""
    for cached in (table, _layers, _answers):
        cached.cache_clear()


@functools.cache
def table(path: Path) -> Table:
    """The contents of a file, read once per process."""
    return read_table(path)


@functools.cache
def _layers(path: Path) -> dict[tuple[str, str, int, int, str, str], list[Entry]]:
    """All of them by `Entry.layer`."""
    found: dict[tuple[str, str, int, int, str, str], list[Entry]] = {}
    for entry in (*table(path).entries, *table(path).stays):
        found.setdefault(entry.layer, []).append(entry)
    return found


def of_layer(kernel: Kernel, problem: Problem, path: Path) -> list[Entry]:
    """What a file holds for that kernel and layer, the nearest number of tokens first; defaults that stay among them."""
    found = _layers(path).get(layer_of(kernel, problem), [])
    return sorted(found, key=lambda entry: _distance(entry.tokens, problem.tokens))


@functools.cache
def _answers(gpu: str, path: Path | None) -> dict[object, tuple[Config, str]]:
    """What was looked up before, by everything that the answer depends on; emptied with `table` by `forget`."""
    del gpu, path
    return {}


def lookup(kernel: Kernel, problem: Problem, gpu: Gpu, path: Path | None = None) -> tuple[Config, str]:
    """The config for a problem and where it is from: "tuned" or "default".

    The entry of exactly these tokens, else of the nearest tokens within a factor of `REACH` of the same layer, else the kernel's default;
    an entry may say itself that the default stays. Entries that `verdict` speaks against are passed over. path: another file than the
    GPU's own. After the first time a dictionary read.
    """
    answers, sparsity = _answers(gpu.name, path), problem.sparsity
    key = (  # plain values: the hash of a dataclass takes longer than all of this
        kernel.name, kernel.prepare, problem.op, problem.out_features, problem.in_features, problem.tokens, sparsity.n, sparsity.m,
        problem.dtype, problem.splits, problem.bias, gpu.sms, gpu.shared_bytes, gpu.memory_gb,
    )
    answer = answers.get(key)
    if answer is None:
        answer = answers[key] = _found(kernel, problem, gpu, path or path_of(gpu))
    return answer


def _found(kernel: Kernel, problem: Problem, gpu: Gpu, path: Path) -> tuple[Config, str]:
    for entry in of_layer(kernel, problem, path):
        if verdict(entry, kernel, problem, gpu) is None:
            if entry.stays:
                break
            return kernel.space.from_dict(entry.config), "tuned"
    return kernel.default_config(problem, gpu), "default"


def verdict(entry: Entry, kernel: Kernel, problem: Problem, gpu: Gpu) -> str | None:
    """Why an entry that fits the layer is not applied to this problem, or None."""
    if entry.source != source_hash(kernel):
        return "stale: the kernel's source has changed since it was tuned"
    for name, here in installed().items():
        then = major(entry.versions.get(name))
        if here is not None and then is not None and here != then:
            return f"stale: tuned with {name} {then}, here is {name} {here}"
    if entry.memory_gb is not None and gpu.measured_as == "datasheet" and entry.memory_gb != gpu.memory_gb:
        return f"stale: tuned on a {gpu.name} of {entry.memory_gb} GB, this one has {gpu.memory_gb}"
    if _distance(entry.tokens, problem.tokens) > REACH:
        return f"tuned for {entry.tokens} tokens, more than a factor of {REACH:g} away"
    if entry.stays:
        return None
    try:
        config = kernel.space.from_dict(entry.config)
    except TypeError as error:
        return f"not a config of this kernel: {error}"
    reason = kernel.space.reject(problem, gpu, config)
    return None if reason is None else f"rejected: {reason}"


@functools.cache
def installed() -> dict[str, str | None]:
    """Major versions that a tuned config depends on, here: of Triton, and of the driver, read without asking a device."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        text = ""
    driver = re.search(r"Kernel Module\D+(\d+)\.", text)
    try:
        triton = major(metadata.version("triton"))
    except metadata.PackageNotFoundError:
        triton = None
    return {"triton": triton, "driver": driver[1] if driver else None}


def major(version: str | None) -> str | None:
    """The major version of a version's text."""
    return None if version is None else version.split(".")[0]


def _distance(tuned: int, wanted: int) -> float:
    low, high = sorted((max(1, tuned), max(1, wanted)))
    return high / low
