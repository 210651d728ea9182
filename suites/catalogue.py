"""The table of contents of the suites, and the expansion of a user's selection into cases. Needs neither torch nor a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kernels.errors import UsageError
from kernels.problem import Sparsity
from suites import decode, layer, models, prefill, prepare, square, train
from suites.case import Case, Choice, Data, State, Suite
from suites.models import Layer

SUITES: tuple[Suite, ...] = (prefill.SUITE, decode.SUITE, layer.SUITE, prepare.SUITE, train.SUITE, square.SUITE)

SUSTAINED_SUITES = ("prefill", "square")
SUSTAINED_WHEN_NAMED = {"decode": (1, 16)}
"""Suites that are sustained only when they are asked for, and their tokens: joules per call of decode."""
SUSTAINED_TOKENS = 8192
SUSTAINED_LAYERS = ("W13", "W2")


@dataclass(frozen=True)
class Selection:
    """What a user asked for; empty means the defaults. suites, models, shapes, sparsities as on the command line; tokens as integers."""

    suites: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    sparsities: tuple[str, ...] = ()
    quick: bool = False
    state: State = "interleaved"
    data: tuple[Data, ...] = ()


def find(name: str) -> Suite:
    """The suite of that name; UsageError lists the names there are."""
    for suite in SUITES:
        if suite.name == name:
            return suite
    raise UsageError(f"unknown suite {name!r}; allowed: {', '.join(suite.name for suite in SUITES)}")


def plan(selection: Selection) -> tuple[Case, ...]:
    """The cases of a selection, each once, in the order of measuring; UsageError for unknown names, or where nothing is left."""
    named = tuple(map(find, selection.suites))
    layers = tuple(layer for name in selection.models for layer in models.find(name).layers)
    layers += tuple(map(models.parse_shape, selection.shapes))
    suites = named or tuple(suite for suite in SUITES if suite.shaped or not layers)
    if layers and any(not suite.shaped for suite in suites):
        raise UsageError("suite square has no layers: leave out --model and --shape, and give its sizes as --tokens")
    expand = _sustained if selection.state == "sustained" else _interleaved
    found = [case for suite in suites for case in expand(suite, selection, layers)]
    cases = tuple({case.key: case for case in _of_data(found, selection.data)}.values())
    if not cases:
        able = (*SUSTAINED_SUITES, *SUSTAINED_WHEN_NAMED)
        raise UsageError(f"nothing to measure with --state {selection.state}; sustained are {', '.join(able)}")
    return cases


def _of_data(cases: Sequence[Case], data: Sequence[Data]) -> Iterator[Case]:
    """The cases under each kind of operand values; those that are not the usual ones stand in the layer's name, and so in the key."""
    for case in cases:
        for kind in data or ("ternary",):
            if kind == "ternary":
                yield case
            elif case.problem.op == "gemm":
                yield replace(case, data=kind, layer=f"{case.layer} ({kind} data)")
            else:
                raise UsageError(f"--data {kind}: suite {case.suite} has only ternary data; allowed are the suites of the plain GEMM")


def _interleaved(suite: Suite, selection: Selection, layers: Sequence[Layer]) -> Iterator[Case]:
    quick = selection.quick
    sparsities = tuple(map(Sparsity.parse, selection.sparsities or suite.sparsities))
    tokens = selection.tokens or (suite.quick_tokens if quick else suite.tokens)
    chosen = tuple(layers) or (suite.quick_choice() if quick else suite.layers())
    return suite.cases(Choice(chosen, tokens, sparsities))


def _sustained(suite: Suite, selection: Selection, layers: Sequence[Layer]) -> Iterator[Case]:
    named = suite.name in selection.suites and suite.name in SUSTAINED_WHEN_NAMED
    if suite.name not in SUSTAINED_SUITES and not named:
        return
    tokens = selection.tokens or (SUSTAINED_WHEN_NAMED[suite.name] if named else (SUSTAINED_TOKENS,))
    chosen = tuple(entry for entry in layers or suite.layers() if entry.name in SUSTAINED_LAYERS or entry.model == "custom")
    if selection.quick:
        chosen = tuple(entry for entry in chosen if entry in suite.quick_choice()) or chosen[:1]
    sparsities = tuple(map(Sparsity.parse, selection.sparsities or suite.sparsities))
    for case in suite.cases(Choice(chosen, tokens, sparsities)):
        yield replace(case, state="sustained")


def listing(cases: Sequence[Case]) -> list[str]:
    """One line per case, then the counts by suite."""
    lines = [case.key for case in cases]
    counts = {suite.name: sum(case.suite == suite.name for case in cases) for suite in SUITES}
    return [*lines, *(f"{name}: {count} cases" for name, count in counts.items() if count), f"in all: {len(cases)} cases"]
