"""The panel of what was compiled and not measured: machine code, occupancy, and the least time that it allows against the roof."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from reports.figures import WIDTH, short
from reports.load import Case, Results
from reports.panel import Data, Panel, figures, folded, paragraph, table, tag
from reports.svg import INK, SERIES, Figure, draw
from reports.tables import one_line
from suites.record import Result

MIX = (
    ("products", ("tensor", "dot")), ("integer", ("integer",)), ("multiply, convert", ("multiply", "convert")),
    ("shared memory", ("shared",)), ("device memory", ("global",)), ("other", ("other",)),
)
MOST_BARS, MOST_ROWS = 12, 30
PORT_BYTES = 128
SAID = "compiled, not measured"


def panel(data: Data) -> Panel | None:
    """The section; None where nothing was compiled."""
    found = [(case, result) for case in data.results.cases if case.record.evidence == "compiled" for result in case.record.results]
    if not found:
        return None
    parts = [paragraph(tag(SAID)), *_machine_code(data.results, found), *_times(found)]
    return Panel("compiled", f"Machine code for {data.results.gpu}: {SAID}", "Compiled", Markup("\n").join(parts))


def _functions(result: Result) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The functions of a result whose figures stand by name; older records keep them otherwise, and have none here."""
    return ((name, own) for name, own in result.compiled.items() if isinstance(own, Mapping) and isinstance(own.get("registers"), int))


def _machine_code(results: Results, found: Sequence[tuple[Case, Result]]) -> list[Markup]:
    rows = _code_rows(found)
    head = ["Function", "Registers", "Spills", "Shared, KB", "Resident warps", "Main loop", "Shared bytes per clock", "First in"]
    note = (
        f"Cross-compiled for {results.gpu} and read from the machine code; nothing ran. Resident warps: how many a multiprocessor holds, "
        "and what a further block lacks. Main loop: what a warp issues in one passage. Shared bytes: its own loads and stores in the time "
        f"that its products need at the full rate; beyond {PORT_BYTES} the tensor cores wait."
    )
    bars = _bars(found)
    drawn = figures([_mix(bars)]) if bars else Markup("")
    return [paragraph(note, "note"), drawn, table("Machine code", [*head, "Config", "Of"], rows, text=(0, 4, 5, 7, 8, 9))]


def _code_rows(found: Sequence[tuple[Case, Result]]) -> list[list[object]]:
    """A row per function and machine code, with the kernels that are made of it."""
    rows: dict[str, list[object]] = {}
    makers: dict[str, list[str]] = {}
    for case, result in found:
        made = [(f"{name} {one_line(_without_problem(own))}", _function_row(case, result, name, own)) for name, own in _functions(result)]
        if not made:
            row = _plain_row(case, result)
            made = [(" ".join(map(str, row)), row)]
        for key, row in made:
            rows.setdefault(key, row)
            names = makers.setdefault(key, [])
            names += [one for one in (f"{result.kernel} {case.problem.op}",) if one not in names]
    return [[*row, ", ".join(makers[key])] for key, row in rows.items()]


def _without_problem(own: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in own.items() if name != "walls_us"}


def _bars(found: Sequence[tuple[Case, Result]]) -> dict[str, Mapping[str, int]]:
    """The distinct main loops by function and tokens of the case, at most so many."""
    bars: dict[str, Mapping[str, int]] = {}
    for case, result in found:
        for name, own in _functions(result):
            if own.get("loop") and own["loop"]["kinds"] not in bars.values():
                bars.setdefault(f"{name.removesuffix('_kernel')}, T = {case.problem.tokens}", own["loop"]["kinds"])
    return dict(list(bars.items())[:MOST_BARS])


def _function_row(case: Case, result: Result, name: str, own: Mapping[str, Any]) -> list[object]:
    held, loop = own.get("occupancy"), own.get("loop")
    resident = f"{held['warps']} of {held['most_warps']}, by {held['limit']}" if held else "–"
    shared, mix = f"{own.get('shared_bytes', 0) / 1024:.1f}", _mix_text(loop) if loop else "no products to count"
    port, config = _port(own.get("walls_us", {})), one_line(result.config) or "–"
    return [name, own["registers"], own.get("spills", "–"), shared, resident, mix, port, case.record.label, config]


def _plain_row(case: Case, result: Result) -> list[object]:
    said = one_line(result.compiled) or f"{result.status}: {result.reason}"
    return ["–", "–", "–", "–", "–", said, "–", case.record.label, one_line(result.config) or "–"]


def _mix_text(loop: Mapping[str, Any]) -> str:
    return f"{loop['instructions']}: {_told(loop['kinds'])}"


def _told(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {share:.0f} %" for name, share in _shares(kinds) if share >= 0.5)


def _shares(kinds: Mapping[str, int]) -> list[tuple[str, float]]:
    whole = sum(kinds.values()) or 1
    return [(name, 100 * sum(kinds.get(kind, 0) for kind in own) / whole) for name, own in MIX]


def _port(walls: Mapping[str, float]) -> str:
    tensor, shared = walls.get("tensor cores"), walls.get("shared memory", 0.0)
    return f"{PORT_BYTES * shared / tensor:.0f}" if tensor else "–"


def _times(found: Sequence[tuple[Case, Result]]) -> list[Markup]:
    rows: list[list[object]] = []
    for case, result in found:
        roof, serial, limit = result.notes.get("roof_us"), result.notes.get("serial_us"), result.notes.get("limit", "–")
        if result.status != "ok":
            rows.append([result.kernel, case.record.label, f"{result.status}: {result.stage}: {result.reason}", *"–––––"])
        elif result.projected_us and isinstance(roof, (int, float)) and isinstance(serial, (int, float)):
            every = [own["walls_us"] for _, own in _functions(result) if own.get("walls_us")]
            walls = [one_line({name: f"{us:.1f}" for name, us in one.items()}) for one in every]
            shares = f"{100 * roof / serial:.0f} to {100 * roof / result.projected_us:.0f} %"
            times = (f"{result.projected_us:.1f}", f"{serial:.1f}", f"{roof:.1f}", shares)
            rows.append([result.kernel, case.record.label, limit, *times, "; ".join(walls) or "–"])
    if not rows:
        return []
    head = ["Kernel", "Case", "Slowest wall", "At least µs", "Without overlap µs", "Roof µs", "Of the roof", "Every wall, µs"]
    note = (
        "What this machine code takes of tensor cores, issue, integer units, shared memory and device memory at the datasheet's rates and "
        "clock: at least the slowest of these walls, and all of them together where nothing overlaps. Latency, epilogue, padded tiles and "
        "the last wave come on top. The roof is that of the problem for any machine code of the kernel's kind. Predicted, not measured."
    )
    content = table("Predicted times", head, rows, text=(0, 1, 2, 7))
    shown = content if len(rows) <= MOST_ROWS else folded(f"{len(rows)} predictions: {SAID}", content)
    return [Markup("<h3>Predicted time against the roof</h3>"), paragraph(note, "note"), shown]


def _mix(bars: Mapping[str, Mapping[str, int]]) -> Figure:
    """A bar per kernel, divided by what its main loop issues."""
    names, title = list(bars), f"Main loops: {SAID}"
    told = ". ".join(f"{name}: {_told(bars[name])}" for name in names)

    def plot(axes: Axes) -> None:
        for place, name in enumerate(names):
            left = 0.0
            for colour, (_, share) in zip(SERIES, _shares(bars[name]), strict=True):
                axes.barh([place], [share], left=[left], color=colour, height=0.7)
                left += share
        for colour, (kind, _) in zip(SERIES, MIX, strict=True):
            axes.barh([0], [0], color=colour, label=kind)
        axes.set_yticks(range(len(names)), [short(name, 26) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of the instructions")
        axes.grid(visible=False, axis="y")
        axes.set_title(title, loc="left", weight="bold", fontsize=11, color=INK, pad=52, x=-0.45)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.45, 1.0), ncols=2)

    return draw("fig-compiled-mix", title, f"{title}. {told}.", (WIDTH, 1.8 + 0.3 * len(names)), plot)
