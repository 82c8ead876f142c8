"""Skipping key windows that matter little, as sparse attention does.

Block selection from mean queries and keys is SpargeAttention's (arXiv 2502.18137). Everything but the selection and the
fate of the windows not chosen is our tile reuse: same tiles, same schedule, same account. Other masks (`svg`,
`compact`, `ditfastattn`, `rettention`) are configs of the same kind that measure otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import Device, TokenGrid
from timeripple.attention.method import Curve, ReuseSettings
from timeripple.attention.plans.tile import TileCurve, Tiling, window_probability
from timeripple.baselines.settings import as_reuse

SETTINGS = ("budget", "theta", "refresh", "extrapolate", "dense_first", "dense_last", "ramp", "theta_min", "query_tile")


@dataclass(frozen=True)
class SkipConfig(ReuseConfig):
    """Settings of tile reuse, for skipping; theta is the attention probability a tile of queries may miss."""

    granularity: str = "tile"
    refresh: int | str | None = None
    name = "skip"

    def measure(self, call: AttentionCall) -> Curve:
        """Windows go by their estimated probability, the smallest first.

        A window's threshold is the probability missed once it goes too; a tile's most probable window never goes.
        """
        return least_first(window_probability(call, self), call, self)

    @property
    def ceiling(self) -> float:
        """There are no representatives to visit, and a tile keeps one window of many."""
        return 1.0

    @property
    def label(self) -> str:
        return self.name + super().label.removeprefix(self.granularity)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `name[:budget][:key=value...]`, e.g. "skip:0.7:refresh=5"; refresh is off unless given."""
        return super().parse(as_reuse("tile", text, SETTINGS))


def least_first(worth: Tensor, call: AttentionCall, settings: ReuseSettings) -> TileCurve:
    """The curve of skipping windows in the order of what they are worth, [heads, tiles, windows]: a window's threshold
    is the sum up to it, and a tile's best window never goes."""
    worth, order = worth.sort(dim=-1)
    missed = worth.cumsum(-1)
    missed[..., -1] = math.inf
    return _skipping(missed.gather(-1, order.argsort(-1)), call, settings)


def nearest_last(distance: Tensor, call: AttentionCall, settings: ReuseSettings) -> TileCurve:
    """The curve of skipping windows by their distance, [heads, tiles, windows], the farthest first, as many for every
    tile: thresholds are shares of the windows. A tile's nearest window never goes."""
    rank = distance.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    thresholds = (rank + 0.5) / distance.shape[-1]
    thresholds[rank == distance.shape[-1] - 1] = math.inf
    return _skipping(thresholds, call, settings)


def _skipping(thresholds: Tensor, call: AttentionCall, settings: ReuseSettings) -> TileCurve:
    return TileCurve(**vars(Tiling.of(call, settings, skip=True)), thresholds=thresholds)


Places = tuple[Tensor, Tensor]  # first and last token of blocks, [blocks, 3] each in t, y, x


def block_places(grid: TokenGrid, block: tuple[int, int, int], device: Device) -> Places:
    """Where the blocks of a grid begin and end, first and last token, float [blocks, 3] each in t, y, x."""
    starts = [torch.arange(0, size, step, device=device) for size, step in zip(grid.shape, block, strict=True)]
    first = torch.cartesian_prod(*starts).view(-1, 3)
    last = first + torch.tensor(block, device=device) - 1
    return first.float(), torch.minimum(last, torch.tensor(grid.shape, device=device) - 1).float()


def centres_apart(tiles: Places, windows: Places) -> Tensor:
    """How far the centres of windows are from those of tiles, [tiles, windows, 3] in tokens along t, y, x."""
    return ((windows[0] + windows[1]) - (tiles[0] + tiles[1])[:, None]).abs() / 2
