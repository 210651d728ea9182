"""Layer by layer: what each linear layer of a model costs and what they cost together, per token, per prompt and per training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from reports.answers import BLOCK, BLOCKS, Answer, answers
from reports.compare import in_order
from reports.figures import short, slug, times
from reports.panel import Data, Panel, figures, paragraph, table
from reports.picker import duration
from reports.sketch import Sketch
from reports.svg import Figure
from suites.record import Result
from suites.statistics import time_us

WIDTH, ROW, BAR, TOP = 331.0, 34.0, 15.0, 24.0


@dataclass(frozen=True)
class Scenario:
    """What a model is asked for: its op and number of tokens, and its name."""

    op: str
    tokens: int
    name: str


SCENARIOS = (
    Scenario("gemm", 1, "one token, weights out of cache"),
    Scenario("layer", 2048, "a prompt of 2048 tokens"),
    Scenario("step", 4096, "a training step of 4096 tokens"),
)


@dataclass(frozen=True)
class Stack:
    """One bar: its name, and µs of each layer by name."""

    name: str
    parts: Mapping[str, float]

    @property
    def us(self) -> float:
        """The layers together, µs."""
        return sum(self.parts.values())


def panel(data: Data) -> Panel | None:
    """A figure per model and scenario, and the totals over all blocks of a model as a table."""
    found = [answer for answer in answers(data.comparer) if answer.whole]
    chosen = {(one.model, scenario): own for scenario in SCENARIOS for one in found if (own := _of(found, one.model, scenario))}
    if not chosen:
        return None
    order = in_order({model for model, _ in chosen}, ())
    keys = sorted(chosen, key=lambda key: (order.index(key[0]), SCENARIOS.index(key[1])))
    drawn = [figure(model, scenario, stacks(chosen[model, scenario])) for model, scenario in keys]
    rows = [row for model, scenario in keys for row in _totals(model, scenario, chosen[model, scenario])]
    about = (
        f"Kernel time of each linear layer of one block (from the left: {', '.join(BLOCK)}), and their sum. "
        "Each layer with the fastest kernel of its side."
    )
    sums = (
        "The linear layers of all blocks together: one block as measured, times the number of blocks. Attention, norms, embeddings and "
        "launches are not in it, so a model is slower than this. Each block is taken to cost the same."
    )
    head = ("Model", "What", "Weights", "Blocks", "Ours", "Strongest", "dense-bf16", "Over strongest", "Over dense-bf16")
    html = paragraph(about) + figures(drawn)
    html += paragraph(sums) + table("Cost of whole models", head, rows, text=(0, 1, 2))
    return Panel("layers", "Layer by layer, and in total", "Layers and totals", html)


def _of(found: Sequence[Answer], model: str, scenario: Scenario) -> list[Answer]:
    return [one for one in found if (one.model, one.work, one.tokens) == (model, scenario.op, scenario.tokens)]


def stacks(own: Sequence[Answer]) -> list[Stack]:
    """The bars of one figure: ours and the strongest per sparsity, and dense bf16."""
    made = []
    for answer in own:
        ours = {item.case.record.layer: item.our_us or 0.0 for item in answer.items}
        theirs = {item.case.record.layer: item.their_us or 0.0 for item in answer.items}
        made.append(Stack(f"{answer.sparsity} ours: {', '.join(answer.ours)}", ours))
        made.append(Stack(f"{answer.sparsity} strongest: {', '.join(answer.theirs)}", theirs))
    plain = {item.case.record.layer: us for item in own[0].items if (us := _bf16(item.case.record.result("dense-bf16")))}
    return [*made, Stack(_plain_name(own[0]), plain)] if len(plain) == len(BLOCK) else made


def _plain_name(answer: Answer) -> str:
    """Dense bf16 with what it was given: times differ by the values of the weight, and a training step of it does not quantize."""
    found = [result for item in answer.items if (result := item.case.record.result("dense-bf16"))]
    return f"dense-bf16, {f'the {answer.sparsity} weight' if all(one.exact for one in found) else 'nothing quantized'}"


def _bf16(result: Result | None) -> float | None:
    return time_us(result) if result and result.status == "ok" else None


def figure(model: str, scenario: Scenario, bars: Sequence[Stack]) -> Figure:
    """Stacked bars, one under the other on one scale; each layer has its colour and, where there is room, its name."""
    sketch = Sketch(WIDTH, TOP + ROW * len(bars) + 4)
    sketch.words(0, 12, short(f"{model}: {scenario.name}", 58), size=11, bold=True)
    longest = max(bar.us for bar in bars)
    for place, bar in enumerate(bars):
        y, x = TOP + ROW * place + 10, 0.0
        sketch.words(0, y, short(bar.name, 52), bold=" ours" in bar.name)
        sketch.words(WIDTH, y, duration(bar.us), anchor="end", bold=True)
        for layer, us in bar.parts.items():
            width = WIDTH * us / longest
            sketch.box(x, y + 4, width - 1, BAR, f"s{BLOCK.index(layer) + 1}", opacity=0.38)
            if width > 7 + 5.2 * len(layer):
                sketch.words(x + 3.5, y + 15, layer, size=8.5)
            x += width
    told = ". ".join(f"{bar.name}: {duration(bar.us)} ({', '.join(f'{n} {duration(us)}' for n, us in bar.parts.items())})" for bar in bars)
    title = f"{model}: {scenario.name}"
    return sketch.figure(f"fig-layers-{slug(model)}-{scenario.op}", title, f"{title}, kernel time by layer of one block. {told}.")


def _totals(model: str, scenario: Scenario, own: Sequence[Answer]) -> list[list[object]]:
    blocks = BLOCKS.get(model, 1)
    return [
        [
            model, scenario.name, answer.sparsity, blocks, duration(blocks * answer.us), duration(blocks * answer.theirs_us),
            duration(blocks * plain) if (plain := answer.others.get("dense-bf16")) else "–", _times(answer.ratio.value),
            _times(plain / answer.us) if plain else "–",
        ]
        for answer in own
    ]  # fmt: skip


def _times(value: float) -> Markup | str:
    return times(value) if value >= 1 else Markup('<span class="slow">{}</span>').format(times(value))
