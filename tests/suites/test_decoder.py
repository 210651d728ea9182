from __future__ import annotations

import math

import pytest
import torch

from suites.decoder import Decoder, rotary, turned
from suites.models import Model

CPU = torch.device("cpu")
TINY = Model("tiny", 32, 48, 32, 16, blocks=4, head=8, vocabulary=64)


def decoder(dtype: torch.dtype = torch.float32) -> Decoder:
    torch.manual_seed(0)
    return Decoder(TINY, 2, 64, 12, CPU, dtype)


def test_shapes_are_the_models() -> None:
    model = decoder()
    for block in model.blocks:
        linear = [block.qkv, block.out, block.gate_up, block.down]
        assert [(one.out_features, one.in_features) for one in linear] == [(la.out_features, la.in_features) for la in TINY.layers]
    assert model.head.weight is model.embed.weight
    loss = model(torch.randint(64, (3, 12)), torch.randint(64, (3, 12)))
    assert abs(float(loss) - math.log(64)) < 0.5


def test_a_position_sees_only_what_is_before_it() -> None:
    model, tokens = decoder(), torch.randint(64, (2, 12))
    before, tokens[:, 7] = model.hidden(tokens), (tokens[:, 7] + 1) % 64
    after = model.hidden(tokens)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert all((before[:, place] - after[:, place]).abs().max() > 1e-3 for place in range(7, 12))


def test_rotated_products_depend_on_distance_alone() -> None:
    cosine, sine = rotary(8, 12, CPU)
    q, k = torch.randn(8), torch.randn(8)
    scores = turned(q.expand(1, 1, 12, 8), cosine, sine)[0, 0] @ turned(k.expand(1, 1, 12, 8), cosine, sine)[0, 0].t()
    for shift in range(-11, 12):
        line = scores.diagonal(shift)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores[0, 0], q @ k)
    assert (scores[0] - scores[0, 0]).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_parts_compute_the_same(dtype: torch.dtype) -> None:
    tokens = torch.randint(64, (2, 13))
    plain, compiled = decoder(dtype), decoder(dtype)
    compiled.compile_parts("aot_eager")
    losses = [one(tokens[:, :-1], tokens[:, 1:]) for one in (plain, compiled)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
