"""Tuned configs as the tuner writes and explains them; they are read by `kernels.tuned`, whose names are here too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autotune.table import Entry as Entry
from autotune.table import Table as Table
from autotune.table import key_of as key_of
from autotune.table import layer_of as layer_of
from autotune.table import problem_of as problem_of
from autotune.table import read as read
from autotune.table import read_table as read_table
from autotune.table import shape_distance as shape_distance
from autotune.table import write as write_table
from kernels.gpu import Gpu
from kernels.kernel import Kernel
from kernels.problem import Problem
from kernels.space import config_to_dict
from kernels.tuned import FOLDER as FOLDER
from kernels.tuned import forget as forget
from kernels.tuned import installed as installed
from kernels.tuned import lookup as lookup
from kernels.tuned import major as major
from kernels.tuned import of_layer as of_layer
from kernels.tuned import path_of as path_of
from kernels.tuned import source_hash as source_hash
from kernels.tuned import table as table
from kernels.tuned import verdict as verdict


def write(path: Path, entries: Iterable[Entry], made: Mapping[str, Any] | None = None) -> None:
    """As `table.write`; what was looked up before is forgotten."""
    write_table(path, entries, made)
    forget()


def explain(kernel: Kernel, problem: Problem, gpu: Gpu, path: Path | None = None) -> str:
    """Lines that say which config `lookup` gives for a problem, why not another, and what carrying it over is expected to lose."""
    from autotune.landscape import carried, committed  # which needs this module

    config, source = lookup(kernel, problem, gpu, path)
    lines = [f"{kernel} for {problem} on {gpu.name}: {source} {config_to_dict(config)}"]
    found = of_layer(kernel, problem, path or path_of(gpu))
    for entry in found:
        reason = verdict(entry, kernel, problem, gpu)
        if entry.stays:
            few = f", {entry.evaluated[0]} of {entry.evaluated[1]} tried" if entry.evaluated else ""
            said = f"the default stays: nothing was shown to be faster ({entry.us:.2f} µs{few})"
            lines.append(f"  entry of {entry.date or 'unknown date'} for {entry.tokens} tokens: {reason or said}")
            continue
        gain = f"{entry.us:.2f} µs, default " + ("cannot run" if entry.default_us is None else f"{entry.default_us:.2f} µs")
        head = f"  entry of {entry.date or 'unknown date'} for {entry.tokens} tokens ({gain})"
        loss = "" if reason or entry.tokens == problem.tokens else f", {carried(kernel.name, entry.tokens, problem.tokens, committed())}"
        lines.append(f"{head}: {reason or 'usable'}{loss}; {dict(entry.config)}")
    if not found:
        lines.append("  no entry for this layer; its default config is a heuristic")
    return "\n".join(lines)
