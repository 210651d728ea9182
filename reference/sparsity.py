"""Which weights are kept: n:m masks along in_features and transposable 2:4 masks.

Sources: n:m sparsity on tensor cores, Mishra et al., arXiv 2104.08378; transposable masks, Hubara et al., arXiv 2102.08124;
masks on ternary weights, Sparse-BitNet, arXiv 2603.05168.
"""

from __future__ import annotations

import itertools

import torch

GROUP_SIZES = (1, 4, 6, 8, 10, 16)
CHUNK_ELEMENTS = 1 << 24
"""Elements handled at a time: bounds the memory of the intermediates, whatever the size of the weight."""


def chunk_rows(rows: int, columns: int, multiple: int = 1) -> list[slice]:
    """Slices that cover `rows` in order: at most about `CHUNK_ELEMENTS` elements each, whole multiples of `multiple` rows but the last."""
    step = max(1, CHUNK_ELEMENTS // max(1, columns) // multiple) * multiple
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def nm_mask(weight: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Keep the n largest |w| of every m consecutive weights along in_features; ties keep the lower index.

    weight: [out_features, in_features], any float type, finite (a NaN ranks above everything that precedes it in no defined way).
    Returns bool [out_features, in_features] with exactly n true per group; 1:1 (dense) keeps everything. The scores are the values of
    the master weight itself, and the whole matrix is one problem (splits do not matter).
    Raises ValueError for an unknown group size, n outside 1..m, or in_features that m does not divide.
    Source: Mishra et al., arXiv 2104.08378 (2:4); SlideSparse, arXiv 2603.05232 (6:8, whose code names the zeros first).
    """
    if m not in GROUP_SIZES or not 1 <= n <= m:
        raise ValueError(f"unknown sparsity {n}:{m}; allowed: 1 <= n <= m and m in {GROUP_SIZES}")
    rows, columns = weight.shape
    if columns % m:
        raise ValueError(f"in_features {columns} is not a multiple of the group of {m}")
    mask = torch.ones((rows, columns), dtype=torch.bool, device=weight.device)
    if n == m:
        return mask
    for chunk in chunk_rows(rows, columns):
        score = weight[chunk].abs().reshape(-1, columns // m, m)
        kept = mask[chunk].view(-1, columns // m, m)
        for i in range(m):
            kept[:, :, i] = _rank(score, i) < n
    return mask


def _rank(score: torch.Tensor, i: int) -> torch.Tensor:
    """How many of each group [rows, groups, m] stand before position i: the greater ones, and the equal ones of lower index."""
    rank = torch.zeros(score.shape[:2], dtype=torch.uint8, device=score.device)
    for j in range(score.shape[2]):
        if j != i:
            rank += score[:, :, j] >= score[:, :, i] if j < i else score[:, :, j] > score[:, :, i]
    return rank


def transposable_patterns() -> list[tuple[int, ...]]:
    """The 90 ways to keep 2 per row and 2 per column of a 4x4 block, each as its 8 kept positions (4·row + column) in row-major order.

    The list is in lexicographic order of these positions, so that among equal patterns the lower indices come first.
    """
    pairs = list(itertools.combinations(range(4), 2))
    choices = (rows for rows in itertools.product(pairs, repeat=4) if all(sum(c in row for row in rows) == 2 for c in range(4)))
    return [tuple(4 * r + c for r, row in enumerate(rows) for c in row) for rows in choices]


def transposable_mask(weight: torch.Tensor) -> torch.Tensor:
    """A mask that is 2:4 along in_features and along out_features at once.

    weight: [out_features, in_features], finite. Per 4x4 block the pattern with the largest sum of |w| (float32, the kept ones added one
    after the other in row-major order) is kept; ties go to the first of `transposable_patterns`.
    Returns bool [out_features, in_features]. Raises ValueError where 4 does not divide both sizes.
    Source: Hubara et al., arXiv 2102.08124.
    """
    rows, columns = weight.shape
    if rows % 4 or columns % 4:
        raise ValueError(f"transposable masks need sizes that are multiples of 4, not {rows}x{columns}")
    patterns = transposable_patterns()
    table = torch.zeros((len(patterns), 16), dtype=torch.bool)
    for index, pattern in enumerate(patterns):
        table[index, list(pattern)] = True
    table = table.to(weight.device)
    mask = torch.empty((rows, columns), dtype=torch.bool, device=weight.device)
    for chunk in chunk_rows(rows, columns, multiple=4):
        score = weight[chunk].abs().float().reshape(-1, 4, columns // 4, 4)
        best = torch.full((score.shape[0], columns // 4), -1.0, device=weight.device)
        choice = torch.zeros_like(best, dtype=torch.long)
        for index, pattern in enumerate(patterns):
            total = torch.zeros_like(best)
            for position in pattern:
                total = total + score[:, position // 4, :, position % 4]
            better = total > best
            best, choice = torch.where(better, total, best), torch.where(better, index, choice)
        kept = table[choice].view(-1, columns // 4, 4, 4)
        mask[chunk] = kept.permute(0, 2, 1, 3).reshape(-1, columns)
    return mask
