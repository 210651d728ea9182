"""The panel of the model-level step: a decoder in training, tokens per second and peak memory, ours beside fake-quantizing PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from reports.figures import short, slug, times
from reports.panel import Data, Panel, figures, paragraph, table
from reports.sketch import Sketch
from reports.svg import Figure
from suites.model_record import ModelCase, ModelResult, ModelRun, accepted_file, latest, ratio, read
from suites.model_variants import OURS

WIDTH, LEFT, ROW, TOP = 331.0, 152.0, 17.0, 20.0
ABOUT = (
    "One optimizer step of a small decoder (forward, loss, backward, fused AdamW) with random weights and synthetic tokens; every "
    "variant in a process of its own, checked against plain PyTorch, then timed in turns. Weights change with every step, so masks and "
    "packs are made anew. The vocabulary is cut in the same proportion as the blocks."
)


def panel(data: Data) -> Panel | None:
    """The committed model-level results of the GPU, beside its committed results only."""
    if not data.results.source.startswith("committed"):
        return None
    return made(accepted_file(data.results.gpu))


def made(file: Path) -> Panel | None:
    """The panel over a file of model-level records; None where there is none."""
    if not file.is_file():
        return None
    records = read(file)
    cases = list(latest(records).values())
    html = paragraph(ABOUT) + Markup("").join(_case(case) for case in cases) + paragraph(_source(records, cases), "note")
    return Panel("model-step", "A whole model in training", "Model step", html)


def _case(case: ModelCase) -> Markup:
    said = (f"{case.model}, {case.blocks} of {case.all_blocks} blocks ({case.parameters / 1e6:,.0f} M parameters, {case.master}), "
            f"{case.sparsity}: {case.accumulation} × {case.tokens:,} tokens a step, sequences of {case.context:,}.")  # fmt: skip
    results = sorted(case.results, key=lambda one: (one.kind != "variant", one.step_us or float("inf")))
    head = ("Variant", "ms a step", "Tokens/s", "Peak GB", *OURS, "Loss")
    made = paragraph(f"{said} {_told(case)}".strip()) + figures([bars(case, results)])
    return made + table(f"Training step, {case.key}", head, [_row(case, one) for one in results])


def _told(case: ModelCase) -> str:
    """Our fastest over their fastest, with the memory of both; nothing where either side has no time."""
    timed = [(one.step_us, one) for one in case.results if one.step_us is not None]
    ours = min(((us, one) for us, one in timed if one.kind == "variant"), key=lambda pair: pair[0], default=None)
    theirs = min(((us, one) for us, one in timed if one.kind != "variant"), key=lambda pair: pair[0], default=None)
    found = ratio(ours[1], theirs[1]) if ours and theirs else None
    if ours is None or theirs is None or found is None:
        return ""
    peaks = [one.peak_bytes for one in (ours[1], theirs[1])]
    memory = f", in {peaks[0] / 1e9:.1f} instead of {peaks[1] / 1e9:.1f} GB" if peaks[0] is not None and peaks[1] is not None else ""
    names = f"{ours[1].variant} is {times(found.value)} as fast as {theirs[1].variant}, the fastest of the others"
    return f"{names} [{found.low:.2f}, {found.high:.2f}]{memory}."


def bars(case: ModelCase, results: Sequence[ModelResult]) -> Figure:
    """Tokens per second of each variant that has a time, ours in colour."""
    speeds = [(one, speed) for one in results if (speed := case.tokens_per_second(one)) is not None]
    longest = max((speed for _, speed in speeds), default=1.0)
    sketch = Sketch(WIDTH, TOP + ROW * len(speeds) + 2)
    sketch.words(0, 12, short(f"{case.model}, {case.tokens:,} tokens: tokens per second", 58), size=11, bold=True)
    for place, (one, speed) in enumerate(speeds):
        y = TOP + ROW * place
        sketch.words(0, y + 10, short(one.variant, 30), bold=one.kind == "variant")
        sketch.box(LEFT, y + 1, (WIDTH - LEFT - 46) * speed / longest, 11, "s1" if one.kind == "variant" else "muted", opacity=0.8)
        sketch.words(WIDTH, y + 10, f"{speed:,.0f}", anchor="end")
    title = f"Tokens per second, {case.key}"
    told = "; ".join(f"{one.variant}: {speed:,.0f}" for one, speed in speeds) or "0 variants have a time"
    return sketch.figure(f"fig-model-{slug(case.key)}", title, f"{title}. {told}.")


def _row(case: ModelCase, result: ModelResult) -> list[object]:
    speed = case.tokens_per_second(result)
    if result.step_us is None or speed is None:
        return [result.variant, f"{result.status}: {result.stage}: {result.reason}", *["–"] * (3 + len(OURS))]
    peak = "–" if result.peak_bytes is None else f"{result.peak_bytes / 1e9:.1f}"
    ours = [_over(case, name, result) for name in OURS]
    return [result.variant, f"{result.step_us / 1e3:,.1f}", f"{speed:,.0f}", peak, *ours, f"{result.losses[-1]:.3f}"]


def _over(case: ModelCase, ours: str, result: ModelResult) -> str:
    """How many times faster one of ours is than this variant."""
    mine = case.result(ours)
    found = ratio(mine, result) if mine is not None and mine is not result and result.variant not in OURS else None
    return "–" if found is None else f"{times(found.value)} [{found.low:.2f}, {found.high:.2f}]"


def _source(records: Sequence[object], cases: Sequence[ModelCase]) -> str:
    used = {case.run for case in cases}
    heads = [record for record in records if isinstance(record, ModelRun) and record.id in used]
    where = "; ".join(
        f"{head.device.get('name') or head.gpu}, torch {head.versions.get('torch')}, {head.started[:10]}, commit {head.commit[:10]}"
        for head in heads
    )
    return ("Times are events around whole steps, host work included where the device waits for it. Under our variants' names: "
            "how many times faster these are, medians of paired turns with 95 % intervals. "
            f"Measured on {where}.")
