"""Grids and settings on which everything that computes reuse must agree with reference.py."""

from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid

GRIDS = [TokenGrid(4, 4, 4), TokenGrid(3, 5, 2), TokenGrid(2, 3, 3, 3, 2), TokenGrid(1, 4, 3, 0, 4)]
CONFIGS = [
    ReuseConfig("token", theta=0.2),
    ReuseConfig("token", theta=0.2, metric="rms", axes="ty"),
    ReuseConfig("tile", theta=0.1, query_tile=(2, 2, 2)),
    ReuseConfig("tile", theta=0.1, axes="yx", query_tile=(4, 8, 8)),
    ReuseConfig("channel", theta=0.3),
]
