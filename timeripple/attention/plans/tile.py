"""Tile reuse: key windows that matter little to a tile of queries are reused through one representative each."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.grid import AXES, TokenGrid
from timeripple.attention.method import Granularity, ReuseSettings
from timeripple.attention.plans.curve import WINDOW, Staircase, batch_mean
from timeripple.attention.torch_backend import attend_rows, dense_attention


@dataclass(frozen=True)
class Tiling:
    """How the calls of one grid are dealt into tiles of queries and windows of keys.

    tile, window: [video_tokens] where a query, a key belongs; tile_sizes [tiles], window_sizes [windows] in tokens;
    tile_tokens: of the largest tile, known without asking the device. Text queries compute everything and text keys
    are always computed. skip: windows that are not computed are left out, without a representative; no reuse, but what
    it is compared to.
    """

    tile: Tensor
    tile_sizes: Tensor
    window: Tensor
    window_sizes: Tensor
    tile_tokens: int
    grid: TokenGrid
    batch: int
    skip: bool

    @classmethod
    def of(cls, call: AttentionCall, settings: ReuseSettings, skip: bool = False) -> Tiling:
        grid, device = call.grid, call.device
        tiles, windows = grid.block_index(settings.query_tile, device), grid.block_index(window_shape(settings), device)
        tile_tokens = math.prod(map(min, settings.query_tile, grid.shape))
        return cls(*tiles, *windows, tile_tokens, grid, call.batch, skip)

    def saving_of(self, pairs: Tensor) -> Tensor:
        """1 - rows visited / rows, per head, mean over the batch, from the (query, key) pairs inside computed windows,
        [heads, ...].

        A tile visits text rows, the keys of the windows it computes and the representatives of all windows, since
        a pass over representatives covers all of them; so reusing nothing saves -1/8, not 0.
        """
        text = self.grid.tokens - self.grid.video_tokens
        representatives = 0 if self.skip else len(self.window_sizes)
        visited = pairs + self.grid.video_tokens * (representatives + text) + text * self.grid.tokens
        return batch_mean(1 - visited / self.grid.tokens**2, self.batch)


@dataclass(frozen=True)
class TilePlan(Tiling):
    """For every tile of queries, the key windows to compute: bool [heads, tiles, windows]. The others are reused by one
    representative."""

    computed: Tensor

    @property
    def saving(self) -> Tensor:
        """[heads], see `Tiling.saving_of`."""
        return self.saving_of(self.computed.double() @ self.window_sizes.double() @ self.tile_sizes.double())

    @property
    def tokens(self) -> int:
        return self.grid.tokens

    @property
    def nbytes(self) -> int:
        return self.computed.nbytes + self.tile.nbytes + self.window.nbytes

    @cached_property
    def window_table(self) -> Tensor:
        """int32 [windows, 8], the tokens of every window, -1 where it has fewer; looked up once."""
        order = (self.window.argsort(stable=True) + self.grid.text_before).int()
        places = (self.window_sizes.cumsum(0) - self.window_sizes)[:, None] + torch.arange(WINDOW, device=order.device)
        is_there = torch.arange(WINDOW, device=order.device) < self.window_sizes[:, None]
        return torch.where(is_there, order[places.clamp(max=len(order) - 1)], -1)

    def carry_out(self, call: AttentionCall) -> Tensor:
        """Each query tile attends to text keys, the keys of its computed windows and one representative of each other.

        A representative is the mean key, with log(window size) added to its logit, and the mean value. A plan
        that skips leaves the reused windows out instead; every tile must then compute a window.
        """
        grid, (batch, heads, _, head_dim) = self.grid, call.query.shape
        text = grid.text(call.device)
        pairs = torch.cat([call.key, call.value], dim=-1).flatten(0, 1)  # keys and their values are gathered together
        table = self.window_table
        dtype = torch.promote_types(call.key.dtype, torch.float32)
        sizes, empty = self.window_sizes.to(dtype), table < 0
        fine = pairs[:, table.clamp(min=0)]
        coarse = (fine.to(dtype).masked_fill_(empty[..., None], 0).sum(2) / sizes[:, None]).to(call.key.dtype)
        fine = fine.flatten(2)
        fine_bias = torch.zeros_like(empty, dtype=dtype).masked_fill_(empty, float("-inf"))
        coarse_bias = sizes.log()
        text_pairs, text_bias = pairs[:, text], fine_bias.new_zeros(batch, len(text))
        if call.key_mask is not None:
            text_bias.masked_fill_(~call.key_mask[:, text], float("-inf"))
        computed_first = self.computed.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices
        counts = self.computed.sum(-1).tolist()
        tiles = (self.tile.argsort(stable=True) + grid.text_before).split(self.tile_sizes.tolist())

        flat_query = call.query.flatten(0, 1)
        output = torch.empty_like(flat_query)
        for head, tile in product(range(batch * heads), range(len(tiles))):
            count = counts[head][tile]
            chosen, others = computed_first[head, tile, :count], computed_first[head, tile, count:]
            parts = [(text_pairs[head], text_bias[head // heads]), (fine[head, chosen], fine_bias[chosen])]
            if not self.skip:
                parts.append((coarse[head, others], coarse_bias[others]))
            rows = torch.cat([part.view(-1, 2 * head_dim) for part, _ in parts])
            bias = torch.cat([part.flatten() for _, part in parts])
            key_rows, value_rows = rows.split(head_dim, dim=-1)
            output[head, tiles[tile]] = attend_rows(
                flat_query[head, tiles[tile]], key_rows, value_rows, bias, call.scale
            )
        output = output.view(call.query.shape)
        if len(text):
            output[:, :, text] = dense_attention(call, queries=text)
        return output


@dataclass(frozen=True)
class TileCurve(Tiling):
    """Saving of tile reuse as a function of the threshold.

    thresholds: [heads, tiles, windows]: the summed error of all windows that are reused before or with this one.
    """

    thresholds: Tensor

    @cached_property
    def reused(self) -> Staircase:
        """(query, key) pairs in reused windows per head, as a function of the threshold."""
        pairs = (self.tile_sizes[:, None] * self.window_sizes).flatten()
        return Staircase.build(self.thresholds.flatten(1), pairs)

    def saving(self, theta: float | Tensor) -> Tensor:
        """[heads] savings for a number, [heads, n] for n thresholds; mean over the batch."""
        return self.saving_of(self.grid.video_tokens**2 - self.reused(theta))

    @property
    def highest(self) -> Tensor:
        return self.reused.highest

    def plan(self, call: AttentionCall, theta: float | Tensor) -> TilePlan:
        tiling = {part.name: getattr(self, part.name) for part in fields(Tiling)}
        return TilePlan(**tiling, computed=self.thresholds >= theta)


def window_probability(call: AttentionCall, settings: ReuseSettings) -> Tensor:
    """Estimated attention of every query tile to every key window, from their means: [batch * heads, tiles, windows].

    The softmax runs over windows (mean key, log of the size added) and text keys; text takes the rest of the sum.
    """
    grid, scale = call.grid, call.logit_scale
    tile, tile_sizes = grid.block_index(settings.query_tile, call.device)
    window, window_sizes = grid.block_index(window_shape(settings), call.device)
    mean_query = block_mean(call.video_query, tile, tile_sizes)
    mean_key = block_mean(call.video_key, window, window_sizes)
    logits = scale * mean_query @ mean_key.mT + window_sizes.to(mean_key.dtype).log()
    text = grid.text(call.device)
    text_logits = scale * mean_query @ call.key[:, :, text].flatten(0, 1).to(mean_key.dtype).mT
    if call.key_mask is not None:
        seen = call.key_mask[:, text].repeat_interleave(call.heads, dim=0)[:, None]
        text_logits = text_logits.masked_fill(~seen, float("-inf"))
    return torch.cat([logits, text_logits], dim=-1).softmax(-1)[..., : len(window_sizes)]


def measure(call: AttentionCall, settings: ReuseSettings) -> TileCurve:
    """Predicted error of reuse, e(T, w) = p(T, w) * sqrt(sum_c mean_T(q_c^2) var_w(k_c)) * scale, summed from the
    smallest: reusing the windows whose sum is below theta computes the fewest that leave an error below theta."""
    tiling = Tiling.of(call, settings)
    tile, tile_sizes, window, window_sizes = tiling.tile, tiling.tile_sizes, tiling.window, tiling.window_sizes
    keys = call.video_key
    centred = keys - block_mean(keys, window, window_sizes)[:, window]
    variance = block_mean(centred.square(), window, window_sizes)
    squared = call.logit_scale**2 * block_mean(call.video_query.square(), tile, tile_sizes) @ variance.mT
    error = window_probability(call, settings) * squared.sqrt()
    error, order = error.sort(dim=-1)
    thresholds = torch.empty_like(error).scatter_(-1, order, error.cumsum(-1))
    return TileCurve(**vars(tiling), thresholds=thresholds)


TILE = Granularity(
    name="tile",
    kind="realised",
    measure=measure,
    ceiling=lambda kept: 1 - kept,
    comfort=0.915,
    comfort_with_feedback=0.915,
)


def window_shape(settings: ReuseSettings) -> tuple[int, int, int]:
    """(t, y, x) tokens of a window: two along the axes of reuse."""
    t, y, x = (2 if axis in settings.axes else 1 for axis in AXES)
    return t, y, x


def block_mean(x: Tensor, index: Tensor, sizes: Tensor) -> Tensor:
    """Mean of the tokens of each block: [heads, video_tokens, d] -> [heads, blocks, d]."""
    total = x.new_zeros(len(x), len(sizes), x.shape[-1]).index_add_(1, index, x)
    return total / sizes[:, None]
