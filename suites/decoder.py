"""A decoder of a model's shapes, small enough for one step: RMSNorm, rotary attention, gated MLP, the embedding also as the head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from suites.models import Model

EPSILON = 1e-6
SPREAD = 0.02
"""Standard deviation of random weights, the initializer_range of these models."""
ROTARY_BASE = 10_000.0


class Block(nn.Module):
    """Causal attention and a gated MLP, each behind a norm and without biases; q, k, v and gate, up are fused projections."""

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.q, self.kv, self.head = model.q, model.kv, model.head

        def linear(in_features: int, out_features: int) -> nn.Linear:
            return nn.Linear(in_features, out_features, False, device, dtype)

        self.norm = nn.RMSNorm(model.hidden, EPSILON, device=device, dtype=dtype)
        self.qkv, self.out = linear(model.hidden, model.q + 2 * model.kv), linear(model.q, model.hidden)
        self.mlp_norm = nn.RMSNorm(model.hidden, EPSILON, device=device, dtype=dtype)
        self.gate_up, self.down = linear(model.hidden, 2 * model.intermediate), linear(model.intermediate, model.hidden)

    def forward(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        """x [sequences, context, hidden] to the same; cosine, sine: `rotary` [context, head]."""
        sequences, context, _ = x.shape
        parts = self.qkv(self.norm(x)).split((self.q, self.kv, self.kv), -1)
        q, k, v = (part.view(sequences, context, -1, self.head).transpose(1, 2) for part in parts)
        q, k = turned(q, cosine, sine), turned(k, cosine, sine)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(sequences, context, self.q))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        added: torch.Tensor = x + self.down(F.silu(gate) * up)
        return added


class Head(nn.Module):
    """Hidden states to the mean cross-entropy of the next tokens, in nats, through the weight of the embedding."""

    def __init__(self, embed: nn.Embedding) -> None:
        super().__init__()
        self.weight = embed.weight
        self.norm = nn.RMSNorm(embed.embedding_dim, EPSILON, device=self.weight.device, dtype=self.weight.dtype)

    def forward(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """x [sequences, context, hidden], targets int64 [sequences, context]."""
        logits = F.linear(self.norm(x), self.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


class Decoder(nn.Module):
    """Tokens in, loss out: `blocks` blocks of a model's shapes over `vocabulary` tokens, random weights of the current seed."""

    cosine: torch.Tensor
    sine: torch.Tensor

    def __init__(self, model: Model, blocks: int, vocabulary: int, context: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, model.hidden, device=device, dtype=dtype)
        self.blocks = nn.ModuleList(Block(model, device, dtype) for _ in range(blocks))
        self.head = Head(self.embed)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=SPREAD)
        cosine, sine = rotary(model.head, context, device)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states behind the last block, [sequences, context, hidden], of tokens int64 [sequences, context]."""
        x: torch.Tensor = self.embed(tokens)
        cosine, sine = self.cosine.to(x.dtype), self.sine.to(x.dtype)
        for block in self.blocks:
            x = block(x, cosine, sine)
        return x

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of targets int64 [sequences, context], one token behind tokens."""
        loss: torch.Tensor = self.head(self.hidden(tokens), targets)
        return loss

    def compile_parts(self, backend: str) -> None:
        """Compile every block and the head, in place, without a break in their graphs. Equal blocks share one compilation."""
        for part in (*self.blocks, self.head):
            part.compile(backend=backend, fullgraph=True, dynamic=False)


def rotary(head: int, context: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of every position and column, float32 [context, head]; both halves of a head turn alike."""
    rates = ROTARY_BASE ** (-torch.arange(0, head, 2, device=device) / head)
    angles = torch.outer(torch.arange(context, device=device), rates).repeat(1, 2)
    return angles.cos(), angles.sin()


def turned(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """x [sequences, heads, context, head], each position turned by its angle."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat((-second, first), -1) * sine
