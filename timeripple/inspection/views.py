"""What is shown of an `Inspection`, as numbers: a view is computed once and kept, so that a page may ask again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import AXES
from timeripple.attention.method import Plan
from timeripple.attention.similarity import reuse_mask
from timeripple.inspection import attention_maps as maps
from timeripple.inspection.correlations import correlation_table, deviation_table, strongest
from timeripple.inspection.probe import Inspection

LAGS, WINDOWS = (1, 2, 3, 4), (2, 4, 8)
SIDES = ("query", "key")
WINDOW = 2  # of channel reuse, as in the paper
CELLS, QUERIES = 256, 8  # along a side of a map, and of a cell those that are computed


@lru_cache(32)
def channel_tables(seen: Inspection, step: int, side: str, correlation: bool) -> tuple[list[tuple[str, int]], Tensor]:
    """Columns (axis, distance), and the correlation at several lags, or the deviation of Eq. 3 for several windows, of
    every channel: [layers, heads, d, columns]. side: "query" or "key"."""
    tables = []
    for layer in range(len(seen.layers)):
        x = seen.qkv(step, layer)[SIDES.index(side)]
        columns, values = (
            correlation_table(x, seen.grid, LAGS) if correlation else deviation_table(x, seen.grid, WINDOWS)
        )
        tables.append(values)
    return columns, torch.stack(tables)


def strongest_effect(seen: Inspection, step: int, side: str = "query") -> tuple[int, int, int]:
    """Layer, head and channel, see `correlations.strongest`."""
    return strongest(channel_tables(seen, step, side, True)[1])


def channel_planes(seen: Inspection, step: int, layer: int, head: int, side: str, channel: int) -> np.ndarray:
    """One channel on the video tokens, [t, y, x]."""
    x = seen.qkv(step, layer, head)[SIDES.index(side)][seen.grid.video, channel]
    return seen.grid.unflatten(x[:, None])[..., 0].numpy()


def channel_reused(seen: Inspection, step: int, layer: int, head: int, side: str, channel: int, theta: float) -> float:
    """Share of the entries of a channel that channel reuse takes from a neighbour at this threshold."""
    x = seen.qkv(step, layer, head)[SIDES.index(side)][:, channel, None]
    return reuse_mask(x, seen.grid, theta, AXES, WINDOW).float().mean().item()


@lru_cache(16)
def frame_maps(seen: Inspection, step: int) -> Tensor:
    """Attention from frame to frame of every head, [layers, heads, frames, frames], see `attention_maps.frame_map`."""
    layers = (seen.qkv(step, layer)[:2] for layer in range(len(seen.layers)))
    return torch.stack([maps.frame_map(query, key, seen.grid) for query, key in layers])


@lru_cache(16)
def scores(seen: Inspection, step: int) -> list[list[tuple[float, float, float]]]:
    """spatial, temporal and entropy of every head by layer, see `attention_maps.head_scores`."""
    rows = []
    for layer in range(len(seen.layers)):
        query, key, _ = seen.qkv(step, layer)
        found = maps.head_scores(query, key, seen.grid)
        rows.append(list(zip(*(found[name].tolist() for name in ("spatial", "temporal", "entropy")), strict=True)))
    return rows


@lru_cache(64)
def plan(seen: Inspection, step: int, layer: int, head: int, config: ReuseConfig) -> Plan:
    query, key, _ = seen.qkv(step, layer, slice(head, head + 1))
    return maps.plan_at(query, key, seen.grid, config)


@dataclass(frozen=True)
class TokenView:
    """What one token attends to, shares of its attention on the video tokens, [t, y, x] each.

    sharing: how many keys share the one that stands for each, 1 where it is computed; own: share of dense attention in
    the token's own frame; computed: share of keys; moved: share of the attention that reuse moves elsewhere.
    """

    dense: np.ndarray
    reuse: np.ndarray
    sharing: np.ndarray
    own: float
    computed: float
    moved: float


@lru_cache(256)
def token_view(
    seen: Inspection, step: int, layer: int, head: int, place: tuple[int, int, int], config: ReuseConfig
) -> TokenView:
    """place: (t, y, x) of the token; config: how much of this call is saved, and how."""
    grid = seen.grid
    t, y, x = place
    token = grid.text_before + (t * grid.height + y) * grid.width + x
    query, key, _ = seen.qkv(step, layer, slice(head, head + 1))
    dense = maps.attention_row(query, key, token)
    reused, sharing = maps.reused_row(query, key, token, plan(seen, step, layer, head, config))
    planes = [grid.unflatten(row[0, grid.video, None])[..., 0].numpy() for row in (dense, reused, sharing)]
    return TokenView(
        dense=planes[0],
        reuse=planes[1],
        sharing=planes[2],
        own=planes[0][t].sum().item(),
        computed=(sharing[:, grid.video] == 1).float().mean().item(),
        moved=0.5 * (reused - dense).abs().sum(-1).mean().item(),
    )


@lru_cache(64)
def attention_map(
    seen: Inspection, step: int, layer: int, head: int | None, query_frame: int | None, key_frame: int | None
) -> np.ndarray:
    """The map of a head, or the mean of all with None, over `CELLS` cells a side, of which `QUERIES` queries at
    most are computed; see `attention_maps.averaged_map`."""
    query, key, _ = seen.qkv(step, layer) if head is None else seen.qkv(step, layer, slice(head, head + 1))
    cells = [
        maps.averaged_map(q, k, seen.grid, CELLS, query_frame, key_frame, QUERIES)
        for q, k in zip(query, key, strict=True)
    ]
    return torch.stack([each[0] for each in cells]).mean(0).numpy()


def warm(seen: Inspection, step: int) -> None:
    """Computes what every pick at a step needs."""
    for side in SIDES:
        channel_tables(seen, step, side, True)
    frame_maps(seen, step)
