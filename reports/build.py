"""`python -m reports.build`: one HTML file from records, which opens offline; its path is the last line printed.

Exit codes: 0 the page is written, also where nothing was measured yet · 2 a wrong argument, a bad results file, an unwritable place.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from autotune.command import Parser, guarded
from kernels.errors import UsageError
from reports import database, scan
from reports.group_figures import headline_figure
from reports.load import Results, frame, load
from reports.page import render, render_history
from reports.svg import standalone
from suites.command import EXIT_CODES
from suites.store import write_text

MOST_CASES = 780
"""So many cases of each kind of evidence a page holds, those written last: a run of every suite has about 730; 5 MB hold nearly 800."""
EXAMPLE = "example: python -m reports.build --gpu h200 --out report.html"


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = Parser(prog="python -m reports.build", description="Write the report: one HTML file.", epilog=f"{EXAMPLE} · {EXIT_CODES}")
    made.add_argument("--gpu", required=True, help="profile name, such as h200; auto: the runs' own")
    made.add_argument("--run", nargs="+", action="extend", default=[], metavar="RUN", help="folders or .jsonl; left out: committed results")
    made.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two runs side by side, B against A; without --run the page is B's")
    made.add_argument("--history", metavar="STORE", help="the page of every case over many runs: a folder of runs, or a .sqlite file")
    made.add_argument("--add", nargs="+", action="extend", default=[], metavar="RUN", help="first add these runs to the --history file")
    made.add_argument("--out", metavar="report.html", help="where to write; left out: report-GPU.html here, or in the one run's folder")
    made.add_argument("--figure", metavar="headline.svg", help="write the headline figure as an SVG file of its own instead of the page")
    made.add_argument("--table", metavar="results.csv", help="write every result as a row of a CSV file instead of the page")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return guarded("reports.build", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    options = parser().parse_args(argv)
    if options.history or options.add:
        return _history(options)
    compared = (load(options.gpu, options.compare[:1]), load(options.gpu, options.compare[1:])) if options.compare else None
    most = None if options.figure or options.table else MOST_CASES
    results = load(options.gpu, options.run, most) if options.run or compared is None else compared[1]
    if options.figure:
        path, text = Path(options.figure), standalone(headline_figure(results))
    elif options.table:
        path, text = Path(options.table), frame(results).to_csv(index=False, lineterminator="\n")
    else:
        path, text = Path(options.out) if options.out else default_path(results, options.run), render(results, compared)
    write_text(path, text)
    if not results.measured:
        print(f"{results.source}: nothing measured")
    print(path)
    return 0


def _history(options: argparse.Namespace) -> int:
    """Write the history page, after adding runs to its file where asked."""
    if not options.history or options.run or options.compare or options.figure or options.table:
        raise UsageError("--history STORE makes a page of its own; with it go --gpu, --add and --out")
    store = Path(options.history)
    if options.add:
        if store.suffix != database.SUFFIX:
            raise UsageError(f"--add needs a {database.SUFFIX} file as --history; to a folder, copy the run")
        for run in map(Path, options.add):
            database.add(store, scan.every(run))
    path = Path(options.out) if options.out else Path(f"history-{options.gpu}.html")
    write_text(path, render_history(options.gpu, store))
    print(path)
    return 0


def default_path(results: Results, runs: Sequence[str]) -> Path:
    """`report-<gpu>.html` in the folder of the one run, or in the current one."""
    folder = Path(runs[0]) if len(runs) == 1 and Path(runs[0]).is_dir() else Path()
    return folder / f"report-{results.gpu}.html"


if __name__ == "__main__":
    sys.exit(main())
