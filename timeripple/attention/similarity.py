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
    windows = _windows(video_grid(x, grid), axis, window)
    return (windows - windows.mean(dim_of(axis), keepdim=True)).square().mean(dim_of(axis)).sqrt()


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


def reuse_mask(x: Tensor, grid: TokenGrid, theta: float | Tensor, axes: Sequence[str], window: int) -> Tensor:
    """True where the partial attention score of a (token, channel) entry is reused: bool [..., tokens, d].

    The masks of the axes are OR-ed; the first token of a window is computed, so its entry is not marked.
    """
    return reuse_threshold(x, grid, axes, window) < theta


def snap(x: Tensor, grid: TokenGrid, theta: float | Tensor, axes: Sequence[str], window: int) -> tuple[Tensor, Tensor]:
    """Reuse as arithmetic: `x` with every reused entry replaced by the one it reuses, and the mask of those entries.

    Masks come from the original values. Entries take the value of their window's first token along t, then y, then
    x, each pass reading what the previous one wrote. Returns (snapped like x, reuse_mask).
    """
    snapped = grid.unflatten(x[..., grid.video, :]).clone()
    for axis in (axis for axis in AXES if axis in axes):
        mask = _windows(_axis_threshold(x, grid, axis, window), axis, window) < theta
        windows = _windows(snapped, axis, window)  # a view: writing to it writes to `snapped`
        windows.copy_(torch.where(mask, windows.narrow(dim_of(axis), 0, 1), windows))
    output = x.clone()
    output[..., grid.video, :] = snapped.flatten(-4, -2)
    return output, reuse_mask(x, grid, theta, axes, window)


def _axis_threshold(x: Tensor, grid: TokenGrid, axis: str, window: int) -> Tensor:
    """Eq. 3 of each entry's window along one axis, infinite for first tokens and the ragged tail: [..., t, y, x, d]."""
    video = video_grid(x, grid)
    threshold = torch.full_like(video, float("inf"))
    later = _windows(threshold, axis, window).narrow(dim_of(axis), 1, window - 1)
    later.copy_(window_deviation(x, grid, axis, window).unsqueeze(dim_of(axis)))
    return threshold


def video_grid(x: Tensor, grid: TokenGrid) -> Tensor:
    """Video tokens [..., t, y, x, d], at least float32."""
    x = x[..., grid.video, :]
    return grid.unflatten(x.to(torch.promote_types(x.dtype, torch.float32)))


def _windows(video: Tensor, axis: str, window: int) -> Tensor:
    """View of whole windows: the axis of [..., t, y, x, d] becomes (windows, window), without the ragged tail.

    The position inside the window then has the number, from the end, that the axis had.
    """
    dim = dim_of(axis)
    windows = video.shape[dim] // window
    return video.narrow(dim, 0, windows * window).unflatten(dim, (windows, window))


def dim_of(axis: str) -> int:
    """Dimension of an axis in [..., t, y, x, d], counted from the end."""
    return AXES.index(axis) - 4
