"""Similarity between neighbouring tokens, channel by channel (arXiv 2511.12035, sections 3 and 4): pure functions.

Everywhere `x` is [..., tokens, d] in the sequence order of its TokenGrid, and text tokens are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from timeripple.attention.grid import AXES, TokenGrid


def window_deviation(x: Tensor, grid: TokenGrid, axis: str, window: int) -> Tensor:
    """Population standard deviation of every channel in every window of `window` tokens along one axis (Eq. 3).

    Windows are disjoint and start at 0; the tokens of a ragged tail belong to none.
    Returns [..., t, y, x, d] with the size of `axis` divided (rounding down) by `window`; at least float32.
    """
    windows = _windows(_video(x, grid), axis, window)
    return (windows - windows.mean(_dim(axis), keepdim=True)).square().mean(_dim(axis)).sqrt()


def reuse_threshold(x: Tensor, grid: TokenGrid, axes: Sequence[str], window: int) -> Tensor:
    """The deviation an entry must stay below to be reused along some axis: [..., tokens, d].

    It is the smallest Eq. 3 over `axes`, infinite for entries which are first in their window on every axis, in a
    ragged tail or text: those are never reused.
    """
    threshold = _axis_threshold(x, grid, axes[0], window)
    for axis in axes[1:]:
        threshold = torch.minimum(threshold, _axis_threshold(x, grid, axis, window))
    padding = (0, 0, grid.text_before, grid.text_after)
    return torch.nn.functional.pad(threshold.flatten(-4, -2), padding, value=float("inf"))


def reuse_mask(x: Tensor, grid: TokenGrid, theta: float, axes: Sequence[str], window: int) -> Tensor:
    """True where the partial attention score of a (token, channel) entry is reused: bool [..., tokens, d].

    The masks of the axes are OR-ed; the first token of a window is computed, so its entry is not marked.
    """
    return reuse_threshold(x, grid, axes, window) < theta


def snap(x: Tensor, grid: TokenGrid, theta: float, axes: Sequence[str], window: int) -> tuple[Tensor, Tensor]:
    """Reuse as arithmetic: `x` with every reused entry replaced by the one it reuses, and the mask of those entries.

    Masks come from the original values. Entries take the value of their window's first token along t, then y, then
    x, each pass reading what the previous one wrote. Returns (snapped like x, reuse_mask).
    """
    snapped = grid.unflatten(x[..., grid.video, :]).clone()
    for axis in (axis for axis in AXES if axis in axes):
        mask = _windows(_axis_threshold(x, grid, axis, window), axis, window) < theta
        windows = _windows(snapped, axis, window)  # a view: writing to it writes to `snapped`
        windows.copy_(torch.where(mask, windows.narrow(_dim(axis), 0, 1), windows))
    output = x.clone()
    output[..., grid.video, :] = snapped.flatten(-4, -2)
    return output, reuse_mask(x, grid, theta, axes, window)


def axis_correlation(x: Tensor, grid: TokenGrid, axis: str, lag: int) -> Tensor:
    """Pearson correlation of every channel between video tokens `lag` apart along one axis: [..., d] in [-1, 1].

    0 where a channel is constant. Raises ValueError unless 1 <= lag < size of the axis.
    """
    size = grid.shape[AXES.index(axis)]
    if not 1 <= lag < size:
        raise ValueError(f"lag {lag} does not fit axis {axis} of {size} tokens; choose 1 to {size - 1}")
    video = _video(x, grid)
    first = video.narrow(_dim(axis), 0, size - lag).flatten(-4, -2)
    second = video.narrow(_dim(axis), lag, size - lag).flatten(-4, -2)
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


def _axis_threshold(x: Tensor, grid: TokenGrid, axis: str, window: int) -> Tensor:
    """Eq. 3 of each entry's window along one axis, infinite for first tokens and the ragged tail: [..., t, y, x, d]."""
    video = _video(x, grid)
    threshold = torch.full_like(video, float("inf"))
    later = _windows(threshold, axis, window).narrow(_dim(axis), 1, window - 1)
    later.copy_(window_deviation(x, grid, axis, window).unsqueeze(_dim(axis)))
    return threshold


def _video(x: Tensor, grid: TokenGrid) -> Tensor:
    x = x[..., grid.video, :]
    return grid.unflatten(x.to(torch.promote_types(x.dtype, torch.float32)))


def _windows(video: Tensor, axis: str, window: int) -> Tensor:
    """View of whole windows: the axis of [..., t, y, x, d] becomes (windows, window), without the ragged tail.

    The position inside the window then has the number, from the end, that the axis had.
    """
    dim = _dim(axis)
    windows = video.shape[dim] // window
    return video.narrow(dim, 0, windows * window).unflatten(dim, (windows, window))


def _dim(axis: str) -> int:
    """Dimension of an axis in [..., t, y, x, d], counted from the end."""
    return AXES.index(axis) - 4
