"""The model of examples/train_tiny.py and its text: a small decoder with BitLinear or fake quantization in plain PyTorch in its blocks."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from kernels.bitlinear import convert, set_sparsity
from kernels.problem import Sparsity
from kernels.sparse_backward.fakequant import fake_activation, masked_fake_weight, split_tensors

METHODS = ("fake-quant", "ours")


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
