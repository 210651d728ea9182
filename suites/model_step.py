"""`python -m suites.model_step`: a whole model's training step, ours beside fake-quantizing PyTorch. Parse, measure, print, exit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autotune import conditions
from autotune.command import guarded
from autotune.conditions import Monitor
from kernels.errors import RecordError, UsageError
from kernels.gpu import Gpu, choose
from suites.accept import shareable
from suites.command import GOOD, INCONCLUSIVE, WRONG, first_that_applies
from suites.model_arguments import Request, parser, requests
from suites.model_child import Child, ProcessChild, Spec
from suites.model_record import FILE, METHOD, ModelCase, ModelResult, ModelRun, accepted_file, append, latest, ratio, read, to_line
from suites.model_run import FULL, QUICK, ModelPlan, Setting
from suites.model_variants import OURS, RIVALS
from suites.session import ROOT, commit_of, now, run_id
from suites.store import write_text

RUNS = Path("runs")
NAME = "suites.model_step"


@dataclass(frozen=True)
class ModelLab:
    """What tests put in the place of a device: children and a monitor; plan: in the place of the command's."""

    make: Callable[[Spec], Child]
    monitor: Monitor
    plan: ModelPlan | None = None


def main(
    argv: Sequence[str] | None = None, *, detect: Callable[[int], Gpu | None] | None = None, lab: ModelLab | None = None,
    accepted: Path | None = None,
) -> int:
    """Run the command and return its exit code. detect, lab, accepted: what tests put in the place of device and committed results."""
    arguments = tuple(sys.argv[1:] if argv is None else argv)
    return guarded(NAME, lambda: _main(arguments, detect or _detect, lab, accepted))


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
    return measure(args, arguments, gpu, wanted, lab)


def _detect(index: int) -> Gpu | None:
    from kernels.gpu import detect

    return detect(index)


def measure(args: argparse.Namespace, arguments: tuple[str, ...], gpu: Gpu, wanted: Sequence[Request], lab: ModelLab | None) -> int:
    """Measure every setting, each case on the disk before the next begins; the exit code of all."""
    path = (Path(args.out) if args.out else RUNS / f"{now():%Y%m%d-%H%M%S}-{gpu.name}-model") / FILE
    if path.exists():
        raise UsageError(f"{path.parent} already holds results; name another folder")
    identity, (commit, dirty) = run_id(gpu.name), commit_of(ROOT, args.commit)
    append(path, ModelRun(
        identity, gpu.name, now().isoformat(timespec="seconds"), commit, dirty, METHOD,
        {} if lab else conditions.device_facts(args.device), conditions.library_versions(), shareable(arguments),
    ))
    lab = lab or ModelLab(lambda spec: ProcessChild(spec, args.timeout), conditions.nvml_monitor(args.device))
    plan, codes = lab.plan or (QUICK if args.quick else FULL), [GOOD]
    for request in wanted:
        print(f"{NAME}: {request}", flush=True)
        with Setting(request.specs, lab.make, plan, lab.monitor, lambda text: print(text, flush=True)) as setting:
            setting.start()
            for accumulation in request.accumulations:
                case = setting.measure(accumulation, identity)
                append(path, case)
                print("\n".join(table(case)), flush=True)
                codes += [WRONG if one.status == "wrong" else INCONCLUSIVE for one in case.results if one.status != "ok"]
    print(f"{NAME}: results in {path}")
    return first_that_applies(codes)


def table(case: ModelCase) -> list[str]:
    """A case for people: a line per variant, then ours over the compiled baselines."""
    head = f"{'variant':<30}{'ms/step':>9}{'tokens/s':>12}{'peak GB':>9}{'host ms':>9}  {case.key}"
    lines = [head, *(_line(case, result) for result in case.results)]
    for ours in OURS:
        mine = case.result(ours)
        parts = [f"{found.value:.3f}x [{found.low:.3f}, {found.high:.3f}] over {name}" for name in RIVALS
                 if mine and (theirs := case.result(name)) and (found := ratio(mine, theirs))]  # fmt: skip
        if parts:
            lines.append(f"{ours}: {'; '.join(parts)}")
    return lines


def _line(case: ModelCase, result: ModelResult) -> str:
    speed = case.tokens_per_second(result)
    if result.step_us is None or speed is None:
        return f"{result.variant:<30}{result.status}: {result.stage}: {result.reason}"
    peak = "-" if result.peak_bytes is None else f"{result.peak_bytes / 1e9:.2f}"
    host = sorted(result.host_us)[len(result.host_us) // 2] / 1e3
    return f"{result.variant:<30}{result.step_us / 1e3:>9.2f}{speed:>12,.0f}{peak:>9}{host:>9.2f}  loss {result.losses[-1]:.4f}"


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
