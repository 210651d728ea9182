"""It learns the same: a character model trained with BitLinear and with fake quantization in plain PyTorch, and their loss curves.

    python -m examples.train_tiny                       # everything, minutes on one GPU (several processes share it)
    python -m examples.train_tiny --smoke               # the same in miniature, under a minute on a CPU
    python -m examples.train_tiny --method ours --sparsity 2:4 --seeds 1

Both methods start from the same weights and see the same text in the same order, per seed. The text is generated; the curves go
to a JSON file that reports/learning.py reads, and the last lines say whether the two agree within the spread of seeds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from autotune.command import Parser, guarded
from autotune.worker import Worker
from examples.tiny_model import METHODS, SMOKE, Model, Settings, build, text
from kernels.bitlinear import Schedule, check
from kernels.errors import Failure, NoGpu, NonFiniteError, OutputError, UsageError
from reports.learning import SCHEMA, Run, parse, verdicts
from suites.command import EXIT_CODES, INCONCLUSIVE, WRONG
from suites.store import write_text

SPARSITIES = ("dense", "2:4", "6:8", "dense-to-2:4")
RUN_SECONDS = 480.0
"""A run in a child process that takes longer is killed."""
PROCESSES = 8
"""So many runs share a GPU, which a model as small as this leaves idle while the host launches."""

Job = tuple[str, str, int]
"""Method, sparsity, seed."""


def schedule_of(sparsity: str, steps: int) -> Schedule:
    """A named sparsity as phases: `dense-to-2:4` switches half-way."""
    first, _, then = sparsity.partition("-to-")
    return Schedule(((0, first), (max(1, steps // 2), then)) if then else ((0, first),))


def batch_of(data: torch.Tensor, settings: Settings, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random windows of the text and the same shifted by one, [batch, context] each."""
    starts = torch.randint(len(data) - settings.context - 1, (settings.batch,), generator=generator)
    windows = data[(starts[:, None] + torch.arange(settings.context + 1)).to(data.device)]
    return windows[:, :-1], windows[:, 1:]


def loss_of(model: Model, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats a character; the model under bf16 autocast."""
    with torch.autocast(tokens.device.type, torch.bfloat16):
        logits = model(tokens)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def train(method: str, sparsity: str, seed: int, settings: Settings, data: torch.Tensor, vocabulary: int) -> Run:
    """One run: its evaluation steps and the losses there, on the training text just seen and on held-out text."""
    split = len(data) * 9 // 10
    held_out = [batch_of(data[split:], settings, torch.Generator().manual_seed(1 << 20 | index)) for index in range(4)]
    generator = torch.Generator().manual_seed(seed)
    model, switch = build(method, vocabulary, settings, seed, data.device)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, (0.9, 0.95), weight_decay=0.05)
    warm = max(1, settings.steps // 20)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warm, 1.0) * (1 - 0.9 * step / settings.steps))
    schedule, every = schedule_of(sparsity, settings.steps), max(1, settings.steps // settings.evaluations)
    steps, training, validation, current, since = [], [], [], "", torch.zeros((), device=data.device)
    started = time.perf_counter()
    for step in range(settings.steps):
        if (wanted := str(schedule.at(step))) != current:
            switch(current := wanted)
        loss = loss_of(model, *batch_of(data[:split], settings, generator))
        loss.backward()  # type: ignore[no-untyped-call] # torch has no types there
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        since += loss.detach()
        if (step + 1) % every == 0:
            with torch.no_grad():
                validation.append(float(torch.stack([loss_of(model, *batch) for batch in held_out]).mean()))
            steps.append(step + 1)
            training.append(float(since) / every)
            since.zero_()
    if method == "ours":
        check(model)
    seconds = time.perf_counter() - started
    return Run(method, sparsity, seed, tuple(steps), tuple(training), tuple(validation), round(seconds, 2))


@functools.cache
def corpus(characters: int, device: str) -> tuple[torch.Tensor, int]:
    """The text as numbers on the device, and how many different characters it has."""
    written = text(characters)
    alphabet = {character: index for index, character in enumerate(sorted(set(written)))}
    return torch.tensor([alphabet[character] for character in written], device=device), len(alphabet)


def train_one(job: Job, settings: dict[str, float], device: str) -> Run | Failure:
    """One run from plain values, here or in a child process; a Failure where a layer saw a NaN or an infinity."""
    if device == "cpu":
        torch.set_num_threads(1)  # products this small lose time to waiting threads
    sized = Settings(**settings)  # type: ignore[arg-type] # the fields as asdict gave them
    try:
        return train(*job, sized, *corpus(sized.characters, device))
    except NonFiniteError as error:
        return Failure("wrong", f"{' '.join(map(str, job))}: {error}")


def train_in_children(jobs: Sequence[Job], settings: dict[str, float], device: str, processes: int) -> Iterator[Run | Failure]:
    """Runs as they end, several processes at once; what kills a process costs its run. Closing the iterator ends the children."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    done: queue.SimpleQueue[Run | Failure] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    stopped = threading.Event()

    def work(worker: Worker) -> None:
        with worker:
            while not (stopped.is_set() or waiting.empty()):
                try:
                    done.put(worker.call("examples.train_tiny:train_one", (waiting.get(block=False), settings, device), RUN_SECONDS))
                except queue.Empty:
                    return

    workers = [Worker() for _ in range(min(processes, len(jobs)))]
    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
    try:
        for thread in threads:
            thread.start()
        for _ in jobs:
            yield done.get()
    finally:
        stopped.set()
        for worker in workers:
            worker.kill()
        for thread in threads:
            thread.join()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(prog="python -m examples.train_tiny", description="Train a character model with BitLinear and with fake quantization; "
                  "compare the losses.", epilog=f"example: python -m examples.train_tiny --smoke · {EXIT_CODES}")  # fmt: skip
    made.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    made.add_argument("--sparsity", nargs="+", choices=SPARSITIES, default=list(SPARSITIES))
    made.add_argument("--seeds", type=int, help="how many (default 4; 2 with --smoke)")
    made.add_argument("--steps", type=int, help="optimizer steps of a run")
    made.add_argument("--smoke", action="store_true", help="a model that a CPU trains in seconds; what it learns is not to be compared")
    made.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    made.add_argument("--processes", type=int, help=f"runs at a time (default: {PROCESSES} on a GPU, less with fewer cores; 1 on a CPU)")
    made.add_argument("--out", type=Path, default=Path("runs/learning.json"), help="where the curves go (default %(default)s)")
    return made


def run(arguments: argparse.Namespace, keep: Callable[[dict[str, object]], None]) -> tuple[dict[str, object], list[Failure]]:
    """Every run that was asked for, as the data that the report reads, and the failures. keep: gets the data after every run, so
    that an interruption loses only what was not finished; seeds are complete in their order."""
    settings = SMOKE if arguments.smoke else Settings()
    settings = settings if arguments.steps is None else replace(settings, steps=arguments.steps)
    seeds = (2 if arguments.smoke else 4) if arguments.seeds is None else arguments.seeds
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    cores = len(os.sched_getaffinity(0))
    processes = (min(PROCESSES, cores) if device == "cuda" else 1) if arguments.processes is None else arguments.processes
    if min(settings.steps, seeds, processes) < 1:
        raise UsageError("--steps, --seeds and --processes must be at least 1")
    if device == "cuda" and not torch.cuda.is_available():
        raise NoGpu("--device cuda: a GPU is needed here and this machine has none")
    sizes, started = asdict(settings), time.perf_counter()
    runs: list[dict[str, object]] = []
    failures: list[Failure] = []
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    data: dict[str, object] = {
        "schema": SCHEMA, "device": name, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "smoke": arguments.smoke,
        "settings": {**sizes, "processes": processes}, "seconds": 0.0, "runs": runs,
    }  # fmt: skip
    jobs = [(method, sparsity, seed) for seed, sparsity, method in itertools.product(range(seeds), arguments.sparsity, arguments.method)]
    found: Iterable[Run | Failure] = (train_one(job, sizes, device) for job in jobs)
    for one in found if processes == 1 else train_in_children(jobs, sizes, device, processes):
        if isinstance(one, Failure):
            print(f"a run failed: {one}", file=sys.stderr)
            failures.append(one)
            continue
        print(f"{one.sparsity:>12}  seed {one.seed}  {one.method:<10}  {one.validation[-1]:.4f}  {one.seconds:.1f} s", flush=True)
        runs.append(asdict(one))
        data["seconds"] = round(time.perf_counter() - started, 1)
        keep(data)
    return data, failures


def main(argv: Sequence[str] | None = None) -> int:
    """0 where ours agrees with fake quantization, or where one of the two was not asked for; 3 where not, and for a NaN; 4 where a run
    failed otherwise; 2 for bad input, 5 without the GPU that was asked for, 130 when interrupted: the runs that ended are kept."""
    return guarded("train_tiny", lambda: _main(argv), "interrupted; the runs that ended are kept")


def _main(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    try:  # before minutes of training
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.open("a").close()
    except OSError as error:
        raise OutputError(f"{arguments.out}: cannot be written: {error.strerror}") from None
    found, failures = run(arguments, lambda data: write_text(arguments.out, json.dumps(data) + "\n"))
    agreements = verdicts(parse(found))
    for verdict in agreements:
        print(verdict)
    print(f"{found['seconds']} s in all; {arguments.out}")
    differ = not (arguments.smoke or all(verdict.agrees for verdict in agreements))
    if differ or any(failure.stage == "wrong" for failure in failures):
        return WRONG
    return INCONCLUSIVE if failures else 0


if __name__ == "__main__":
    sys.exit(main())
