"""Sparse VideoGen's masks (SVG, arXiv 2502.01776): a head attends to near frames, or to near places in all frames.

Both are bands in an order of the tokens, frame by frame or place by place, and every token also sees the first frame.
Which band suits a head is decided anew for every call, from a few sampled queries. Here bands end at the borders of
windows and tiles, and a head takes the band that keeps more of the sampled queries' attention, where SVG compares the
errors of their outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.config import DEFAULT_BUDGET, ReuseConfig
from timeripple.attention.grid import Device, TokenGrid
from timeripple.attention.plans.tile import TileCurve, window_shape
from timeripple.baselines.skip import SkipConfig, block_places, centres_apart, nearest_last

SAMPLES = 64  # queries, as in SVG


def nearest_by_head(call: AttentionCall, config: SvgConfig) -> TileCurve:
    """The curve of the band that suits each head; thresholds are shares of the windows that are skipped."""
    grid, query, key = call.grid, call.query, call.key
    spatial, temporal = distances(grid, config, call.device)
    chosen = torch.randperm(grid.video_tokens, generator=torch.Generator().manual_seed(0))[:SAMPLES].to(query.device)
    logits = call.logit_scale * (query[:, :, grid.text_before + chosen].float() @ key.float().mT)
    if call.key_mask is not None:
        logits = logits.masked_fill(~call.key_mask[:, None, None], float("-inf"))
    window, sizes = grid.block_index(window_shape(config), query.device)
    attention = logits.softmax(-1)[..., grid.video].flatten(0, 1)
    attention = attention.new_zeros(*attention.shape[:2], len(sizes)).index_add_(2, window, attention)
    tile = grid.block_index(config.query_tile, query.device)[0][chosen]
    skipped = round((config.budget or DEFAULT_BUDGET) * len(sizes))

    def kept(distance: Tensor) -> Tensor:
        near = distance.argsort(dim=-1, descending=True, stable=True)[:, skipped:]
        return attention.gather(-1, near[tile].expand(len(attention), -1, -1)).sum((1, 2))

    is_spatial = kept(spatial) >= kept(temporal)
    return nearest_last(torch.where(is_spatial[:, None, None], spatial, temporal), call, config)


@dataclass(frozen=True)
class SvgConfig(SkipConfig):
    """SVG's settings for Wan: a quarter of the attention is kept, and the first 30 % of the steps are dense."""

    dense_first: float | str = 0.3
    dense_last: int | str = 0
    ramp: float | str = 0.0
    name = "svg"

    def measure(self, call: AttentionCall) -> TileCurve:
        return nearest_by_head(call, self)


def distances(grid: TokenGrid, config: ReuseConfig, device: Device) -> tuple[Tensor, Tensor]:
    """How far key windows are from query tiles in frames and in places, [tiles, windows] each; windows at the same
    distance go by the other one. The first frame is nearest to all."""
    tiles, windows = (block_places(grid, block, device) for block in (config.query_tile, window_shape(config)))
    gap = torch.maximum(windows[0] - tiles[1][:, None], tiles[0][:, None] - windows[1]).clamp(min=0)
    centre = centres_apart(tiles, windows)
    frames, places = gap[..., 0], gap[..., 1:].amax(-1)
    others = centre[..., 1:].amax(-1), centre[..., 0]
    spatial, temporal = (near + other / 1e4 for near, other in zip((frames, places), others, strict=True))
    sink = (windows[0][:, 0] == 0).expand_as(spatial)
    return spatial.masked_fill(sink, -1.0), temporal.masked_fill(sink, -1.0)
