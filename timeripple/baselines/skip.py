"""Skipping key windows that matter little, as sparse attention does.

Block selection from mean queries and keys is SpargeAttention's (arXiv 2502.18137); leaving out what a head attends to
little is common to it and Sparse VideoGen (arXiv 2502.01776). Everything but the selection and the fate of the windows
not chosen is our tile reuse: same tiles, same schedule, same account. With `refresh` the error is measured and given
back on the steps between, as DiTFastAttn (NeurIPS 2024) does for window attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from timeripple.attention import ReuseRun
from timeripple.attention.plan import TileCurve, tile_layout, window_probability
from timeripple.config import ConfigError, ReuseConfig
from timeripple.grid import TokenGrid

SETTINGS = ("budget", "theta", "refresh", "dense_first", "dense_last", "ramp", "theta_min", "query_tile")


@dataclass(frozen=True)
class SkipConfig(ReuseConfig):
    """Settings of tile reuse, for skipping; theta is the attention probability a tile of queries may miss."""

    granularity: str = "tile"
    refresh: int | str | None = None

    @property
    def ceiling(self) -> float:
        """There are no representatives to visit, and a tile keeps one window of many."""
        return 1.0

    @property
    def label(self) -> str:
        return "skip" + super().label.removeprefix(self.granularity)

    def start(self, num_inference_steps: int) -> ReuseRun:
        return ReuseRun(self, num_inference_steps, measure=measure)

    @classmethod
    def parse(cls, text: str) -> SkipConfig:
        """Reads `skip[:budget][:key=value...]`, e.g. "skip:0.7:refresh=5"; refresh is off unless given."""
        settings = text.strip().split(":")[1:]
        for name in (part.split("=")[0] for part in settings if "=" in part):
            if name not in SETTINGS:
                raise ConfigError(f"setting {name!r} in {text!r} is unknown; choose from {', '.join(SETTINGS)}.")
        return super().parse(":".join(("tile", *settings)))


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
    probability = window_probability(query, key, grid, config, scale=scale, key_mask=key_mask)
    probability, order = probability.sort(dim=-1)
    missed = probability.cumsum(-1)
    missed[..., -1] = math.inf
    layout = tile_layout(grid, config, query.device)
    return TileCurve(missed.gather(-1, order.argsort(-1)), *layout, grid, len(query), skip=True)
