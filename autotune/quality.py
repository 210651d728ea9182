"""How well the strategies search: replayed on the committed landscapes, where the optimum is known. Needs no device and no torch.

    python -m autotune.quality            (the table of docs/autotune.md)
    python -m autotune.quality --write    (replay everything anew; a few minutes; needs the extra tune)
    python -m autotune.quality --record runs/tune-h200/journal.jsonl --kernel dense-triton --gpu h200 --out new.json    (landscapes)

A landscape never lends its own winner to a search. Neither is its default config tried first nor its kernel's cost model asked: both were
fitted to timings of such shapes. No strategy has a constant that was fitted to landscapes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune import landscape
from autotune.command import Parser, guarded
from autotune.conditions import device_facts, library_versions
from autotune.journal import rows
from autotune.landscape import FOLDER, Landscape, committed, count_at, nearest_winners, replay
from autotune.pool import cores
from autotune.search import STRATEGIES
from kernels.errors import OutputError, RecordError, UsageError
from kernels.gpu import by_name

FILE = FOLDER / "quality.json"
SCHEMA = "tersparse-search-quality/1"
FEW = 24
"""Landscapes of at most so many candidates are told apart: a quarter of them is two to six evaluations, which tell little of the rest."""
SHARES = tuple(step / 40 for step in range(1, 21))
"""Of all candidates of a landscape: after how many evaluations the best so far is noted; an eighth, a quarter and a half among them."""
SHOWN = (0.125, 0.25, 0.5)
SEEDS = 10
NAMES = ("local", "model", "random")
EXAMPLES = """examples:
  python -m autotune.quality            (the table)
  python -m autotune.quality --write    (after landscapes or strategies have changed)
  python -m autotune.quality --record runs/tune-h200/journal.jsonl --kernel dense-triton --gpu h200 \\
      --out autotune/landscapes/h200-mine.json    (landscapes of an exhaustive run, on the machine that it ran on)

exit codes: 0 done; 2 usage, or optuna is missing"""


@dataclass(frozen=True)
class Way:
    """A strategy by its name, and whether it starts from the winners of the nearest other shapes."""

    strategy: str
    informed: bool

    def __str__(self) -> str:
        return f"{self.strategy}, from {'other shapes’ winners' if self.informed else 'anywhere'}"


WAYS = tuple(Way(name, informed) for informed in (True, False) for name in NAMES)


@dataclass(frozen=True)
class Searched:
    """A landscape, by its kernel, GPU, name and candidates, and by way the fraction of the optimum's speed that was found after `SHARES`:
    the mean over seeds."""

    kernel: str
    gpu: str
    landscape: str
    candidates: int
    curves: Mapping[str, tuple[float, ...]]

    @property
    def few(self) -> bool:
        """Whether it has few candidates."""
        return self.candidates <= FEW

    def at(self, way: Way, share: float) -> float:
        """What that way to search has found after one of `SHARES`."""
        return self.curves[str(way)][SHARES.index(share)]


def searched(landscape: Landscape, way: Way, among: Sequence[Landscape], seeds: int = SEEDS) -> tuple[float, ...]:
    """Fraction of the optimum's speed after `SHARES` of the candidates, the mean over seeds. among: landscapes that may lend winners."""
    starts, count = nearest_winners(landscape, among) if way.informed else [], len(landscape.points)
    runs = [replay(landscape, STRATEGIES[way.strategy], starts, seed, SHARES[-1]) for seed in range(seeds)]
    return tuple(round(statistics.fmean(run[count_at(share, count) - 1] for run in runs), 4) for share in SHARES)


def measure(landscapes: Sequence[Landscape], ways: Iterable[Way] = WAYS, seeds: int = SEEDS) -> list[Searched]:
    """Replay these ways on these landscapes. Raises UsageError for `model` where optuna is not installed."""
    ways = tuple(ways)
    return [
        Searched(one.kernel, one.gpu, str(one), len(one.points), {str(way): searched(one, way, landscapes, seeds) for way in ways})
        for one in landscapes
    ]


def table(found: Sequence[Searched]) -> list[tuple[str, Way, list[float]]]:
    """Kind of landscapes; way; medians over them after an eighth, a quarter, a half, and the worst landscape after a quarter."""
    rows = []
    for few in (True, False):
        own = [one for one in found if one.few == few]
        sizes = sorted(one.candidates for one in own)
        for way in WAYS if own else ():
            medians = [statistics.median(one.at(way, share) for one in own) for share in SHOWN]
            rows.append((f"{len(own)} of {sizes[0]} to {sizes[-1]}", way, [*medians, min(one.at(way, 0.25) for one in own)]))
    return rows


def write(path: Path, found: Sequence[Searched]) -> None:
    """A line per landscape. Raises OutputError."""
    rows = [{"kernel": one.kernel, "gpu": one.gpu, "landscape": one.landscape, "candidates": one.candidates, "curves": one.curves}
            for one in found]
    head = json.dumps({"schema": SCHEMA, "seeds": SEEDS, "shares": SHARES})[:-1]
    try:
        path.write_text(head + ', "searched": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]}\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


def read(path: Path = FILE) -> tuple[Searched, ...]:
    """What was measured. Raises RecordError for a file that is not of this schema, or was made for other shares or ways."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA or tuple(data["shares"]) != SHARES:
            raise RecordError(f"{path}: not what this version writes; make it anew: python -m autotune.quality --write")
        return tuple(_row(row) for row in data["searched"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{path}: not a readable file of search quality: {error}") from None


def _row(row: Mapping[str, object]) -> Searched:
    curves = row["curves"]
    if not isinstance(curves, dict) or set(curves) != set(map(str, WAYS)) or any(len(curve) != len(SHARES) for curve in curves.values()):
        raise ValueError("every way has a curve over all shares")
    named = {way: tuple(map(float, curve)) for way, curve in curves.items()}
    return Searched(str(row["kernel"]), str(row["gpu"]), str(row["landscape"]), int(str(row["candidates"])), named)


def _record(options: argparse.Namespace) -> int:
    """Write the landscapes of a journal to a file."""
    if not (options.kernel and options.gpu and options.out):
        raise UsageError("--record needs --kernel, --gpu and --out")
    gpu, date = by_name(options.gpu).name, datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    found = landscape.from_journal(options.record, options.kernel, gpu, date, machine())
    if not found:
        known = dict.fromkeys(str(key[0]) for key, _ in rows(options.record) if len(key) == 6)
        raise UsageError(f"{options.record}: no candidate of {options.kernel} was timed; it has those of {', '.join(known) or 'none'}")
    landscape.write(options.out, found)
    print(f"autotune.quality: {len(found)} landscapes of {sum(len(one.points) for one in found)} candidates in {options.out}")
    return 0


def machine() -> str:
    """One line about this machine: GPU, versions, cores."""
    versions = library_versions()
    name = device_facts().get("name") or "no GPU"
    return f"one {name}, torch {versions['torch']}, triton {versions['triton']}, {cores()} of {os.cpu_count()} cores"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table in Markdown; with --write replay first."""

    def body() -> int:
        parser = Parser(
            prog="python -m autotune.quality", description="How soon each search strategy finds the optimum.",
            epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--write", action="store_true", help=f"replay all committed landscapes and write {FILE.name}")
        parser.add_argument("--record", type=Path, metavar="JOURNAL", help="make landscapes of an exhaustive run's journal instead")
        parser.add_argument("--kernel", help="with --record: the kernel whose candidates are taken")
        parser.add_argument("--gpu", help="with --record: the GPU they were timed on")
        parser.add_argument("--out", type=Path, metavar="FILE", help="with --record: the file to write")
        options = parser.parse_args(argv)
        if options.record:
            return _record(options)
        if options.write:
            write(FILE, measure(committed()))
        print("| landscapes of candidates | search | after 1/8 | after 1/4 | after 1/2 | worst after 1/4 |\n|---|---|---|---|---|---|")
        for kind, way, values in table(read()):
            print(f"| {kind} | {way} | " + " | ".join(f"{value:.1%}" for value in values) + " |")
        return 0

    return guarded("autotune.quality", body)


if __name__ == "__main__":
    sys.exit(main())
