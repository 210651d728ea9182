"""`python -m suites.model_step`: a whole model's training step, ours beside fake-quantizing PyTorch. Parse, measure, print, exit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.command import guarded
from kernels.errors import RecordError
from kernels.gpu import Gpu, choose
from kernels.gpu import detect as device
from suites.accept import shareable
from suites.command import GOOD
from suites.model_arguments import NAME, parser, requests
from suites.model_record import ModelRun, accepted_file, latest, read, to_line
from suites.store import write_text

if TYPE_CHECKING:
    from suites.model_on_gpu import ModelLab


def main(
    argv: Sequence[str] | None = None, *, detect: Callable[[int], Gpu | None] | None = None, lab: ModelLab | None = None,
    accepted: Path | None = None,
) -> int:
    """Run the command and return its exit code. detect, lab, accepted: what tests put in the place of device and committed results."""
    arguments = tuple(sys.argv[1:] if argv is None else argv)
    return guarded(NAME, lambda: _main(arguments, detect or device, lab, accepted))


def _main(arguments: tuple[str, ...], detect: Callable[[int], Gpu | None], lab: ModelLab | None, accepted: Path | None) -> int:
    args = parser().parse_args(arguments)
    wanted = requests(args)
    if args.list:
        print("\n".join(map(str, wanted)))
        return GOOD
    if args.accept:
        return accept(Path(args.accept), args.gpu, accepted)
    gpu = choose(args.gpu, None, found := detect(args.device), args.require_gpu)
    if found is None:
        print(f"{NAME}: no {gpu.name} here. There, this would train, and time in turns:")
        print("\n".join(f"  {one}" for one in wanted))
        print(f"{NAME}: nothing was measured.")
        return GOOD
    from suites import model_on_gpu

    return model_on_gpu.measure(args, arguments, gpu, wanted, lab)


def accept(run: Path, gpu: str, accepted: Path | None) -> int:
    """Put a run's cases in the place of the committed ones of its GPU; RecordError where it is another's, or holds a wrong number."""
    records = read(run)
    heads = {record.id: record for record in records if isinstance(record, ModelRun)}
    names = {head.gpu for head in heads.values()}
    if len(names) != 1 or gpu not in ("auto", *names):
        raise RecordError(f"{run}: results of {', '.join(sorted(names))}, but --gpu {gpu} is claimed")
    new = latest(records)
    bad = [f"{case.key}: {one.variant} is wrong: {one.reason}" for case in new.values() for one in case.results if one.status == "wrong"]
    if bad or not new:
        raise RecordError(f"{run}: not accepted: {bad[0] if bad else 'it holds no case'}")
    file = accepted or accepted_file(names.pop())
    old = read(file) if file.is_file() else []
    cases = {**latest(old), **new}
    heads = {record.id: record for record in old if isinstance(record, ModelRun)} | heads
    used = {case.run for case in cases.values()}
    kept = [replace(head, arguments=shareable(head.arguments)) for head in heads.values() if head.id in used]
    records = [*kept, *cases.values()]
    write_text(file, "".join(to_line(record) + "\n" for record in records))
    print(f"{NAME}: accepted {len(new)} cases into {file}")
    return GOOD


if __name__ == "__main__":
    sys.exit(main())
