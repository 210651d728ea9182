"""The roofline: rate over arithmetic intensity under the roofs that were measured on the same device."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from reports.compare import Comparison
from reports.figures import TICKS, WIDTH, heading, short
from reports.load import TERA, Results
from reports.svg import MARKERS, MUTED, SERIES, Figure, draw


def roofline(figure_id: str, title: str, results: Results, families: Sequence[tuple[str, Sequence[Comparison]]]) -> Figure:
    """Rate over arithmetic intensity of the fastest variant of each case, a series per family, under the measured roofs."""
    bandwidth = max(results.rates.get("B/s", {}).values(), default=0.0)
    rates = sorted(results.rates.get("op/s", {}).items(), key=lambda item: item[1])
    dots = {name: [dot for item in items if (dot := _dot(item))] for name, items in families}
    every = [dot for some in dots.values() for dot in some]
    told = "; ".join(f"{name}: {len(some)} cases up to {max(y for _, y in some):.0f} TOPS" for name, some in dots.items() if some)
    roofs = ", ".join([f"{bandwidth / TERA:.2f} TB/s"] + [f"{name} {rate / TERA:.0f} TOPS" for name, rate in rates])

    def plot(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.set_yscale("log")
        xs, ys = [x for x, _ in every] or [1.0, 1e4], [y for _, y in every] or [rate / TERA for _, rate in rates] or [1.0]
        low, high = min(xs) / 1.6, max(xs) * 1.6
        axes.set_xlim(low, high)
        axes.set_ylim(min(ys) / 1.6, max([*ys, *(rate / TERA for _, rate in rates)]) * 1.6)
        spot = 0.0
        for name, rate in rates:
            axes.plot([max(rate / bandwidth, low) if bandwidth else low, high], [rate / TERA] * 2, color=MUTED, linewidth=1)
            spot = max(rate / TERA, spot * (axes.get_ylim()[1] / axes.get_ylim()[0]) ** 0.05)
            axes.text(1.02, spot, short(name), transform=axes.get_yaxis_transform(), va="center", color=MUTED, fontsize=8.5)
        if bandwidth:
            knee = max((rate for _, rate in rates), default=bandwidth * high) / bandwidth
            axes.plot([low, knee], [low * bandwidth / TERA, knee * bandwidth / TERA], color=MUTED, linewidth=1, scalex=False, scaley=False)
        for place, (name, some) in enumerate((name, some) for name, some in dots.items() if some):
            x, y = zip(*some, strict=True)
            axes.plot(x, y, linestyle="none", marker=MARKERS[place], color=SERIES[place], alpha=0.75, markersize=4, label=short(name))
        for axis, (least, most) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            fitting = [[tick for tick in ticks if least <= tick <= most] for ticks in TICKS[:3]]
            axis.set_major_locator(FixedLocator(next((ticks for ticks in reversed(fitting) if len(ticks) <= 6), fitting[0])))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("operations per compulsory byte")
        axes.set_ylabel("TOPS")
        heading(axes, title)

    return draw(figure_id, title, f"{title}. Roofs: {roofs}. {told}.", (WIDTH, 3.9), plot)


def _dot(item: Comparison) -> tuple[float, float] | None:
    record, us = item.case.record, item.our_us
    if not us or not record.operations or not record.compulsory_bytes:
        return None
    return record.operations / record.compulsory_bytes, record.operations / us / 1e6
