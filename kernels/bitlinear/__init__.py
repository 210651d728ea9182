"""What a user of PyTorch imports: `BitLinear` in place of `nn.Linear`, `convert` for whole models, schedules, packed inference.

    from kernels.bitlinear import BitLinear, Schedule, convert

    convert(model, "2:4")                       # q, k, v, o, gate, up, down …; embeddings and the head stay
    schedule = Schedule(((0, "dense"), (1000, "2:4")))

See docs/bitlinear.md.
"""

from __future__ import annotations

from kernels.bitlinear.convert import Schedule, check, convert, freeze_model, layers, repack, set_sparsity
from kernels.bitlinear.frozen import PackedLinear, freeze
from kernels.bitlinear.module import BitLinear, from_linear
from kernels.bitlinear.variants import Choice, choose

__all__ = [
    "BitLinear", "Choice", "PackedLinear", "Schedule", "check", "choose", "convert", "freeze", "freeze_model", "from_linear", "layers",
    "repack", "set_sparsity",
]
