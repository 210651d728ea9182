"""The model-level step on a device: every setting measured, recorded and printed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune import conditions
from autotune.conditions import Monitor
from kernels.errors import UsageError
from kernels.gpu import Gpu
from suites.accept import shareable
from suites.command import GOOD, INCONCLUSIVE, WRONG, first_that_applies
from suites.model_arguments import NAME, Request
from suites.model_child import Child, ProcessChild, Spec
from suites.model_record import FILE, METHOD, ModelCase, ModelResult, ModelRun, append, ratio
from suites.model_run import FULL, QUICK, ModelPlan, Setting
from suites.model_variants import OURS, RIVALS
from suites.session import ROOT, commit_of, new_folder, run_id, stamp

RUNS = Path("runs")


@dataclass(frozen=True)
class ModelLab:
    """What tests put in the place of a device: children and a monitor; plan: in the place of the command's."""

    make: Callable[[Spec], Child]
    monitor: Monitor
    plan: ModelPlan | None = None


def measure(args: argparse.Namespace, arguments: tuple[str, ...], gpu: Gpu, wanted: Sequence[Request], lab: ModelLab | None) -> int:
    """Measure every setting, each case on the disk before the next begins; the exit code of all."""
    path = (Path(args.out) if args.out else new_folder(RUNS, f"{gpu.name}-model")) / FILE
    if path.exists():
        raise UsageError(f"{path.parent} already holds results; name another folder")
    identity, (commit, dirty) = run_id(gpu.name), commit_of(ROOT, args.commit)
    append(path, ModelRun(
        identity, gpu.name, stamp(), commit, dirty, METHOD,
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
