"""Which rows stand for which tokens, and what that saves: the one definition of savings.

Everything happens in two stages. `measure` looks at query and key once and returns a curve, which knows the saving at
every threshold (`curve.saving(theta)`) and builds the plan at one of them (`curve.plan(query, key, theta)`). A backend
carries a plan out. Thresholds are strict: nothing has a deviation below 0, so theta 0 reuses nothing.

The paper (arXiv 2511.12035) reuses single (token, channel) entries: `ChannelCurve`. Where neighbours agree in all
channels of a head, reuse is algebra on whole rows: |G| identical key rows are one row with log|G| added to its
logits and the mean of the values, and identical query rows have one output: `TokenCurve`. `TileCurve` decides per
tile of queries which key windows are computed and which are reused through one representative.

Heads of all batch entries are planned at once and independently, as `heads` = batch * heads rows of every tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from timeripple.config import ReuseConfig
from timeripple.grid import AXES, TokenGrid
from timeripple.similarity import reuse_threshold, snap

# Positions in a 2 x 2 x 2 window, and subsets of the axes, are three bits: t, y, x from high to low.
AXIS_BIT = {"t": 4, "y": 2, "x": 1}
HAAR = torch.tensor([[(-1.0) ** (row & position).bit_count() for position in range(8)] for row in range(8)])
WINDOW = 8  # tokens of a 2 x 2 x 2 window
CHANNEL_SAMPLES = 2048  # tokens per channel from which the channel curve is estimated


def measure(
    query: Tensor,
    key: Tensor,
    grid: TokenGrid,
    config: ReuseConfig,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    deviations: Callable[..., tuple[Tensor, Tensor]] | None = None,
) -> TokenCurve | TileCurve | ChannelCurve:
    """The saving of one attention call as a function of the threshold.

    query, key: [batch, heads, tokens, d]; scale: of the logits, 1/sqrt(d) by default; key_mask: bool [batch, tokens],
    False for text keys that no query sees; deviations: replaces `window_deviations`.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if config.granularity == "token":
        return _measure_token(query, key, grid, config, scale, deviations or window_deviations)
    if config.granularity == "tile":
        return _measure_tile(query, key, grid, config, scale, key_mask)
    return _measure_channel(query, key, grid, config)


def theta_for_saving(curves: Sequence[TokenCurve | TileCurve | ChannelCurve], target: float) -> Tensor:
    """The smallest threshold, to 1e-7 of the largest, at which the mean saving over all heads and curves is `target`.

    float64 without dimensions, on the device of the curves, which is not waited for. 0 for a target of 0 or less; the
    threshold at which everything is reused when the target cannot be reached.
    """
    high = 1.001 * torch.stack([curve.highest for curve in curves]).max().double()
    low = torch.zeros_like(high)
    if target <= 0:
        return low
    fractions = torch.linspace(0, 1, 65, dtype=torch.float64, device=high.device)
    for _ in range(4):  # bisection, 64 ways at a time
        thetas = torch.lerp(low, high, fractions)
        saving = torch.stack([curve.saving(thetas).mean(0) for curve in curves]).mean(0)
        index = (saving < target).sum().clamp(1, 64)
        low, high = thetas.gather(0, torch.stack([index - 1, index]))
    return high


@dataclass(frozen=True)
class Staircase:
    """For each of many rows, the sum of the gains whose threshold is below theta.

    thresholds: [rows, steps], rising; sums: [rows, steps + 1].
    """

    thresholds: Tensor
    sums: Tensor

    @classmethod
    def build(cls, thresholds: Tensor, gains: Tensor) -> Staircase:
        thresholds, order = thresholds.sort(dim=-1)
        sums = gains.double().expand(order.shape).gather(-1, order).cumsum(-1)
        return cls(thresholds, torch.nn.functional.pad(sums, (1, 0)))

    def __call__(self, theta: float | Tensor) -> Tensor:
        """[rows] for a number, [rows, n] for n thresholds."""
        theta = torch.as_tensor(theta, dtype=self.thresholds.dtype, device=self.thresholds.device)
        values = theta.expand(len(self.thresholds), *theta.shape or (1,)).contiguous()
        below = torch.searchsorted(self.thresholds, values)
        return self.sums.gather(1, below).view(-1, *theta.shape)

    @property
    def highest(self) -> Tensor:
        """The largest finite threshold, without dimensions."""
        return self.thresholds.where(self.thresholds.isfinite(), 0.0).max()


# --- token -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """The rows of one side of attention, numbered from 0 in every head.

    owner: [heads, tokens] the row that stands for a token; sizes: [heads, tokens] tokens per row, whose log is a key's
    bias, and 0 beyond the rows in use; counts: [heads] rows in use.
    """

    owner: Tensor
    sizes: Tensor
    counts: Tensor

    @property
    def nbytes(self) -> int:
        return self.owner.nbytes + self.sizes.nbytes + self.counts.nbytes

    @cached_property
    def packed(self) -> PackedRows:
        """The rows of all heads one after the other; looked up once, however often the plan is carried out."""
        tokens = self.owner.shape[1]
        bounds = torch.nn.functional.pad(self.counts.cumsum(0), (1, 0))
        owner = (self.owner + bounds[:-1, None]).flatten()
        used = torch.arange(tokens, device=owner.device) < self.counts[:, None]
        sizes = self.sizes[used]
        return PackedRows(owner, owner.argsort(stable=True), sizes.cumsum(0) - sizes, sizes, bounds.tolist())


@dataclass(frozen=True)
class PackedRows:
    """Rows of all heads without gaps, of tokens of all heads counted through (head * tokens + token).

    owner: [heads * tokens] row of a token; order: [heads * tokens] the tokens row by row; starts, sizes: [rows] where
    in `order` a row begins and how many tokens it has; bounds: heads + 1 numbers, where the rows of a head begin.
    """

    owner: Tensor
    order: Tensor
    starts: Tensor
    sizes: Tensor
    bounds: list[int]


@dataclass(frozen=True)
class TokenPlan:
    """Token reuse: attention between the rows of the queries and the rows of the keys."""

    query: Rows
    key: Rows
    batch: int

    @property
    def saving(self) -> Tensor:
        """Share of (query, key) pairs not computed, 1 - (1 - rho_q)(1 - rho_k), per head, mean over the batch."""
        pairs = self.query.counts.double() * self.key.counts.double()
        return _batch_mean(1 - pairs / self.query.owner.shape[1] ** 2, self.batch)

    @property
    def nbytes(self) -> int:
        return self.query.nbytes + self.key.nbytes


@dataclass(frozen=True)
class Merges:
    """What the 2 x 2 x 2 windows of one side can merge, level by level: along one axis, along two, along three.

    thresholds: [heads, windows, levels], rising: the deviation of the level's best subset of the axes; subsets: same
    shape, the bits of that subset; occupied: [windows, 8] which positions hold tokens (fewer in ragged windows).
    """

    thresholds: Tensor
    subsets: Tensor
    occupied: Tensor
    grid: TokenGrid

    @cached_property
    def removed(self) -> Staircase:
        """Rows removed per head, as a function of the threshold."""
        leads = _leads(self.occupied.device)
        rows = self.occupied.double() @ leads.double().T  # [windows, 8]: what each subset leaves
        left = rows.expand(len(self.subsets), -1, -1).gather(2, self.subsets)
        before = torch.cat([rows[None, :, :1].expand(len(left), -1, -1), left[..., :-1]], dim=-1)
        return Staircase.build(self.thresholds.flatten(1), (before - left).flatten(1))

    def rows(self, theta: float | Tensor) -> Rows:
        """The rows at a threshold: each window merges along its coarsest subset whose deviation is below theta."""
        grid, heads, device = self.grid, len(self.subsets), self.subsets.device
        level = (self.thresholds < theta).sum(-1, keepdim=True)
        subset = torch.nn.functional.pad(self.subsets, (1, 0)).gather(-1, level)  # level 0: along no axis
        leads = _leads(device)[subset[..., 0]] & self.occupied
        leads = torch.cat([leads.flatten(1), leads.new_ones(heads, grid.tokens - grid.video_tokens)], dim=1)
        number = leads.cumsum(1) - 1  # of the row, where a position leads one
        windows, before, after = number.split([self.occupied.numel(), grid.text_before, grid.text_after], dim=1)
        leader = torch.arange(8, device=device) & ~subset
        owner = _tokens(windows.view(leader.shape).gather(-1, leader), grid)
        owner = torch.cat([before, owner, after], dim=1)
        sizes = torch.zeros_like(owner).scatter_add_(1, owner, torch.ones_like(owner))
        return Rows(owner, sizes, leads.sum(1))


@dataclass(frozen=True)
class TokenCurve:
    """Saving of token reuse as a function of the threshold."""

    query: Merges
    key: Merges
    batch: int
    kind = "realised"

    def saving(self, theta: float | Tensor) -> Tensor:
        """[heads] savings for a number, [heads, n] for n thresholds; mean over the batch."""
        tokens = self.query.grid.tokens
        saving = 1 - (1 - self.query.removed(theta) / tokens) * (1 - self.key.removed(theta) / tokens)
        return _batch_mean(saving, self.batch)

    @property
    def highest(self) -> Tensor:
        return torch.maximum(self.query.removed.highest, self.key.removed.highest)

    def plan(self, query: Tensor, key: Tensor, theta: float | Tensor) -> TokenPlan:
        return TokenPlan(self.query.rows(theta), self.key.rows(theta), self.batch)


def _measure_token(
    query: Tensor,
    key: Tensor,
    grid: TokenGrid,
    config: ReuseConfig,
    scale: float,
    deviations: Callable[..., tuple[Tensor, Tensor]],
) -> TokenCurve:
    video_query, video_key = _video(query, grid), _video(key, grid)
    if config.metric == "logit":
        # A diagonal estimate of how far merging moves the logits: the other side says how much a channel matters.
        weights = [scale**2 * other.square().mean(1) for other in (video_key, video_query)]
    else:
        weights = [torch.full_like(video_query[:, 0], 1 / query.shape[-1])] * 2
    table, occupied = window_table(grid, query.device)
    bits = sum(AXIS_BIT[axis] for axis in config.axes)
    sides = (deviations(*side, table, bits) for side in zip((video_query, video_key), weights, strict=True))
    return TokenCurve(*(Merges(*side, occupied, grid) for side in sides), batch=len(query))


def window_deviations(video: Tensor, weight: Tensor, table: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """In every window and on every level, the subset of the axes with the smallest deviation: see `Merges`.

    video: [heads, video_tokens, d]; weight: [heads, d], of the channels; table: see `window_table`; axes: bits.
    Returns thresholds and subsets, [heads, windows, levels]. The deviation of a subset is sqrt(mean over its groups of
    sum_c weight_c * Eq. 3 squared). The Haar transform splits a window by the axes along which a component changes;
    what changes along any axis of the subset is its deviation.
    """
    weighted = video[:, table.T] * weight.sqrt()[:, None, None]  # [heads, 8 positions, windows, d]
    parts = HAAR.to(video) @ weighted.flatten(2)  # [heads, 8, ...]: the bits of a part are the axes it changes along
    energy = torch.linalg.vector_norm(parts.view(weighted.shape), dim=-1).square_() / 64

    bits, levels = torch.arange(8, device=video.device), []
    for level in range(1, axes.bit_count() + 1):
        masks = [mask for mask in range(1, 8) if mask & axes == mask and mask.bit_count() == level]
        masks = torch.tensor(masks[::-1], device=video.device)
        smallest, best = (((bits & masks[:, None]) != 0).to(energy) @ energy).min(1)
        levels.append((smallest, masks[best]))
    thresholds, subsets = (torch.stack(part, dim=-1) for part in zip(*levels, strict=True))
    thresholds = thresholds.flip(-1).cummin(-1).values.flip(-1)  # rising, whatever the rounding
    return thresholds.sqrt(), subsets


def window_table(grid: TokenGrid, device=None) -> tuple[Tensor, Tensor]:
    """The video tokens of every 2 x 2 x 2 window by position, [windows, 8], and which positions hold one.

    Ragged windows are filled up by repeating tokens, which changes no mean and no variance.
    """
    tokens = grid.unflatten(torch.arange(grid.video_tokens, device=device)[:, None])[None]
    occupied = torch.ones_like(tokens, dtype=torch.bool)
    for dim, size in enumerate(grid.shape, start=1):
        if size % 2:
            tokens = torch.cat([tokens, tokens.narrow(dim, size - 1, 1)], dim)
            occupied = torch.cat([occupied, torch.zeros_like(occupied.narrow(dim, 0, 1))], dim)
    return _positions(tokens)[:, 0, :, 0].T, _positions(occupied)[:, 0, :, 0].T


def _leads(device) -> Tensor:
    """[8 subsets, 8 positions]: whether a position leads its group when a window merges along a subset."""
    bits = torch.arange(8, device=device)
    return (bits & bits[:, None]) == 0


def _positions(x: Tensor) -> Tensor:
    """[n, t, y, x, d] of even sizes -> [8, n, windows, d]."""
    x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    return x.permute(2, 4, 6, 0, 1, 3, 5, 7).flatten(4, 6).flatten(0, 2)


def _tokens(x: Tensor, grid: TokenGrid) -> Tensor:
    """[n, windows, 8] -> [n, video_tokens], without the empty positions of ragged windows."""
    frames, height, width = grid.shape
    x = x.view(-1, -(-frames // 2), -(-height // 2), -(-width // 2), 2, 2, 2).permute(0, 1, 4, 2, 5, 3, 6)
    return x.flatten(5).flatten(3, 4).flatten(1, 2)[:, :frames, :height, :width].flatten(1)


# --- tile ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TilePlan:
    """Tile reuse: for every tile of queries, the key windows to compute; the others are reused by one representative.

    computed: bool [heads, tiles, windows]; tile, window: [video_tokens] where a query, a key belongs; tile_sizes
    [tiles], window_sizes [windows] in tokens; tile_tokens: of the largest tile, known without asking the device. Text
    queries compute everything and text keys are always computed.
    skip: windows that are not computed are left out, without a representative; no reuse, but what it is compared to.
    """

    computed: Tensor
    tile: Tensor
    tile_sizes: Tensor
    window: Tensor
    window_sizes: Tensor
    tile_tokens: int
    grid: TokenGrid
    batch: int
    skip: bool = False

    @property
    def saving(self) -> Tensor:
        """1 - rows visited / rows, per head, mean over the batch.

        A tile visits text rows, the keys of the windows it computes and the representatives of all windows, since
        a pass over representatives covers all of them; so reusing nothing saves -1/8, not 0.
        """
        pairs = self.computed.double() @ self.window_sizes.double() @ self.tile_sizes.double()
        return _tile_saving(pairs, 0 if self.skip else len(self.window_sizes), self.grid, self.batch)

    @property
    def nbytes(self) -> int:
        return self.computed.nbytes + self.tile.nbytes + self.window.nbytes


@dataclass(frozen=True)
class TileCurve:
    """Saving of tile reuse as a function of the threshold.

    thresholds: [heads, tiles, windows]: the summed error of all windows that are reused before or with this one.
    """

    thresholds: Tensor
    tile: Tensor
    tile_sizes: Tensor
    window: Tensor
    window_sizes: Tensor
    tile_tokens: int
    grid: TokenGrid
    batch: int
    skip: bool = False
    kind = "realised"

    @cached_property
    def reused(self) -> Staircase:
        """(query, key) pairs in reused windows per head, as a function of the threshold."""
        pairs = (self.tile_sizes[:, None] * self.window_sizes).flatten()
        return Staircase.build(self.thresholds.flatten(1), pairs)

    def saving(self, theta: float | Tensor) -> Tensor:
        """[heads] savings for a number, [heads, n] for n thresholds; mean over the batch."""
        pairs = self.grid.video_tokens**2 - self.reused(theta)
        return _tile_saving(pairs, 0 if self.skip else len(self.window_sizes), self.grid, self.batch)

    @property
    def highest(self) -> Tensor:
        return self.reused.highest

    def plan(self, query: Tensor, key: Tensor, theta: float | Tensor) -> TilePlan:
        layout = (self.tile, self.tile_sizes, self.window, self.window_sizes, self.tile_tokens)
        return TilePlan(self.thresholds >= theta, *layout, self.grid, self.batch, self.skip)


def window_probability(
    query: Tensor,
    key: Tensor,
    grid: TokenGrid,
    config: ReuseConfig,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Estimated attention of every query tile to every key window, from their means: [batch * heads, tiles, windows].

    The softmax runs over windows (mean key, log of the size added) and text keys; text takes the rest of the sum.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    tile, tile_sizes = grid.block_index(config.query_tile, query.device)
    window, window_sizes = grid.block_index(window_shape(config), query.device)
    mean_query = block_mean(_video(query, grid), tile, tile_sizes)
    mean_key = block_mean(_video(key, grid), window, window_sizes)
    logits = scale * mean_query @ mean_key.mT + window_sizes.to(mean_key.dtype).log()
    text = grid.text(query.device)
    text_logits = scale * mean_query @ key[:, :, text].flatten(0, 1).to(mean_key.dtype).mT
    if key_mask is not None:
        seen = key_mask[:, text].repeat_interleave(query.shape[1], dim=0)[:, None]
        text_logits = text_logits.masked_fill(~seen, float("-inf"))
    return torch.cat([logits, text_logits], dim=-1).softmax(-1)[..., : len(window_sizes)]


def _measure_tile(
    query: Tensor, key: Tensor, grid: TokenGrid, config: ReuseConfig, scale: float, key_mask: Tensor | None
) -> TileCurve:
    """Predicted error of reuse, e(T, w) = p(T, w) * sqrt(sum_c mean_T(q_c^2) var_w(k_c)) * scale, summed from the
    smallest: reusing the windows whose sum is below theta computes the fewest that leave an error below theta."""
    layout = tile, tile_sizes, window, window_sizes, _ = tile_layout(grid, config, query.device)
    video_query, video_key = _video(query, grid), _video(key, grid)
    centred = video_key - block_mean(video_key, window, window_sizes)[:, window]
    variance = block_mean(centred.square(), window, window_sizes)
    squared = scale**2 * block_mean(video_query.square(), tile, tile_sizes) @ variance.mT
    error = window_probability(query, key, grid, config, scale=scale, key_mask=key_mask) * squared.sqrt()
    error, order = error.sort(dim=-1)
    thresholds = torch.empty_like(error).scatter_(-1, order, error.cumsum(-1))
    return TileCurve(thresholds, *layout, grid, len(query))


def _tile_saving(pairs: Tensor, windows: int, grid: TokenGrid, batch: int) -> Tensor:
    """Saving from the (query, key) pairs inside computed windows, [heads, ...]."""
    text = grid.tokens - grid.video_tokens
    visited = pairs + grid.video_tokens * (windows + text) + text * grid.tokens
    return _batch_mean(1 - visited / grid.tokens**2, batch)


def tile_layout(grid: TokenGrid, config: ReuseConfig, device) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """tile, tile_sizes, window, window_sizes and tile_tokens of a `TilePlan`."""
    tile_tokens = math.prod(map(min, config.query_tile, grid.shape))
    return *grid.block_index(config.query_tile, device), *grid.block_index(window_shape(config), device), tile_tokens


def window_shape(config: ReuseConfig) -> tuple[int, int, int]:
    return tuple(2 if axis in config.axes else 1 for axis in AXES)


def block_mean(x: Tensor, index: Tensor, sizes: Tensor) -> Tensor:
    """Mean of the tokens of each block: [heads, video_tokens, d] -> [heads, blocks, d]."""
    total = x.new_zeros(len(x), len(sizes), x.shape[-1]).index_add_(1, index, x)
    return total / sizes[:, None]


def row_members(owner: Tensor, rows: int, members: int, first: int = 0) -> Tensor:
    """The inverse of `owner` [heads, tokens]: int32 [heads, rows, members], tokens counted from `first`."""
    order = owner.argsort(dim=1, stable=True)
    row = owner.gather(1, order)
    sizes = owner.new_zeros(len(owner), rows).scatter_add_(1, owner, torch.ones_like(owner))
    member = torch.arange(owner.shape[1], device=owner.device) - (sizes.cumsum(1) - sizes).gather(1, row)
    table = torch.full((len(owner), rows * members), -1, dtype=torch.int32, device=owner.device)
    return table.scatter_(1, row * members + member, (order + first).to(torch.int32)).view(len(owner), rows, members)


# --- channel ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChannelPlan:
    """Channel reuse, the paper's method: dense attention on snapped query and key, [batch, heads, tokens, d].

    saving: [heads], theoretical: the share of partial products that reuse would make unnecessary, mean over the batch.
    """

    query: Tensor
    key: Tensor
    saving: Tensor


@dataclass(frozen=True)
class ChannelCurve:
    """Theoretical saving of channel reuse as a function of the threshold.

    query, key: share of reused tokens in every channel of every head, [batch * heads * d]; for long sequences it is
    estimated from a sample of the tokens.
    """

    query: Staircase
    key: Staircase
    grid: TokenGrid
    config: ReuseConfig
    batch: int
    channels: int
    kind = "theoretical"

    def saving(self, theta: float | Tensor) -> Tensor:
        """[heads] savings for a number, [heads, n] for n thresholds; mean over the batch."""
        kept = (1 - self.query(theta)) * (1 - self.key(theta))
        return _batch_mean(1 - kept.unflatten(0, (-1, self.channels)).mean(1), self.batch)

    @property
    def highest(self) -> Tensor:
        return torch.maximum(self.query.highest, self.key.highest)

    def plan(self, query: Tensor, key: Tensor, theta: float | Tensor) -> ChannelPlan:
        arguments = (self.grid, theta, self.config.axes, self.config.window)
        snapped_query, reused_query = snap(query, *arguments)
        snapped_key, reused_key = snap(key, *arguments)
        kept = (1 - reused_query.double().mean(-2)) * (1 - reused_key.double().mean(-2))
        return ChannelPlan(snapped_query, snapped_key, 1 - kept.mean((0, 2)))


def _measure_channel(query: Tensor, key: Tensor, grid: TokenGrid, config: ReuseConfig) -> ChannelCurve:
    sample = torch.arange(grid.video_tokens)
    if len(sample) > CHANNEL_SAMPLES:
        sample = torch.randperm(len(sample), generator=torch.Generator().manual_seed(0))[:CHANNEL_SAMPLES]
    sample = sample.to(query.device) + grid.text_before
    gain = torch.tensor(grid.video_tokens / grid.tokens / len(sample), dtype=torch.float64, device=query.device)

    def reused(x: Tensor) -> Staircase:
        thresholds = reuse_threshold(x, grid, config.axes, config.window)[..., sample, :]
        return Staircase.build(thresholds.mT.contiguous().flatten(0, 2), gain)

    return ChannelCurve(reused(query), reused(key), grid, config, len(query), query.shape[-1])


def _video(x: Tensor, grid: TokenGrid) -> Tensor:
    """[batch, heads, tokens, d] -> video tokens [batch * heads, video_tokens, d], at least float32."""
    return x[..., grid.video, :].flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32))


def _batch_mean(saving: Tensor, batch: int) -> Tensor:
    """[batch * heads, ...] -> [heads, ...]."""
    return saving.unflatten(0, (batch, -1)).mean(0)
