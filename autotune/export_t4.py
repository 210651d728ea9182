"""`python -m autotune.export_t4`: tuning results in T4, the autotuning community's format (results and metadata schemas, version 1.0.0).

Exported are the landscapes and tuned tables of the repository, or the journal of a tuning run with every candidate in it, failures too.
T4 has one list of results: kernel, op and problem of each stand among its measurements.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune import landscape
from autotune.command import Parser, guarded
from autotune.journal import rows
from autotune.table import read
from kernels.errors import OutputError, UsageError
from kernels.gpu import by_name
from kernels.tuned import path_of
from kernels.tuned_table import Entry

VERSION = "1.0.0"
INVALIDITY = {
    "timeout": "timeout", "compile": "compile", "refused": "constraints", "unavailable": "constraints", "wrong": "correctness",
    "launch": "runtime", "memory": "runtime", "measure": "runtime",
}
"""T4's word for each stage that a candidate may fail in; "correct" for those that did not."""
OBJECTIVE = "time"


def result(
    config: Mapping[str, Any], us: float | None, about: Mapping[str, Any], stage: str | None = None, timestamp: str = "",
) -> dict[str, Any]:
    """One T4 result. us: kernel time per call, microseconds, or None with the stage it failed in. about: what the configuration is of."""
    measurements = [{"name": OBJECTIVE, "value": us / 1e3, "unit": "ms"}] if us is not None else []
    measurements += [{"name": name, "value": value, "unit": ""} for name, value in about.items() if value is not None]
    return {
        "timestamp": timestamp, "configuration": dict(config), "objectives": [OBJECTIVE],
        "times": {"runtimes": [us / 1e3] if us is not None else []},
        "invalidity": "correct" if stage is None else INVALIDITY.get(stage, "runtime"), "correctness": 0 if stage == "wrong" else 1,
        "measurements": measurements,
    }


def of_landscapes(found: Iterable[landscape.Landscape]) -> Iterator[dict[str, Any]]:
    """Every candidate of every landscape."""
    for own in found:
        about = {
            "kernel": own.kernel, "gpu": own.gpu, "out_features": own.out_features, "in_features": own.in_features, "tokens": own.tokens,
            "sparsity": own.sparsity,
        }
        yield from (result(point, time, about, timestamp=own.date) for point, time in zip(own.points, own.times, strict=True))


def of_table(entries: Iterable[Entry], gpu: str) -> Iterator[dict[str, Any]]:
    """The winners of a tuned table."""
    for entry in entries:
        about = {
            "kernel": entry.kernel, "op": entry.op, "gpu": gpu, "out_features": entry.out_features, "in_features": entry.in_features,
            "tokens": entry.tokens, "sparsity": entry.sparsity, "dtype": entry.dtype, "source": entry.source,
        }
        yield result(entry.config, entry.us, about, timestamp=entry.date)


def of_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Every candidate of a tuning run's journal; RecordError for a file that is none. Finals and unfinished last lines are left out."""
    for key, value in rows(path):
        if key and isinstance(key[-1], dict) and isinstance(value, (int, float, dict)):
            yield _candidate(key, value)


def _candidate(key: Sequence[Any], value: float | Mapping[str, Any]) -> dict[str, Any]:
    texts = [part for part in key[:-1] if isinstance(part, str)]
    about = {"kernel": texts[0] if texts else None, "problem": texts[1] if len(texts) > 1 else None}
    if isinstance(value, Mapping):
        return result(key[-1], None, {**about, "reason": value.get("reason")}, str(value.get("stage")))
    return result(key[-1], float(value), about)


def metadata(gpu: str, versions: Mapping[str, Any]) -> dict[str, Any]:
    """T4's metadata: the system this is exported on is only named; GPU and libraries are those of the results."""
    profile = by_name(gpu)
    facts = {"name": gpu, "architecture": profile.architecture, "multiprocessors": profile.sms, "memory_gb": profile.memory_gb}
    requirements = [f"{name}=={version}" for name, version in sorted(versions.items()) if version]
    return {
        "schema_version": VERSION,
        "metadata": {
            "hardware": {"hardware_description": [facts], "operating_system": platform.system()},
            "environment": {"device_query": {}, "requirements": requirements},
        },
    }


def parser() -> Parser:
    """The parser of the command."""
    made = Parser(
        prog="python -m autotune.export_t4", description="Export tuning results in the T4 format of the autotuning community.",
        epilog="examples:\n  python -m autotune.export_t4 --gpu h200 --out t4.json\n"
        "  python -m autotune.export_t4 --gpu h200 --journal runs/tuning.jsonl --out t4.json --metadata t4-metadata.json\n\n"
        "exit codes: 0 good; 2 usage or bad input",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--gpu", required=True, help="the GPU profile whose results are exported")
    made.add_argument("--journal", nargs="+", type=Path, metavar="FILE", help="journals of tuning runs instead of the committed results")
    made.add_argument("--out", required=True, type=Path, metavar="FILE", help="the results file to write")
    made.add_argument("--metadata", type=Path, metavar="FILE", help="write a metadata file, too")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return guarded("autotune.export_t4", lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    gpu = by_name(args.gpu)
    entries = read(path_of(gpu))
    if args.journal:
        results = [row for path in args.journal for row in of_journal(path)]
    else:
        results = [*of_landscapes(own for own in landscape.committed() if own.gpu == gpu.name), *of_table(entries, gpu.name)]
    if not results:
        raise UsageError(f"nothing tuned for {gpu.name}")
    _write(args.out, {"schema_version": VERSION, "results": results})
    if args.metadata:
        _write(args.metadata, metadata(gpu.name, entries[-1].versions if entries else {}))
    print(f"autotune.export_t4: {len(results)} results in {args.out}")
    return 0


def _write(path: Path, data: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
