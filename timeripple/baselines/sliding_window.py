"""Attention within a 3-D window around every tile of queries, as Sliding Tile Attention (STA, arXiv 2502.04507) and the
first stage of arXiv 2510.03926 have it: a box of frames, rows and columns, in the proportions of the grid.

As many windows of keys are kept for every tile, so the box moves inwards at the borders, as STA's does. STA searches a
box for every head beforehand; here all heads have the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from timeripple.attention.call import AttentionCall
from timeripple.attention.plans.tile import TileCurve, window_shape
from timeripple.baselines.skip import SkipConfig, block_places, centres_apart, nearest_last


@dataclass(frozen=True)
class SlidingWindowConfig(SkipConfig):
    """STA without training: the first 30 % of the steps (15 of 50) are dense; theta is a share of the windows."""

    dense_first: float | str = 0.3
    dense_last: int | str = 0
    ramp: float | str = 0.0
    name = "sliding-window"

    def measure(self, call: AttentionCall) -> TileCurve:
        """Windows go by how far they are along the axis on which they are farthest, in shares of the grid."""
        blocks = self.query_tile, window_shape(self)
        apart = centres_apart(*(block_places(call.grid, block, call.device) for block in blocks))
        distance = (apart / apart.new_tensor(call.grid.shape)).amax(-1)
        return nearest_last(distance.expand(call.batch * call.heads, -1, -1), call, self)
