"""Compact Attention's patterns (arXiv 2508.12969): which key windows a tile of queries sees depends on where they lie
from it, alike for all tiles of a head: local, cross-shaped or global, and narrower the farther the frame.

Compact Attention finds the patterns by a search beforehand; here they follow, whenever a step is planned, from the mean
attention of a head at every offset.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import Device, TokenGrid
from timeripple.attention.plans.tile import TileCurve, window_probability, window_shape
from timeripple.baselines.skip import SkipConfig, block_places, least_first


@dataclass(frozen=True)
class CompactConfig(SkipConfig):
    """theta is the mean attention probability that a tile may miss."""

    name = "compact"

    def measure(self, call: AttentionCall) -> TileCurve:
        """Windows go by the mean probability at their offset from the tile."""
        probability = window_probability(call, self)
        offset = offsets(call.grid, self, call.device)
        number = int(offset.max()) + 1
        heads = len(probability)
        total = probability.new_zeros(heads, number).index_add_(1, offset.flatten(), probability.flatten(1))
        mean = total / torch.bincount(offset.flatten(), minlength=number)
        return least_first(mean[:, offset], call, self)


def offsets(grid: TokenGrid, config: ReuseConfig, device: Device) -> Tensor:
    """The offset of a window from a tile, numbered: int64 [tiles, windows]; equal offsets have equal numbers."""
    tile, _ = block_places(grid, config.query_tile, device)
    window, _ = block_places(grid, window_shape(config), device)
    between = (window - tile[:, None]).long()
    return between.flatten(0, 1).unique(dim=0, return_inverse=True)[1].view(between.shape[:2])
