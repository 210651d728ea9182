"""The panel of the loss curves: whether a small model learns with our kernels what it learns with fake-quantizing PyTorch."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from reports.learning import OURS, THEIRS, Learning, Verdict, figures, load, verdicts
from reports.panel import Data, Panel, paragraph, table
from reports.panel import figures as side_by_side
from suites.command import ACCEPTED

ABOUT = (
    "A small character model, trained on the same text from the same seeds with fake-quantizing PyTorch and with our kernels (BitLinear). "
    "Lines are means over seeds, bands their range; the two agree where their final held-out losses differ by no more than seeds do."
)


def learning_file(gpu: str) -> Path:
    """Where the committed loss curves of that GPU are (or would be); `python -m examples.train_tiny --out` writes such a file."""
    return ACCEPTED / f"{gpu}.learning.json"


def panel(data: Data) -> Panel | None:
    """The committed loss curves of the GPU, beside its committed results only."""
    if not data.results.source.startswith("committed"):
        return None
    return made(learning_file(data.results.gpu))


def made(file: Path) -> Panel | None:
    """The panel over a file of loss curves; None where there is none."""
    if not file.is_file():
        return None
    learning = load(file)
    rows = [_row(learning, verdict) for verdict in verdicts(learning)]
    head = ("Weights", "Ours, nats", "Fake-quant, nats", "Range over seeds", "Seeds", "Ours, s a run", "Fake-quant, s a run", "Verdict")
    html = (paragraph(ABOUT) + side_by_side(figures(learning)) + table("Final held-out loss", head, rows, (0, 7))
            + paragraph(_source(learning), "note"))  # fmt: skip
    return Panel("learning", "It learns the same", "Learning", Markup(html))


def _row(learning: Learning, verdict: Verdict) -> list[object]:
    seconds = (_seconds(learning, verdict.sparsity, method) for method in (OURS, THEIRS))
    said = "agree" if verdict.agrees else "differ" if verdict.seeds > 1 else "one seed shows no spread"
    return [verdict.sparsity, f"{verdict.ours:.4f}", f"{verdict.theirs:.4f}", f"{verdict.spread:.4f}", verdict.seeds, *seconds, said]


def _seconds(learning: Learning, sparsity: str, method: str) -> str:
    runs = learning.of(sparsity, method)
    return f"{sum(run.seconds for run in runs) / len(runs):.1f}"


def _source(learning: Learning) -> str:
    smoke = " A smoke run: too short to say anything of learning." if learning.smoke else ""
    settings = ", ".join(f"{name} {value}" for name, value in learning.settings.items())
    where = f"{learning.seconds:.0f} s in all on {learning.device}, torch {learning.torch}, {learning.date}"
    return (f"python -m examples.train_tiny, {where}; {settings}. The model is too small for its seconds to mean anything for larger "
            f"ones.{smoke}")
