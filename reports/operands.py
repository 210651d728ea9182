"""Data-fair: the same shape under ternary, uniform random and zero operands, with clocks and watts; values change power, power clocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes

from reports.figures import WIDTH, heading, short
from reports.load import Case, Results
from reports.panel import Data, Panel, figures, paragraph, table
from reports.power import load_of, name_of
from reports.svg import INK, MARKERS, SERIES, Figure, draw
from suites.record import Result
from suites.statistics import time_us

KINDS = ("ternary", "uniform", "zero")


@dataclass(frozen=True)
class UnderData:
    """One kernel in one shape under one kind of operand values. over_ternary: its rate over that under ternary data.

    other_card: whether that was measured on another card, so that the two cards' difference is in it.
    """

    case: Case
    result: Result
    data: str
    over_ternary: float | None
    other_card: bool = False


def under_data(results: Results) -> list[UnderData]:
    """Every kernel of every shape and state that was measured under more than one kind of data, ternary first; sustained before
    interleaved."""
    shapes: dict[tuple[str, ...], dict[str, Case]] = {}
    for case in results.measured:
        record = case.record
        layer = record.layer.removesuffix(f" ({record.data} data)")
        shapes.setdefault((record.state, record.suite, record.model, layer, record.label, record.cache), {})[record.data] = case
    cards = {run.id: str(run.device.get("uuid")) for run in results.runs}
    found = []
    for key in sorted(shapes, key=lambda key: key[0] != "sustained"):
        cases = shapes[key]
        if len(cases) > 1:
            names = dict.fromkeys(result.kernel for kind in KINDS if kind in cases for result in cases[kind].record.results)
            found += [own for name in names for own in _of_kernel(name, cases, cards)]
    return found


def _of_kernel(name: str, cases: dict[str, Case], cards: dict[str, str]) -> Iterator[UnderData]:
    """A kernel under every kind of data; nothing where it was measured under one alone."""
    timed = {
        kind: (cases[kind], result, us)
        for kind in KINDS if kind in cases
        if (result := cases[kind].record.result(name)) is not None and result.status == "ok" and (us := time_us(result)) is not None
    }
    usual = timed.get("ternary")
    for kind, (case, result, us) in timed.items() if len(timed) > 1 else ():
        other = usual is not None and cards.get(case.record.run) != cards.get(usual[0].record.run)
        yield UnderData(case, result, kind, usual[2] / us if usual else None, other)


def panel(data: Data) -> Panel | None:
    """The panel, or None where every shape was measured under one kind of data."""
    values = under_data(data.results)
    if not values:
        return None
    said = paragraph(
        "The same shapes and kernels under other operand values. Values change power and so clocks under the cap: on this page every "
        "dense baseline is given the same ternary values as ours, which neither flatters nor hurts it. Uniform: weights from −15 to 15, "
        "activations from −127 to 127, which our packed weights cannot hold; zero: all of them zero."
    )
    busy = [own for own in values if own.case.record.state == "sustained"]
    drawn = figures([figure(busy)]) if busy else Markup("")
    return Panel("operands", "Operand values: ternary, uniform, zero", "Operand values", said + _told(values) + drawn + _table(values))


def _told(values: Sequence[UnderData]) -> Markup:
    """By how much the rate moves, by state and kind."""
    said = []
    for state in ("sustained", "interleaved"):
        parts = []
        for kind in KINDS[1:]:
            found = [own.over_ternary for own in values if own.data == kind and own.over_ternary and own.case.record.state == state]
            if found:
                low, high = f"{min(found):.2f}", f"{max(found):.2f}"
                parts.append(f"{kind} data at {low if low == high else f'{low} to {high}'}")
        if parts:
            said.append(f"{state.capitalize()}, kernels run with {' and with '.join(parts)} of their rate with ternary data.")
    return paragraph(" ".join(said)) if said else Markup("")


def figure(values: Sequence[UnderData]) -> Figure:
    """Sustained power over rate, a mark per kernel and kind of data."""
    labels = list(dict.fromkeys(f"{name_of(own.case)} {own.result.kernel}" for own in values))
    rates = [(f"{name_of(own.case)} {own.result.kernel}", own.data, own.case.tops(time_us(own.result) or 1.0)) for own in values]
    told = "; ".join(f"{label}, {kind}: {rate:.0f} TOPS" for label, kind, rate in rates if rate)
    title = "Sustained rate by operand values"

    def plot(axes: Axes) -> None:
        for place, kind in enumerate(KINDS):
            spots = [(rate, labels.index(label)) for label, own, rate in rates if own == kind and rate]
            if spots:
                x, y = zip(*spots, strict=True)
                axes.plot(x, y, linestyle="none", marker=MARKERS[place], color=SERIES[place], label=kind)
        axes.set_xlim(left=0)
        axes.set_yticks(range(len(labels)), [short(label, 34) for label in labels])
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_xlabel("TOPS, more is better")
        heading(axes, title, left=None)

    return draw("fig-operands", title, f"{title}. {told}.", (WIDTH, 1.4 + 0.26 * len(labels)), plot)


def _table(values: Sequence[UnderData]) -> Markup:
    head = ("Case", "State", "Kernel", "Data", "µs", "MHz", "W", "J/10¹²", "Rate over ternary")
    rows = []
    for own in values:
        load = load_of(own.case, own.result)
        over = f"{own.over_ternary:.3f}×" if own.over_ternary is not None else "–"
        over += " (another card)" if own.other_card else ""
        read = [(load.mhz, 0), (load.watts, 0), (load.joules, 3)]
        shown = [f"{value:.{digits}f}" if value is not None else "–" for value, digits in read]
        rows.append((name_of(own.case), own.case.record.state, own.result.kernel, own.data, f"{load.us:.1f}", *shown, over))
    return table("The same shape under ternary, uniform and zero data", head, rows, (0, 1, 2, 3))
