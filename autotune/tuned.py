"""Tuned configs as the tuner writes, knows and explains them; they are looked up by `kernels.tuned`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from autotune.landscape import carried, committed
from autotune.table import read
from autotune.table import write as write_table
from kernels.gpu import Gpu
from kernels.kernel import Kernel
from kernels.problem import Op, Problem
from kernels.space import config_to_dict
from kernels.tuned import FOLDER, forget, lookup, of_layer, path_of, source_hash, verdict
from kernels.tuned_table import Entry


def write(path: Path, entries: Iterable[Entry], made: Mapping[str, Any] | None = None) -> None:
    """As `table.write`; what was looked up before is forgotten."""
    write_table(path, entries, made)
    forget()


@functools.cache
def sources(catalogue: str) -> dict[tuple[str, str], str]:
    """The hash of the source of every kernel of a catalogue, by its name and op."""
    kernels_for = import_module(catalogue).kernels_for
    return {(kernel.name, op): source_hash(kernel) for op in get_args(Op) for kernel in kernels_for(op)}


def all_known(table: Path) -> list[Entry]:
    """The entries of that table, then those of every other GPU's."""
    others = [path for path in sorted(FOLDER.glob("*.json")) if path.resolve() != table.resolve()]
    return [entry for path in (table, *others) for entry in read(path)]


def explain(kernel: Kernel, problem: Problem, gpu: Gpu, path: Path | None = None) -> str:
    """Lines that say which config `lookup` gives for a problem, why not another, and what carrying it over is expected to lose."""
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
