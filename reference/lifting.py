"""(L-2):L weights as 2:4 weights: every group of L becomes L/2 - 1 overlapping windows of 4, stride 2.

Window w of a group covers its columns 2w … 2w+3 and takes at most 2 non-zeros; the other positions of the lifted weight are zero, the
activation is repeated, and the product stays the same. The lifted width is 4 · (L/2 - 1) · in_features / L (1.5 in_features for 6:8).
Order of the lifted columns: where 4 divides L, the windows of even w come first (together they are the natural columns: the lifted
activation begins with the activation itself), then those of odd w, both group by group; else the windows of each group in order.
Source: SlideSparse, arXiv 2603.05232, whose order of columns is another one.
"""

from __future__ import annotations

import torch

from reference.sparsity import chunk_rows


def lifted_width(in_features: int, m: int) -> int:
    """Columns of the lifted operands. Raises ValueError for an odd m, m below 4, or in_features that m does not divide."""
    if m < 4 or m % 2:
        raise ValueError(f"only groups of an even size of at least 4 are lifted, not of {m}")
    if in_features % m:
        raise ValueError(f"in_features {in_features} is not a multiple of the group of {m}")
    return 4 * (m // 2 - 1) * (in_features // m)


def lifted_columns(in_features: int, m: int) -> torch.Tensor:
    """For each lifted column the column it repeats: int64 [lifted width], on the CPU. Raises ValueError like `lifted_width`."""
    lifted_width(in_features, m)
    groups = torch.arange(in_features).view(1, -1, m)
    return _arrange([groups[:, :, 2 * w : 2 * w + 4] for w in range(m // 2 - 1)], m)[0]


def lift_weight(w_ternary: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """A 2:4 weight that multiplies `lift_activation(x, m)` as `w_ternary` multiplies x.

    w_ternary: int8 [out_features, in_features] with at most n = m - 2 non-zeros in every group of m. Each window takes the first two
    non-zeros that earlier windows left over. Returns int8 [out_features, lifted width].
    Raises ValueError where n is not m - 2 and where a group has more non-zeros than n: no weight is ever dropped.
    """
    if n != m - 2:
        raise ValueError(f"only (m-2):m sparsities are lifted onto 2:4, not {n}:{m}")
    rows, columns = w_ternary.shape
    lifted = torch.empty((rows, lifted_width(columns, m)), dtype=w_ternary.dtype, device=w_ternary.device)
    for chunk in chunk_rows(rows, columns):
        groups = w_ternary[chunk].reshape(-1, columns // m, m)
        left = groups != 0
        windows = []
        for w in range(m // 2 - 1):
            here = slice(2 * w, 2 * w + 4)
            taken = left[:, :, here] & (left[:, :, here].cumsum(dim=2) <= 2)
            windows.append(groups[:, :, here] * taken)
            left[:, :, here] &= ~taken
        if left.any():
            row, group, _ = left.nonzero()[0].tolist()
            found = int(groups[row, group].count_nonzero())
            raise ValueError(f"row {row + chunk.start}, group {group} has {found} non-zeros; {n}:{m} allows {n}")
        lifted[chunk] = _arrange(windows, m)
    return lifted


def unlift_weight(lifted: torch.Tensor, n: int, m: int, in_features: int) -> torch.Tensor:
    """The weight that `lift_weight` was given. lifted: [out_features, lifted width]. Returns its type, [out_features, in_features].

    Raises ValueError where n is not m - 2 or the width does not belong to in_features.
    """
    if n != m - 2 or lifted.shape[1] != lifted_width(in_features, m):
        raise ValueError(f"{lifted.shape[1]} columns are not {in_features} columns lifted from {n}:{m}")
    columns = lifted_columns(in_features, m).to(lifted.device)
    return torch.zeros((lifted.shape[0], in_features), dtype=lifted.dtype, device=lifted.device).index_add_(1, columns, lifted)


def lift_activation(x: torch.Tensor, m: int) -> torch.Tensor:
    """x [tokens, in_features] of any type with its columns repeated for the windows: [tokens, lifted width].

    Raises ValueError like `lifted_width`.
    """
    return x[:, lifted_columns(x.shape[1], m).to(x.device)]


def _arrange(windows: list[torch.Tensor], m: int) -> torch.Tensor:
    """The windows, each [rows, groups, 4], side by side in the order of the lifted columns: [rows, lifted width]."""
    parts = [windows[::2], windows[1::2]] if m % 4 == 0 else [windows]
    return torch.cat([torch.stack(part, dim=2).flatten(1) for part in parts if part], dim=1)
