"""Do our kernels learn what fake quantization learns? Loss curves of examples/train_tiny.py: read, judged by the spread of seeds, drawn.

    python -m reports.learning runs/learning.json --out curves        (one SVG file for each sparsity)
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.command import Parser, guarded
from kernels.errors import RecordError
from suites.command import EXIT_CODES
from suites.store import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from reports.svg import Figure

SCHEMA = "tersparse-learning/1"
OURS, THEIRS = "ours", "fake-quant"
_SIZE = (4.6, 3.2)


@dataclass(frozen=True)
class Run:
    """One training run: losses in nats a character after `steps` optimizer steps, on the text just seen and on held-out text."""

    method: str
    sparsity: str
    seed: int
    steps: tuple[int, ...]
    training: tuple[float, ...]
    validation: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Learning:
    """What one call of the example measured."""

    device: str
    torch: str
    date: str
    smoke: bool
    settings: Mapping[str, Any]
    seconds: float
    runs: tuple[Run, ...]

    @property
    def sparsities(self) -> tuple[str, ...]:
        """In the order in which they were trained."""
        return tuple(dict.fromkeys(run.sparsity for run in self.runs))

    def of(self, sparsity: str, method: str) -> tuple[Run, ...]:
        """The runs of one sparsity and one method, by seed."""
        found = (run for run in self.runs if (run.sparsity, run.method) == (sparsity, method))
        return tuple(sorted(found, key=lambda run: run.seed))


@dataclass(frozen=True)
class Verdict:
    """Final held-out losses of one sparsity: the means of both methods, and the larger of their ranges over seeds."""

    sparsity: str
    ours: float
    theirs: float
    spread: float
    seeds: int

    @property
    def agrees(self) -> bool:
        """Whether the means differ by no more than seeds do; one seed has no spread and never agrees."""
        return self.seeds > 1 and abs(self.ours - self.theirs) <= self.spread

    def __str__(self) -> str:
        found = "agree" if self.agrees else "differ" if self.seeds > 1 else "one seed shows no spread"
        return (f"{self.sparsity}: ours {self.ours:.4f}, fake-quant {self.theirs:.4f}, {self.seeds} seeds spread over {self.spread:.4f}: "
                f"{found}")


def parse(data: Any, where: str = "learning curves") -> Learning:
    """Read the example's data. Raises RecordError for another schema, missing fields, or curves that do not fit their steps."""
    if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
        raise RecordError(f"{where}: not learning curves with schema {SCHEMA!r}")
    try:
        runs = tuple(_run(row) for row in data["runs"])
        learning = Learning(str(data["device"]), str(data["torch"]), str(data["date"]), bool(data["smoke"]), dict(data["settings"]),
                            float(data["seconds"]), runs)  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{where}: damaged: {type(error).__name__} {error}") from None
    for run in runs:
        if not run.steps or not len(run.steps) == len(run.training) == len(run.validation):
            raise RecordError(f"{where}: {run.method} {run.sparsity} seed {run.seed}: {len(run.steps)} steps, "
                              f"{len(run.training)} and {len(run.validation)} losses")
    return learning


def _run(row: Mapping[str, Any]) -> Run:
    training, validation = (tuple(float(loss) for loss in row[name]) for name in ("training", "validation"))
    steps = tuple(int(step) for step in row["steps"])
    return Run(str(row["method"]), str(row["sparsity"]), int(row["seed"]), steps, training, validation, float(row["seconds"]))


def load(path: Path) -> Learning:
    """The curves of a file. Raises RecordError where it cannot be read as such."""
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path}: not readable: {error}") from None


def verdicts(learning: Learning) -> tuple[Verdict, ...]:
    """One for every sparsity that was trained with both methods, over the seeds that both have."""
    found = []
    for sparsity in learning.sparsities:
        final = {method: {run.seed: run.validation[-1] for run in learning.of(sparsity, method)} for method in (OURS, THEIRS)}
        seeds = final[OURS].keys() & final[THEIRS].keys()
        if seeds:
            ours, theirs = ([final[method][seed] for seed in sorted(seeds)] for method in (OURS, THEIRS))
            spread = max(max(ours) - min(ours), max(theirs) - min(theirs))
            found.append(Verdict(sparsity, math.fsum(ours) / len(ours), math.fsum(theirs) / len(theirs), spread, len(seeds)))
    return tuple(found)


def band(runs: Sequence[Run]) -> tuple[tuple[int, ...], list[float], list[float], list[float]]:
    """Steps that all runs have, and the least, mean and greatest held-out loss there."""
    common = sorted(set.intersection(*(set(run.steps) for run in runs)))
    losses = [[run.validation[run.steps.index(step)] for run in runs] for step in common]
    return tuple(common), [min(at) for at in losses], [math.fsum(at) / len(at) for at in losses], [max(at) for at in losses]


def curves(learning: Learning, sparsity: str) -> Figure:
    """Held-out loss over steps of one sparsity: the mean of each method as a line, its seeds as a band."""
    from matplotlib.ticker import MaxNLocator  # here: what trains and judges the curves needs no drawing

    from reports.svg import INK, MARKERS, SERIES, draw

    title = f"Loss, {sparsity}, {learning.device}"
    told = "; ".join(str(verdict) for verdict in verdicts(learning) if verdict.sparsity == sparsity) or "one method alone"

    def plot(axes: Axes) -> None:
        for place, method in enumerate((THEIRS, OURS)):
            runs = learning.of(sparsity, method)
            if not runs:
                continue
            steps, least, mean, greatest = band(runs)
            axes.fill_between(steps, least, greatest, color=SERIES[place], alpha=0.22, linewidth=0)
            label = f"{method} ({len(runs)} seed{'s' if len(runs) > 1 else ''})"
            line = "-" if place else "--"
            axes.plot(steps, mean, color=SERIES[place], marker=MARKERS[place], markersize=3.5, linestyle=line, label=label)
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel("held-out loss, nats a character")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend(loc="upper right")
        axes.set_title(title, loc="left", weight="bold", fontsize=11, color=INK)

    slug = "".join(one if one.isalnum() else "-" for one in sparsity)
    return draw(f"learning-{slug}", title, f"{title}: mean and range over seeds. {told}.", _SIZE, plot)


def figures(learning: Learning) -> tuple[Figure, ...]:
    """One panel for each sparsity that was trained."""
    return tuple(curves(learning, sparsity) for sparsity in learning.sparsities)


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m reports.learning`."""
    made = Parser(prog="python -m reports.learning", description="Judge and draw the loss curves of examples.train_tiny.",
                  epilog=f"example: python -m reports.learning runs/learning.json --out curves · {EXIT_CODES}")
    made.add_argument("file", type=Path, help="what examples.train_tiny wrote")
    made.add_argument("--out", type=Path, metavar="FOLDER", help="where the SVG files go, one for each sparsity; left out: beside the file")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return guarded("reports.learning", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    options = parser().parse_args(argv)
    learning = load(options.file)
    for verdict in verdicts(learning):
        print(verdict)
    from reports.svg import standalone  # here: what trains and judges the curves needs no drawing

    for figure in figures(learning):
        path = (options.out or options.file.parent) / f"{figure.id}.svg"
        write_text(path, standalone(figure))
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
