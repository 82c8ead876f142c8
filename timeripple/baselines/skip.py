"""Skipping key windows that matter little, as sparse attention does.

Block selection from mean queries and keys is SpargeAttention's (arXiv 2502.18137). Everything but the selection and the
fate of the windows not chosen is our tile reuse: same tiles, same schedule, same account. Other masks (`svg`,
`compact`, `ditfastattn`, `rettention`) are configs of the same kind with a `measure` of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from timeripple.attention import ReuseRun
from timeripple.attention.plan import TileCurve, tile_layout, window_probability
from timeripple.baselines.settings import as_reuse
from timeripple.config import ReuseConfig
from timeripple.grid import TokenGrid

SETTINGS = ("budget", "theta", "refresh", "extrapolate", "dense_first", "dense_last", "ramp", "theta_min", "query_tile")


def measure(
    query: Tensor,
    key: Tensor,
    grid: TokenGrid,
    config: ReuseConfig,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> TileCurve:
    """`attention.plan.measure` for skipping: windows go by their estimated probability, the smallest first.

    A window's threshold is the probability missed once it goes too; a tile's most probable window never goes.
    """
    return least_first(
        window_probability(query, key, grid, config, scale=scale, key_mask=key_mask), query, grid, config
    )


@dataclass(frozen=True)
class SkipConfig(ReuseConfig):
    """Settings of tile reuse, for skipping; theta is the attention probability a tile of queries may miss."""

    granularity: str = "tile"
    refresh: int | str | None = None
    name = "skip"
    measure = staticmethod(measure)

    @property
    def ceiling(self) -> float:
        """There are no representatives to visit, and a tile keeps one window of many."""
        return 1.0

    @property
    def label(self) -> str:
        return self.name + super().label.removeprefix(self.granularity)

    def start(self, num_inference_steps: int) -> ReuseRun:
        return ReuseRun(self, num_inference_steps, measure=self.measure)

    @classmethod
    def parse(cls, text: str) -> SkipConfig:
        """Reads `name[:budget][:key=value...]`, e.g. "skip:0.7:refresh=5"; refresh is off unless given."""
        return super().parse(as_reuse("tile", text, SETTINGS))


def least_first(worth: Tensor, query: Tensor, grid: TokenGrid, config: ReuseConfig) -> TileCurve:
    """The curve of skipping windows in the order of what they are worth, [heads, tiles, windows]: a window's threshold
    is the sum up to it, and a tile's best window never goes."""
    worth, order = worth.sort(dim=-1)
    missed = worth.cumsum(-1)
    missed[..., -1] = math.inf
    layout = tile_layout(grid, config, query.device)
    return TileCurve(missed.gather(-1, order.argsort(-1)), *layout, grid, len(query), skip=True)


def nearest_last(distance: Tensor, query: Tensor, grid: TokenGrid, config: ReuseConfig) -> TileCurve:
    """The curve of skipping windows by their distance, [heads, tiles, windows], the farthest first, as many for every
    tile: thresholds are shares of the windows. A tile's nearest window never goes."""
    rank = distance.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    thresholds = (rank + 0.5) / distance.shape[-1]
    thresholds[rank == distance.shape[-1] - 1] = math.inf
    return TileCurve(thresholds, *tile_layout(grid, config, query.device), grid, len(query), skip=True)


def block_places(grid: TokenGrid, block: tuple[int, int, int], device) -> tuple[Tensor, Tensor]:
    """Where the blocks of a grid begin and end, first and last token, float [blocks, 3] each in t, y, x."""
    starts = [torch.arange(0, size, step, device=device) for size, step in zip(grid.shape, block, strict=True)]
    first = torch.cartesian_prod(*starts).view(-1, 3)
    last = first + torch.tensor(block, device=device) - 1
    return first.float(), torch.minimum(last, torch.tensor(grid.shape, device=device) - 1).float()
