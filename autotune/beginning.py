"""How a run starts: all of its processes at once, so that none of their starts waits for another's.

A device's process imports torch and opens its context, some seconds; meanwhile one process forecasts what will be compiled first (`early`),
compiling processes, which need no torch, work on that, and the run's own process imports the catalogue and plans.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from autotune import options as arguments
from autotune.conditions import library_versions
from autotune.early import Forecast, Plan
from autotune.executor import LocalSlot, Slot, SlotLost, local_slots
from autotune.pool import CompilePool
from autotune.search import Budget
from autotune.tools import TRIAL_SECONDS
from autotune.worker import waking
from kernels.errors import Failure, GpuMismatch, NoGpu, UsageError
from kernels.gpu import GPUS, Gpu, choose, unlisted
from kernels.tuned import path_of

BRIEF_SECONDS = 8.0
"""A budget that gives a case less time on its device makes a brief run, see `autotune.tools.Tools`."""
ASK_SECONDS = 120.0


@dataclass(frozen=True)
class Surroundings:
    """What the command works on, other than its arguments; tests put fakes here.

    detect: finds the GPU. devices: names those of its model. None: the first device's process is asked. catalogue: module with
    `kernels_for` and `find`. table: the file of tuned configs, by default the GPU's own. runs: folder of journals. trial_seconds: after
    which a candidate is killed. functions: module that runs candidates, see `autotune.task.Task`. versions: of the libraries. warm:
    whether all processes start before it is known what there is to do. now: the seconds that a budget is counted in.
    """

    detect: Callable[[], Gpu | None] | None = None
    devices: Callable[[Gpu], Sequence[str]] | None = None
    catalogue: str = "kernels.catalogue"
    table: Path | None = None
    runs: Path = Path("runs")
    trial_seconds: float = TRIAL_SECONDS
    functions: str = "autotune.candidate"
    versions: Callable[[], Mapping[str, str | None]] = library_versions
    warm: bool = True
    now: Callable[[], float] = time.monotonic


class Beginning:
    """The processes of a run, and the GPU that it is for. wanted: its problems. pool: compiles for it.

    stack: closes what was begun. budget: of the run.
    """

    def __init__(self, options: argparse.Namespace, around: Surroundings, stack: ExitStack, budget: Budget) -> None:
        self._options, self._around = options, around
        self._local = not (options.compile_only or options.ray)
        self._models: list[Gpu] | None = None
        self.wanted = arguments.answerable(arguments.problems(options, arguments.shapes(options)))
        claimed = next((gpu for gpu in GPUS if gpu.name == options.gpu and not options.profile), None)
        device, cache = f"cuda:{options.device[0] if options.device else 0}", str(options.cache.resolve()) if options.cache else None
        first = [waking("autotune.candidate"), ("autotune.candidate:ready", (device, cache)), waking(around.functions, around.catalogue)]
        if claimed is not None and self.wanted:
            case = around.catalogue, self.wanted[0], claimed, tuple(options.kernel or ()), device
            first.append(("autotune.candidate:foresee", case))
        self._slot = LocalSlot(device, first)
        stack.callback(self._slot.close)
        self.pool = stack.enter_context(CompilePool(claimed or unlisted(options.gpu), cache=cache))
        if around.warm and self._local:
            self._slot.begin()
        if around.warm and claimed is not None and not options.resume and not options.compile_only:
            brief = budget.seconds is not None and budget.seconds < BRIEF_SECONDS * len(self.wanted)
            evaluations = math.inf if budget.evaluations is None else budget.evaluations
            table = around.table or path_of(claimed)
            plan = Plan(options, self.wanted, claimed, around.catalogue, table, self.pool.processes, brief, evaluations)
            stack.callback(Forecast(plan, self.pool).close)
        if around.warm:
            self.pool.warm()

    def machine(self) -> Gpu:
        """The GPU that the run is for, checked against the device where it runs here. Imports the catalogue first, torch with it.

        Raises what `kernels.gpu.choose` raises.
        """
        import_module(self._around.catalogue)
        options, found = self._options, self._found() if self._local else None
        gpu = choose(options.gpu, options.profile, found, required=self._local)
        gpu = replace(gpu, name=found.name) if options.profile and found else gpu  # borrowed figures, a table of its own
        self.pool.gpu = gpu
        return gpu

    def _found(self) -> Gpu | None:
        """The GPU of the devices that are named, else the claimed one where it is there, else the first; None where there is none.

        Raises UsageError for a device that is not there, GpuMismatch for devices of several models.
        """
        if self._around.detect is not None:
            return self._around.detect()
        models = self._asked()
        if not models:
            return None
        named: list[int] = self._options.device or []
        for index in named:
            if not 0 <= index < len(models):
                raise UsageError(f"--device {index}: this machine has devices 0 to {len(models) - 1}")
        if not named:
            return next((model for model in models if model.name == self._options.gpu), models[0])
        first, *others = named
        for index in others:
            if models[index].name != models[first].name:
                told = f"--device {first} is {models[first].name}, --device {index} is {models[index].name}"
                raise GpuMismatch(f"{told}; a run is for one model")
        return models[first]

    def _asked(self) -> list[Gpu]:
        """The GPUs of this machine, from the process of the first, which must wait for its driver anyway."""
        if self._models is None:
            models = self._slot.call("autotune.executor:models", (), ASK_SECONDS)
            if isinstance(models, Failure):
                raise NoGpu(f"the GPU cannot be asked: {models}")
            self._models = list(models)
        return self._models

    def versions(self, slots: Sequence[Slot]) -> Mapping[str, str | None]:
        """Of the libraries where candidates run: here, or on the cluster, whose nodes have a driver where this machine may have none."""
        if not self._options.ray:
            return self._around.versions()
        try:
            found = slots[0].call("autotune.conditions:library_versions", (), ASK_SECONDS)
        except SlotLost as error:
            raise NoGpu(f"the cluster cannot be asked: {error}") from None
        if isinstance(found, Failure):
            raise NoGpu(f"the cluster cannot be asked: {found}")
        versions: Mapping[str, str | None] = found
        return versions

    def slots(self, gpu: Gpu) -> list[Slot]:
        """Where candidates run: on the cluster, on the devices that were named, or on all of this machine's of the model."""
        options = self._options
        if options.ray:
            from autotune.ray_executor import ray_slots

            return ray_slots(gpu, None if options.ray == "auto" else options.ray)
        if options.device:
            devices: Sequence[str] = [f"cuda:{index}" for index in dict.fromkeys(options.device)]
        elif self._around.devices is not None:
            devices = self._around.devices(gpu)
        else:
            devices = [f"cuda:{index}" for index, model in enumerate(self._asked()) if model.name == gpu.name]
        made = local_slots(devices, self._slot)
        if self._slot not in made:  # the first device is of another model
            self._slot.close()
        return made
