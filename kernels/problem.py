"""What is computed: sparsities and problems as frozen values. `str(problem)` is the test id, the record key and the report label."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from kernels.errors import UsageError

Op = Literal["gemm", "layer", "prepare", "activation", "forward", "input-grad", "weight-grad", "step"]
"""gemm: int8 in, scaled output · layer: bf16 in, bf16 out · prepare: master weight to packed · activation: bf16 to int8 ·
forward, input-grad, weight-grad, step: one linear layer in training."""

DType = Literal["bf16", "fp16", "fp32", "int32"]
GROUP_SIZES = (4, 6, 8, 10, 16)


@dataclass(frozen=True)
class Sparsity:
    """n:m sparsity: at most n non-zeros in every m consecutive weights along in_features; `DENSE` is 1:1."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if (self.n, self.m) != (1, 1) and not (self.m in GROUP_SIZES and 0 < self.n < self.m):
            raise UsageError(f"unknown sparsity {self.n}:{self.m}; allowed: dense, or n:m with 0 < n < m and m in {GROUP_SIZES}")

    @classmethod
    def parse(cls, text: str) -> Sparsity:
        """Read `dense` or `n:m`."""
        if text == "dense":
            return DENSE
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if not found:
            raise UsageError(f"unknown sparsity {text!r}; allowed: dense, or n:m such as 2:4 and 6:8")
        return cls(int(found[1]), int(found[2]))

    @property
    def lifted(self) -> bool:
        """Whether 2:4 hardware runs this through overlapping windows: (L-2):L with L > 4."""
        return self.m > 4 and self.n == self.m - 2 and self.m % 2 == 0

    def __str__(self) -> str:
        return "dense" if self == DENSE else f"{self.n}:{self.m}"


DENSE = Sparsity(1, 1)


@dataclass(frozen=True)
class Problem:
    """One thing to compute.

    op: see `Op`. out_features N and in_features K of the layer; tokens T (0 where an op has none). `activation` uses K and T only (N = 0).
    splits: output rows per weight scale, in order, summing to N. dtype: type of the floating-point inputs and outputs; for a `gemm`,
    of the output, where int32 asks for the raw accumulators.
    """

    op: Op
    out_features: int
    in_features: int
    tokens: int
    sparsity: Sparsity
    splits: tuple[int, ...] = ()
    dtype: DType = "bf16"
    bias: bool = False

    def __post_init__(self) -> None:
        if self.op not in get_args(Op):
            raise UsageError(f"unknown op {self.op!r}; allowed: {', '.join(get_args(Op))}")
        if min(self.out_features, self.tokens) < 0 or self.in_features < 1:
            raise UsageError(f"shape {self.out_features}x{self.in_features}, {self.tokens} tokens: in_features is at least 1, the others 0")
        if not self.splits:
            object.__setattr__(self, "splits", (self.out_features,))
        if sum(self.splits) != self.out_features or min(self.splits) < 0:
            raise UsageError(f"splits {self.splits} do not sum to out_features {self.out_features}, or one is negative")
        if self.dtype not in get_args(DType):
            raise UsageError(f"unknown dtype {self.dtype!r}; allowed: {', '.join(get_args(DType))}")

    @property
    def refusal(self) -> str | None:
        """Why this problem has no answer at all (in_features not a multiple of the group), or None."""
        if self.in_features % self.sparsity.m:
            return f"in_features {self.in_features} is not a multiple of the group of {self.sparsity.m} in {self.sparsity}"
        return None

    @property
    def operations(self) -> int:
        """Multiplications and additions, zeros included: 2·N·K·T per GEMM (a step holds three); 0 where bytes are all that counts."""
        gemms = {"gemm": 1, "layer": 1, "forward": 1, "input-grad": 1, "weight-grad": 1, "step": 3}.get(self.op, 0)
        return 2 * gemms * self.out_features * self.in_features * self.tokens

    def with_(self, **changes: Any) -> Problem:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data; `from_dict` reads it back."""
        return {**asdict(self), "sparsity": str(self.sparsity), "splits": list(self.splits)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Problem:
        """Read what `to_dict` wrote."""
        return cls(**{**data, "sparsity": Sparsity.parse(data["sparsity"]), "splits": tuple(data["splits"])})

    def __str__(self) -> str:
        shape = f"{self.out_features}x{self.in_features}" if self.op != "activation" else f"K={self.in_features}"
        parts = [self.op, shape]
        if self.tokens or self.op != "prepare":
            parts.append(f"T={self.tokens}")
        parts.append(str(self.sparsity))
        if len(self.splits) > 1:
            parts.append("splits=" + ",".join(map(str, self.splits)))
        if self.dtype != "bf16":
            parts.append(self.dtype)
        if self.bias:
            parts.append("bias")
        return " ".join(parts)
