"""It learns the same: a character model trained with BitLinear and with fake quantization in plain PyTorch, and their loss curves.

    python -m examples.train_tiny                       # everything, minutes on one GPU
    python -m examples.train_tiny --smoke               # the same in miniature, under a minute on a CPU
    python -m examples.train_tiny --method ours --sparsity 2:4 --seeds 1

Both methods start from the same weights and see the same text in the same order, per seed. The text is generated (`text`); the curves go
to a JSON file that reports/learning.py reads, and the last lines say whether the two agree within the spread of seeds.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from kernels.bitlinear import Schedule, check, convert, set_sparsity
from kernels.errors import OutputError, TerSparseError, UsageError
from kernels.problem import Sparsity
from kernels.sparse_backward.fakequant import fake_activation, masked_fake_weight, split_tensors
from reports.learning import SCHEMA, Run, parse, verdicts

METHODS = ("fake-quant", "ours")
SPARSITIES = ("dense", "2:4", "6:8", "dense-to-2:4")


@dataclass(frozen=True)
class Settings:
    """Sizes of the model and of its training; `evaluations` points of each curve."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    context: int = 256
    batch: int = 32
    steps: int = 500
    evaluations: int = 20
    learning_rate: float = 2e-3
    characters: int = 1_000_000


SMOKE = Settings(width=32, layers=1, heads=2, context=32, batch=4, steps=16, evaluations=4, characters=20_000)
SPLITS = {"qkv": 3, "gate_up": 2}
"""Equal splits of the fused projections: each part has a weight scale of its own."""


def text(characters: int, seed: int = 0) -> str:
    """A little language with something to learn at every distance: words, agreement, brackets, copies, sums."""
    draw = random.Random(seed)
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    words = ["".join(draw.choice(consonants) + draw.choice(vowels) for _ in range(draw.randint(1, 3))) for _ in range(300)]
    common = [words[min(299, int(draw.expovariate(0.02)))] for _ in range(4000)]
    lines, length = [], 0
    while length < characters:
        kind = draw.random()
        if kind < 0.5:
            many = draw.random() < 0.5
            subject, verb, thing = (draw.choice(common) for _ in range(3))
            line = f"{'some' if many else 'one'} {subject}{'s' if many else ''} {verb}{'' if many else 's'} the {thing}."
        elif kind < 0.7:
            word = draw.choice(common)
            line = f"say {word}: {word} {word}."
        elif kind < 0.85:
            first, second = draw.randint(0, 19), draw.randint(0, 19)
            line = f"{first}+{second}={first + second}."
        else:
            opened = [draw.choice("([") for _ in range(draw.randint(1, 5))]
            line = "".join(opened) + draw.choice(common) + "".join(")" if one == "(" else "]" for one in reversed(opened))
        lines.append(line)
        length += len(line) + 1
    return "\n".join(lines)[:characters]


class Block(nn.Module):
    """Causal attention and a gated MLP, each behind a norm; q, k, v and gate, up are fused projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(2 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [batch, context, width] to the same."""
        batch, context, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, context, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, context, width))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        added: torch.Tensor = x + self.down(F.silu(gate) * up)
        return added


class Model(nn.Module):
    """Characters in, logits of the next ones out."""

    def __init__(self, vocabulary: int, settings: Settings) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, settings.width)
        self.place = nn.Embedding(settings.context, settings.width)
        self.blocks = nn.Sequential(*(Block(settings.width, settings.heads) for _ in range(settings.layers)))
        self.norm, self.lm_head = nn.RMSNorm(settings.width), nn.Linear(settings.width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [batch, context] to logits [batch, context, vocabulary]."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        logits: torch.Tensor = self.lm_head(self.norm(self.blocks(self.embed(tokens) + self.place(places))))
        return logits


class FakeQuantLinear(nn.Linear):
    """The layer as it is written in plain PyTorch: quantized values in floating point, gradients straight through by detaching."""

    def __init__(self, linear: nn.Linear, splits: int) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, "meta")
        self.weight, self.bias, self.sparsity = linear.weight, linear.bias, Sparsity(1, 1)
        parts = (linear.out_features // splits,) * splits
        self.averages, self.split_of_row = split_tensors(parts, linear.in_features, linear.weight.device)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The same function as BitLinear's, with products of floating-point numbers."""
        x = input.float()
        rows = x.detach().reshape(-1, self.in_features)
        quantized = masked_fake_weight(self.weight.detach(), self.sparsity.n, self.sparsity.m, self.averages, self.split_of_row)
        weight = self.weight + (quantized - self.weight).detach()
        return F.linear(x + (fake_activation(rows).view(x.shape) - x).detach(), weight, self.bias)


def build(method: str, vocabulary: int, settings: Settings, seed: int, device: torch.device) -> tuple[Model, Callable[[str], None]]:
    """A model of that method, and what switches the sparsity of its layers."""
    torch.manual_seed(seed)
    model = Model(vocabulary, settings).to(device)
    if method == "ours":
        rows = {name: getattr(model.blocks[0], name).out_features for name in SPLITS}
        convert(model, "dense", splits={name: (rows[name] // parts,) * parts for name, parts in SPLITS.items()})
        return model, lambda sparsity: set_sparsity(model, sparsity)
    made = []
    for block in model.blocks:
        for name in ("qkv", "out", "gate_up", "down"):
            made.append(FakeQuantLinear(getattr(block, name), SPLITS.get(name, 1)))
            setattr(block, name, made[-1])

    def switch(sparsity: str) -> None:
        for layer in made:
            layer.sparsity = Sparsity.parse(sparsity)

    return model, switch


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


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m examples.train_tiny", description="Train a character model with BitLinear and with "
                                   "fake quantization; compare the losses.", epilog="example: python -m examples.train_tiny --smoke")
    made.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    made.add_argument("--sparsity", nargs="+", choices=SPARSITIES, default=list(SPARSITIES))
    made.add_argument("--seeds", type=int, help="how many (default 4; 2 with --smoke)")
    made.add_argument("--steps", type=int, help="optimizer steps of a run")
    made.add_argument("--smoke", action="store_true", help="a model that a CPU trains in seconds; what it learns is not to be compared")
    made.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    made.add_argument("--out", type=Path, default=Path("runs/learning.json"), help="where the curves go (default %(default)s)")
    return made


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """Every run that was asked for, as the data that the report reads."""
    settings = SMOKE if arguments.smoke else Settings()
    settings = settings if arguments.steps is None else replace(settings, steps=arguments.steps)
    seeds = (2 if arguments.smoke else 4) if arguments.seeds is None else arguments.seeds
    if min(settings.steps, seeds) < 1:
        raise UsageError("--steps and --seeds must be at least 1")
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        torch.set_num_threads(1)  # products this small lose time to waiting threads
    corpus = text(settings.characters)
    alphabet = {character: index for index, character in enumerate(sorted(set(corpus)))}
    data = torch.tensor([alphabet[character] for character in corpus], device=device)
    runs, started = [], time.perf_counter()
    for sparsity in arguments.sparsity:
        for seed in range(seeds):
            for method in arguments.method:
                one = train(method, sparsity, seed, settings, data, len(alphabet))
                print(f"{sparsity:>12}  seed {seed}  {method:<10}  {one.validation[-1]:.4f}  {one.seconds:.1f} s", flush=True)
                runs.append(asdict(one))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"schema": SCHEMA, "device": name, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "smoke": arguments.smoke,
            "settings": asdict(settings), "seconds": round(time.perf_counter() - started, 1), "runs": runs}


def main(argv: Sequence[str] | None = None) -> int:
    """0 where ours agrees with fake quantization, or where one of the two was not asked for; 3 where not; 2 for bad input."""
    arguments = parser().parse_args(argv)
    try:
        found = run(arguments)
        try:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(found) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {arguments.out}: {error}") from error
    except TerSparseError as error:
        print(f"train_tiny: {error}", file=sys.stderr)
        return error.exit_code
    agreements = verdicts(parse(found))
    for verdict in agreements:
        print(verdict)
    print(f"{found['seconds']} s in all; {arguments.out}")
    return 0 if arguments.smoke or all(verdict.agrees for verdict in agreements) else 3


if __name__ == "__main__":
    sys.exit(main())
