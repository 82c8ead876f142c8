"""DiTFastAttn's window attention with residual sharing (arXiv 2406.08552): a token attends to its neighbours in the
sequence, and what that lacks is measured at some steps and added at the steps between.

Its other parts, sharing outputs between steps and between guidance passes by a plan searched for every model, are left
out: `pab` is the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from timeripple.attention.plan import TileCurve, window_shape
from timeripple.baselines.skip import SkipConfig, block_places, nearest_last
from timeripple.config import ReuseConfig
from timeripple.grid import TokenGrid


def measure(
    query: Tensor,
    key: Tensor,
    grid: TokenGrid,
    config: ReuseConfig,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> TileCurve:
    """`attention.plan.measure`: windows go by their distance in the sequence; thresholds are shares of them."""

    def middles(block: tuple[int, int, int]) -> Tensor:
        first, last = block_places(grid, block, query.device)
        return (first + last) / 2 @ first.new_tensor([grid.height * grid.width, grid.width, 1])

    distance = (middles(config.query_tile)[:, None] - middles(window_shape(config))).abs()
    return nearest_last(distance.expand(len(query) * query.shape[1], -1, -1), query, grid, config)


@dataclass(frozen=True)
class DitFastAttnConfig(SkipConfig):
    """The residual is kept as it is, as DiTFastAttn does; the schedule is that of our feedback."""

    refresh: int | str | None = "auto"
    extrapolate: bool = False
    name = "ditfastattn"
    measure = staticmethod(measure)
