"""How much channels repeat themselves along time, height and width (arXiv 2511.12035, section 3): pure functions.

Everywhere `x` is [..., tokens, d] in the sequence order of its TokenGrid, and text tokens are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from timeripple.attention.grid import AXES, TokenGrid
from timeripple.attention.similarity import dim_of, video_grid, window_deviation


def axis_correlation(x: Tensor, grid: TokenGrid, axis: str, lag: int) -> Tensor:
    """Pearson correlation of every channel between video tokens `lag` apart along one axis: [..., d] in [-1, 1].

    0 where a channel is constant. Raises ValueError unless 1 <= lag < size of the axis.
    """
    size = grid.shape[AXES.index(axis)]
    if not 1 <= lag < size:
        raise ValueError(f"lag {lag} does not fit axis {axis} of {size} tokens; choose 1 to {size - 1}")
    video = video_grid(x, grid)
    first = video.narrow(dim_of(axis), 0, size - lag).flatten(-4, -2)
    second = video.narrow(dim_of(axis), lag, size - lag).flatten(-4, -2)
    first = first - first.mean(-2, keepdim=True)
    second = second - second.mean(-2, keepdim=True)
    norm = first.square().sum(-2).sqrt() * second.square().sum(-2).sqrt()
    return torch.where(norm > 0, (first * second).sum(-2) / norm, 0.0)


def correlation_table(x: Tensor, grid: TokenGrid, lags: Sequence[int]) -> tuple[list[tuple[str, int]], Tensor]:
    """`axis_correlation` at several lags: columns (axis, lag) as far as the grid goes, values [..., d, columns]."""
    columns = [(axis, lag) for axis, size in zip(AXES, grid.shape, strict=True) for lag in lags if lag < size]
    return columns, torch.stack([axis_correlation(x, grid, *column) for column in columns], dim=-1)


def deviation_table(x: Tensor, grid: TokenGrid, windows: Sequence[int]) -> tuple[list[tuple[str, int]], Tensor]:
    """Eq. 3 for several windows, mean over the grid: columns (axis, window), values [..., d, columns]."""
    columns = [(axis, size) for axis, most in zip(AXES, grid.shape, strict=True) for size in windows if size <= most]
    means = [window_deviation(x, grid, *column).flatten(-4, -2).mean(-2) for column in columns]
    return columns, torch.stack(means, dim=-1)


def group_means(
    columns: Sequence[tuple[str, int]], values: Tensor, channels: Sequence[tuple[str, float]]
) -> dict[str, dict[str, float]]:
    """Mean correlation of the channels of a RoPE group with the next token along each axis, by group and axis.

    values: [d, columns] as `correlation_table` gives them; channels: axis and radians of each, as
    `probe.rope_frequencies`; none: the channels are one group, "all".
    """
    groups = list(dict.fromkeys(axis for axis, _ in channels)) or ["all"]
    rows = {group: [i for i, (axis, _) in enumerate(channels) if axis == group] for group in groups}
    next_ones = {axis: i for i, (axis, lag) in enumerate(columns) if lag == 1}
    return {
        group: {axis: values[rows[group] or slice(None), i].mean().item() for axis, i in next_ones.items()}
        for group in groups
    }


def strongest(tables: Tensor) -> tuple[int, int, int]:
    """Layer, head and channel where the effect is strongest: the head whose channels repeat themselves most along the
    axis that is best for each, and in it the channel that does so most. tables: [layers, heads, d, columns]."""
    best = tables.amax(-1)
    head = int(best.mean(-1).argmax())
    layer, head = divmod(head, tables.shape[1])
    return layer, head, int(best[layer, head].argmax())


def correlated_noise(
    grid: TokenGrid, heads: int, head_dim: int, correlations: Sequence[float], std: float, generator: torch.Generator
) -> Tensor:
    """Gaussian [1, heads, tokens, head_dim]; correlations: of video tokens with the next one along t, y and x."""
    x = torch.randn(1, heads, grid.tokens, head_dim, generator=generator, device=generator.device)
    video = grid.unflatten(x[..., grid.video, :])
    for dim, correlation in enumerate(correlations, start=2):
        r = min(max(correlation, 0.0), 0.999)
        for i in range(1, video.shape[dim]):
            video.select(dim, i).mul_((1 - r**2) ** 0.5).add_(video.select(dim, i - 1), alpha=r)
    return x.mul_(std)
