"""A Triton kernel of your own, tuned: python examples/tune_your_own.py (needs a GPU; keeps what it measured under runs/)."""

import sys

import torch
import triton
import triton.language as tl

from autotune.command import guarded
from autotune.own import OwnKernel, table, tune

ROWS, COLUMNS, EPSILON = 4096, 4096, 1e-6


@triton.jit
def rms_norm(x, y, eps, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, ROWS_EACH: tl.constexpr):
    """Rows of y [ROWS, COLUMNS] are those of x over their root mean square."""
    for row in range(tl.program_id(0) * ROWS_EACH, (tl.program_id(0) + 1) * ROWS_EACH):
        total = 0.0
        for start in range(0, COLUMNS, BLOCK):
            part = tl.load(x + row * COLUMNS + start + tl.arange(0, BLOCK)).to(tl.float32)
            total += tl.sum(part * part)
        scale = tl.rsqrt(total / COLUMNS + eps)
        for start in range(0, COLUMNS, BLOCK):
            place = row * COLUMNS + start + tl.arange(0, BLOCK)
            tl.store(y + place, (tl.load(x + place).to(tl.float32) * scale).to(tl.bfloat16))


def inputs(device, seed):
    """The same numbers for the same seed."""
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator(device).manual_seed(seed), device=device, dtype=torch.bfloat16)


def prepare(device, seed, config):
    """A call of the kernel under that config."""
    x = inputs(device, seed)
    y = torch.full_like(x, float("nan"))
    grid = (ROWS // config["rows"],)

    def run():
        rms_norm[grid](x, y, EPSILON, COLUMNS, config["block"], config["rows"], num_warps=config["num_warps"])
        return y

    return run


def check(device, seed, result):
    """Why the result is wrong, or None."""
    x = inputs(device, seed).double()
    expected = x * torch.rsqrt(x.square().mean(1, keepdim=True) + EPSILON)
    worst = float(((result.double() - expected).abs() / expected.abs().clamp_min(1e-3)).max())
    return None if worst <= 2**-7 else f"off by {worst:.3%}, more than a step of bfloat16"


KERNEL = OwnKernel(prepare, check, {"block": (1024, 512, 2048, 4096), "rows": (1, 2, 4), "num_warps": (4, 2, 8, 16)})


def main() -> int:
    """Tune and print; 4 where nothing could be tuned."""
    found = tune(__file__, "KERNEL")
    print(table(found))
    return 0 if found.verdict else 4


if __name__ == "__main__":
    sys.exit(guarded("tune_your_own", main))
