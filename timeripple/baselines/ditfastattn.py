"""DiTFastAttn's window attention with residual sharing (arXiv 2406.08552): a token attends to its neighbours in the
sequence, and what that lacks is measured at some steps and added at the steps between.

Its other parts, sharing outputs between steps and between guidance passes by a plan searched for every model, are left
out: `pab` is the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.plans.tile import TileCurve, window_shape
from timeripple.baselines.skip import SkipConfig, block_places, nearest_last


@dataclass(frozen=True)
class DitFastAttnConfig(SkipConfig):
    """The residual is kept as it is, as DiTFastAttn does; the schedule is that of our feedback."""

    refresh: int | str | None = "auto"
    extrapolate: bool = False
    name = "ditfastattn"

    def measure(self, call: AttentionCall) -> TileCurve:
        """Windows go by their distance in the sequence; thresholds are shares of them."""
        grid = call.grid

        def middles(block: tuple[int, int, int]) -> Tensor:
            first, last = block_places(grid, block, call.device)
            return (first + last) / 2 @ first.new_tensor([grid.height * grid.width, grid.width, 1])

        distance = (middles(self.query_tile)[:, None] - middles(window_shape(self))).abs()
        return nearest_last(distance.expand(call.batch * call.heads, -1, -1), call, self)
