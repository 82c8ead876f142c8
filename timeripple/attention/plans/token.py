"""Token reuse: whole rows of Q and K that the neighbours in a 2 x 2 x 2 window share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from timeripple.attention.call import AttentionCall
from timeripple.attention.grid import Device, TokenGrid
from timeripple.attention.method import Granularity, ReuseSettings
from timeripple.attention.plans.curve import Staircase, batch_mean
from timeripple.attention.torch_backend import attend_rows, warn_of_fallback

# Positions in a 2 x 2 x 2 window, and subsets of the axes, are three bits: t, y, x from high to low.
AXIS_BIT = {"t": 4, "y": 2, "x": 1}
HAAR = torch.tensor([[(-1.0) ** (row & position).bit_count() for position in range(8)] for row in range(8)])


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
        return batch_mean(1 - pairs / self.query.owner.shape[1] ** 2, self.batch)

    @property
    def tokens(self) -> int:
        return self.query.owner.shape[1]

    @property
    def nbytes(self) -> int:
        return self.query.nbytes + self.key.nbytes

    def carry_out(self, call: AttentionCall) -> Tensor:
        """Each head attends from its query rows to its key rows, whose logits get log(tokens of the row) added."""
        queries, keys = self.query.packed, self.key.packed
        query_rows = _merge(call.query, queries)
        key_rows, value_rows = _merge(call.key, keys), _merge(call.value, keys)
        bias = keys.sizes.to(torch.promote_types(call.key.dtype, torch.float32)).log()
        if call.key_mask is not None:  # masked keys are text, which has rows of its own
            hidden = ~call.key_mask.repeat_interleave(call.heads, dim=0)
            bias[keys.owner[hidden.flatten()]] = float("-inf")
        output = torch.empty_like(query_rows)
        for query_bounds, key_bounds in zip(pairwise(queries.bounds), pairwise(keys.bounds), strict=True):
            m, n = slice(*query_bounds), slice(*key_bounds)
            output[m] = attend_rows(query_rows[m], key_rows[n], value_rows[n], bias[n], call.scale)
        return output.index_select(0, queries.owner).view(call.query.shape)


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

    def saving(self, theta: float | Tensor) -> Tensor:
        """[heads] savings for a number, [heads, n] for n thresholds; mean over the batch."""
        tokens = self.query.grid.tokens
        saving = 1 - (1 - self.query.removed(theta) / tokens) * (1 - self.key.removed(theta) / tokens)
        return batch_mean(saving, self.batch)

    @property
    def highest(self) -> Tensor:
        return torch.maximum(self.query.removed.highest, self.key.removed.highest)

    def plan(self, call: AttentionCall, theta: float | Tensor) -> TokenPlan:
        return TokenPlan(self.query.rows(theta), self.key.rows(theta), self.batch)


def measure(
    call: AttentionCall,
    settings: ReuseSettings,
    deviations: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None,
) -> TokenCurve:
    """deviations: computes `window_deviations`; by default a kernel on CUDA, where it compiles and starts."""
    queries, keys = call.video_query, call.video_key
    if settings.metric == "logit":
        # A diagonal estimate of how far merging moves the logits: the other side says how much a channel matters.
        weights = [call.logit_scale**2 * other.square().mean(1) for other in (keys, queries)]
    else:
        weights = [torch.full_like(queries[:, 0], 1 / call.head_dim)] * 2
    table, occupied = window_table(call.grid, call.device)
    bits = sum(AXIS_BIT[axis] for axis in settings.axes)
    find = deviations or _fastest_deviations
    sides = (find(*side, table, bits) for side in zip((queries, keys), weights, strict=True))
    query, key = (Merges(*side, occupied, call.grid) for side in sides)
    return TokenCurve(query, key, call.batch)


TOKEN = Granularity(
    name="token",
    kind="realised",
    measure=measure,
    ceiling=lambda kept: 1 - kept**2,
    comfort=0.975,
    comfort_with_feedback=0.9999,  # one more refresh gives back more than merging less does
)


def _fastest_deviations(video: Tensor, weight: Tensor, table: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    if video.is_cuda:
        try:
            from timeripple.attention import triton_planning, triton_probe  # not every platform has Triton

            triton_probe.check(video)
            return triton_planning.window_deviations(video, weight, table, axes)
        except Exception as error:
            warn_of_fallback(error)
    return window_deviations(video, weight, table, axes)


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
        subset = [mask for mask in range(1, 8) if mask & axes == mask and mask.bit_count() == level]
        masks = torch.tensor(subset[::-1], device=video.device)
        smallest, best = (((bits & masks[:, None]) != 0).to(energy) @ energy).min(1)
        levels.append((smallest, masks[best]))
    thresholds, subsets = (torch.stack(part, dim=-1) for part in zip(*levels, strict=True))
    thresholds = thresholds.flip(-1).cummin(-1).values.flip(-1)  # rising, whatever the rounding
    return thresholds.sqrt(), subsets


def window_table(grid: TokenGrid, device: Device = None) -> tuple[Tensor, Tensor]:
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


def _leads(device: Device) -> Tensor:
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


def _merge(x: Tensor, rows: PackedRows) -> Tensor:
    """Mean of the tokens of each row: [batch, heads, tokens, d] -> [rows of all heads, d]."""
    return embedding_bag(rows.order, x.reshape(-1, x.shape[-1]), rows.starts, mode="mean")
