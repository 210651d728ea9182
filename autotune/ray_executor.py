"""Slots on a Ray cluster: one actor per GPU of the claimed type, each with a child process that may die. Needs the extra `ray`.

The code travels with the job (Ray ships the working directory), results travel back: no shared disk is needed, and the one journal is here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from autotune.executor import Slot, SlotLost
from autotune.worker import Worker
from kernels.errors import NoGpu, TerSparseError, UsageError
from kernels.gpu import Gpu

ACCELERATORS: Mapping[str, str] = {
    "a100": "A100-80G", "a100-40gb": "A100-40G", "a10": "A10G", "l4": "L4", "l40s": "L40S", "h100": "H100", "h200": "H200", "b200": "B200",
}
"""Ray's names of accelerator types, by GPU profile; a cluster may name others by hand (`ray start --resources`)."""
SHARE = 0.001
"""What Ray counts an accelerator type by: a fraction of a node's one."""
PATIENCE = 300.0
"""Clusters grow slowly."""
ROOT = Path(__file__).resolve().parent.parent
CODE = ("reference", "kernels", "autotune", "suites", "reports", "tests", "examples", "tersparse.py")
"""What is shipped of the working directory; tests are shipped for a cluster's own."""


class Remote:
    """The actor: a worker on the cluster. Made into one by `RaySlot`."""

    def __init__(self) -> None:
        self._worker = Worker()

    def process(self) -> int:
        """The actor's own process id."""
        return os.getpid()

    def call(self, function: str, arguments: tuple[Any, ...], timeout: float) -> tuple[str, Any]:
        """("value", what `Worker.call` gives) or ("raise", the error of bad input)."""
        try:
            return "value", self._worker.call(function, arguments, timeout)
        except TerSparseError as error:
            return "raise", error


class RaySlot:
    """A GPU of the cluster. A lost node makes the call raise SlotLost; the next one asks for another GPU of that type.

    patience: seconds to wait for a free one.
    """

    def __init__(self, ray: Any, resources: Mapping[str, float], gpus: float, patience: float = PATIENCE) -> None:
        self._ray, self._resources, self._gpus, self._patience = ray, dict(resources), gpus, patience
        self._actor: Any = None

    @property
    def device(self) -> str:
        """The one device that Ray shows to the actor's process; "cpu" where none was asked for."""
        return "cuda:0" if self._gpus else "cpu"

    def call(self, function: str, arguments: tuple[Any, ...], timeout: float) -> Any:
        """As `Worker.call`, on the cluster."""
        try:
            if self._actor is None:
                self._start()
            kind, value = self._ray.get(self._actor.call.remote(function, arguments, timeout))
        except self._ray.exceptions.RayTaskError:
            raise  # of the code here, not of the cluster
        except self._ray.exceptions.RayError as error:
            self._actor = None
            raise SlotLost(f"the node is lost: {type(error).__name__}: {str(error).strip().splitlines()[-1]}") from None
        if kind == "raise":
            raise value
        return value

    def _start(self) -> None:
        wanted = self._ray.remote(num_cpus=1, num_gpus=self._gpus, resources=self._resources)
        self._actor = wanted(Remote).remote()
        ready, _ = self._ray.wait([self._actor.process.remote()], timeout=self._patience)
        if not ready:
            self.close()
            raise SlotLost(f"no {', '.join(self._resources)} was free within {self._patience:g} s")

    def kill(self) -> None:
        """End the actor and its child."""
        actor = self._actor
        if actor is not None:
            self._ray.kill(actor)

    def close(self) -> None:
        """End the actor and its child."""
        self.kill()
        self._actor = None


def ray_slots(gpu: Gpu, address: str | None = None, gpus: float = 1.0, resource: str | None = None) -> list[Slot]:
    """One slot per GPU of that type in the cluster at `address` (None: the one that Ray finds, or starts here).

    gpus: how many GPUs a slot asks for. resource: the cluster's own name of the type, by default Ray's accelerator type.
    Raises UsageError where ray is not installed or has no name for the type, NoGpu where the cluster has none of them.
    """
    try:
        ray: Any = import_module("ray")
    except ModuleNotFoundError:
        raise UsageError("--ray needs ray: pip install 'tersparse[ray]'") from None
    if resource is None and gpu.name not in ACCELERATORS:
        raise UsageError(f"Ray has no accelerator type for {gpu.name}; those it has: {', '.join(ACCELERATORS)}")
    name = resource or f"accelerator_type:{ACCELERATORS[gpu.name]}"
    if not ray.is_initialized():
        ignored = [f"/{entry.name}" for entry in ROOT.iterdir() if entry.name not in CODE]
        ray.init(address=address, log_to_driver=False, runtime_env={"working_dir": str(ROOT), "excludes": ignored})
    count = 0
    for node in ray.nodes():
        own = node["Resources"] if node["Alive"] else {}
        if name in own:
            count += int(own.get("GPU", 0) / gpus) if gpus else int(own[name] / SHARE)
    if not count:
        raise NoGpu(f"the cluster has no {name}")
    return [RaySlot(ray, {name: SHARE}, gpus) for _ in range(count)]
