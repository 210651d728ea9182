"""The share of `mma.sp`'s rate that the GEMMs reach which are built on it, at one clock and of a cool card's."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from reports.compare import TOGETHER, Comparison, compare
from reports.panel import Data, Panel, paragraph, table
from reports.power import name_of
from suites.floors import SPARSE_MMA

ABOUT = (
    "How much of the rate of mma.sp the kernels reach whose products are this instruction. It was timed from registers in the rounds of "
    "the same case, so that both ran at one clock; beside it the share of the rate that was measured before the cases, on a cool card at "
    "its highest clock. Lifted weights (6:8) count the operations of their lifted width."
)


def panel(data: Data) -> Panel | None:
    """A row per case and kernel whose rounds hold the rate of `mma.sp`; None where none does."""
    found = [
        item
        for case in data.results.measured if case.usual
        for result in case.record.results if result.ceiling and result.status == "ok"
        if (item := compare(case, SPARSE_MMA, data.results, result.kernel)).timed == TOGETHER
    ]
    if not found:
        return None
    return Panel("ceiling", "Share of the sparse tensor cores", "Share of mma.sp", paragraph(ABOUT) + _table(found))


def _table(found: Sequence[Comparison]) -> Markup:
    head = ("Case", "Kernel", "TOPS", "Of mma.sp at one clock", "95 % interval", "Of a cool card's")
    rows = []
    for item in found:
        if item.ratio and item.ours and item.our_us:
            share, low, high = (f"{value:.1%}" for value in (item.ratio.value, item.ratio.low, item.ratio.high))
            cool = f"{item.cool_share:.1%}" if item.cool_share else "–"
            tops = item.case.tops(item.our_us) or 0.0
            rows.append((name_of(item.case), item.ours.kernel, f"{tops:.0f}", share, f"{low} to {high}", cool))
    return table("Share of the sparse tensor cores", head, rows, text=(0, 1))
