"""Token reuse: whole rows of Q and K that the neighbours in a 2 x 2 x 2 window share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad, scaled_dot_product_attention

from timeripple.attention.call import AttentionCall
from timeripple.attention.grid import Device, TokenGrid
from timeripple.attention.method import Granularity, ReuseSettings
from timeripple.attention.plans.curve import Staircase, batch_mean
from timeripple.attention.torch_backend import attend_rows, warn_of_fallback

# Positions in a 2 x 2 x 2 window, and subsets of the axes, are three bits: t, y, x from high to low.
AXIS_BIT = {"t": 4, "y": 2, "x": 1}
POSITIONS = range(8)
ROW_BY_ROW = torch.tensor([sorted(POSITIONS, key=lambda p: (p & ~subset, p)) for subset in POSITIONS])
"""[subsets, 8]: the positions of a window that merges along a subset, row by row."""
HAAR = torch.tensor([[(-1.0) ** (row & position).bit_count() for position in range(8)] for row in range(8)])


@dataclass(frozen=True)
class Rows:
    """The rows of one side of attention, numbered from 0 in every head.

    order: int32 [heads, tokens], the tokens row by row; starts: int32 [heads, tokens + 1], where in `order` a row
    begins, and `tokens` beyond the rows in use, so that a row ends where the next begins; counts: [heads] rows in use.
    """

    order: Tensor
    starts: Tensor
    counts: Tensor

    @classmethod
    def of(cls, owner: Tensor, counts: Tensor) -> Rows:
        """From owner, [heads, tokens]: the row that stands for a token."""
        tokens = owner.shape[1]
        ends = torch.zeros_like(owner).scatter_add_(1, owner, torch.ones_like(owner)).cumsum(1)
        return cls(owner.argsort(dim=1, stable=True).int(), pad(ends, (1, 0)).clamp(max=tokens).int(), counts)

    @property
    def sizes(self) -> Tensor:
        """[heads, tokens] tokens per row, 0 beyond the rows in use; the log of it is a key's bias."""
        return self.starts.diff(dim=1)

    @property
    def owner(self) -> Tensor:
        """[heads, tokens] the row that stands for a token."""
        places = torch.arange(self.order.shape[1], dtype=torch.int32, device=self.order.device)
        rows = torch.searchsorted(self.starts, places.expand_as(self.order).contiguous(), right=True) - 1
        return torch.zeros_like(rows).scatter_(1, self.order.long(), rows)

    @property
    def nbytes(self) -> int:
        return self.order.nbytes + self.starts.nbytes + self.counts.nbytes

    def packed(self, batch: int) -> PackedRows:
        """The rows of all heads one after the other."""
        heads, tokens = self.order.shape[0] // batch, self.order.shape[1]
        head = torch.arange(len(self.order), device=self.order.device)[:, None]
        first = (head // heads) * tokens * heads + head % heads  # where the tokens of a head begin, every `heads`-th
        counts = self.counts.tolist()
        begins = (self.starts[:, :-1] + head * tokens)[self.sizes > 0].int()
        order = (self.order * heads + first).flatten().int()
        sizes = begins.diff(append=begins.new_tensor([len(order)]))
        rows = torch.arange(len(sizes), dtype=torch.int32, device=order.device).repeat_interleave(sizes)
        owner = torch.empty_like(order).scatter_(0, order.long(), rows)
        return PackedRows(order, begins, owner, sizes, counts)


@dataclass(frozen=True)
class PackedRows:
    """Rows of all heads without gaps, head by head, of tokens counted as they lie in memory: (sample, token, head).

    order: int32 [batch * tokens * heads] the tokens row by row; starts, sizes: [rows] where in `order` a row begins and
    how many tokens it has; owner: int32, like order, the row of every token; counts: the rows of every head.
    """

    order: Tensor
    starts: Tensor
    owner: Tensor
    sizes: Tensor
    counts: list[int]

    @property
    def nbytes(self) -> int:
        return self.order.nbytes + self.starts.nbytes + self.owner.nbytes + self.sizes.nbytes

    def merge(self, x: Tensor) -> Tensor:
        """Mean of the tokens of every row: [batch, heads, tokens, d] -> [rows, d]."""
        tokens = x.transpose(1, 2).reshape(-1, x.shape[-1])
        total = embedding_bag(self.order, tokens, self.starts, mode="sum")  # which is four times as fast as "mean"
        return total.mul_((1 / self.sizes).to(x.dtype)[:, None])  # exact for sizes of a power of two

    def spread(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Every token gets its row: [rows, d] -> [batch, heads, tokens, d], in memory token by token."""
        batch, heads, tokens, head_dim = shape
        return rows.index_select(0, self.owner).view(batch, tokens, heads, head_dim).transpose(1, 2)


@dataclass(frozen=True)
class TokenPlan:
    """Token reuse: attention between the rows of the queries and the rows of the keys."""

    query: Rows
    key: Rows
    batch: int

    @cached_property
    def saving(self) -> Tensor:
        """Share of (query, key) pairs not computed, 1 - (1 - rho_q)(1 - rho_k), per head, mean over the batch."""
        pairs = self.query.counts.double() * self.key.counts.double()
        return batch_mean(1 - pairs / self.tokens**2, self.batch)

    @property
    def tokens(self) -> int:
        return self.query.order.shape[1]

    @property
    def nbytes(self) -> int:
        packed = vars(self).get("packed", ())
        return self.query.nbytes + self.key.nbytes + sum(rows.nbytes for rows in packed)

    @cached_property
    def packed(self) -> tuple[PackedRows, PackedRows]:
        """As PyTorch carries them out; looked up once, however often that is."""
        return self.query.packed(self.batch), self.key.packed(self.batch)

    def carry_out(self, call: AttentionCall) -> Tensor:
        """Each head attends from its query rows to its key rows, whose logits get log(tokens of the row) added."""
        queries, keys = self.packed
        query, key, value = queries.merge(call.query), keys.merge(call.key), keys.merge(call.value)
        bias = self._bias(call)
        if len(set(queries.counts)) == len(set(keys.counts)) == 1:  # all heads at once
            heads = len(keys.counts)
            query, key, value = (x.view(1, heads, -1, x.shape[-1]) for x in (query, key, value))
            mask = None if bias is None else bias.view(1, heads, 1, -1)
            output = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=call.scale).flatten(0, 2)
            return queries.spread(output, call.query.shape)
        output = torch.empty_like(query)
        m = n = slice(0, 0)
        for query_count, key_count, one_size in zip(queries.counts, keys.counts, self._one_size, strict=True):
            m, n = slice(m.stop, m.stop + query_count), slice(n.stop, n.stop + key_count)
            own_bias = None if bias is None or (one_size and call.key_mask is None) else bias[n]
            output[m] = attend_rows(query[m], key[n], value[n], own_bias, call.scale)
        return queries.spread(output, call.query.shape)

    def _bias(self, call: AttentionCall) -> Tensor | None:
        """[rows of keys], None where it is the same for all of a head: it cancels."""
        keys = self.packed[1]
        if call.key_mask is None and all(self._one_size):
            return None
        bias = keys.sizes.to(torch.promote_types(call.key.dtype, torch.float32)).log()
        if call.key_mask is not None:  # masked keys are text, which has rows of its own
            hidden = ~call.key_mask[:, :, None].expand(-1, -1, call.heads)
            bias[keys.owner[hidden.flatten()].long()] = float("-inf")
        return bias

    @cached_property
    def _one_size(self) -> list[bool]:
        """Of every head, whether its key rows are of one size."""
        keys = self.packed[1]
        return torch.stack([(sizes == sizes[0]).all() for sizes in keys.sizes.split(keys.counts)]).tolist()


@dataclass(frozen=True)
class Merges:
    """What the 2 x 2 x 2 windows of one side can merge, level by level: along one axis, along two, along three.

    thresholds: [heads, windows, levels], rising: the deviation of the level's best subset of the axes; subsets: same
    shape, the bits of that subset; table, occupied: see `window_table`.
    """

    thresholds: Tensor
    subsets: Tensor
    table: Tensor
    occupied: Tensor
    grid: TokenGrid

    @cached_property
    def removed(self) -> Staircase:
        """Rows removed per head, as a function of the threshold."""
        bits = torch.arange(8, device=self.occupied.device)
        leads = (bits & bits[:, None]) == 0  # [subsets, positions]: which lead their group
        rows = self.occupied.double() @ leads.double().T  # [windows, 8]: what each subset leaves
        left = rows.expand(len(self.subsets), -1, -1).gather(2, self.subsets)
        before = torch.cat([rows[None, :, :1].expand(len(left), -1, -1), left[..., :-1]], dim=-1)
        return Staircase.build(self.thresholds.flatten(1), (before - left).flatten(1))

    def rows(self, theta: float | Tensor) -> Rows:
        """The rows at a threshold: each window merges along its coarsest subset whose deviation is below theta."""
        grid, heads, device = self.grid, len(self.subsets), self.subsets.device
        level = (self.thresholds < theta).sum(-1, keepdim=True)
        subset = pad(self.subsets, (1, 0)).gather(-1, level)  # level 0: along no axis
        position = ROW_BY_ROW.to(device)[subset[..., 0]]  # [heads, windows, 8]
        occupied = self.occupied.expand_as(position).gather(-1, position)
        leads = occupied & ((position & subset) == 0)
        token = self.table.expand_as(position).gather(-1, position) + grid.text_before
        text = grid.text_before, grid.text_after
        leads, occupied = (pad(each.flatten(1), text, value=True) for each in (leads, occupied))
        texts = torch.arange(grid.tokens, device=device).expand(heads, -1)
        before, after = texts[:, : grid.text_before], texts[:, grid.video.stop :]
        token = torch.cat([before, token.flatten(1), after], dim=1)

        tokens = grid.tokens  # what is in no row is written behind the end
        place, number = occupied.cumsum(1) - 1, leads.cumsum(1) - 1
        order = token.new_empty(heads, tokens + 1).scatter_(1, torch.where(occupied, place, tokens), token)
        starts = token.new_full((heads, tokens + 2), tokens)
        starts.scatter_(1, torch.where(leads, number, tokens + 1), place)
        return Rows(order[:, :-1].int(), starts[:, :-1].int(), leads.sum(1))


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


@torch.no_grad()  # what to reuse is a decision
def measure(
    call: AttentionCall,
    settings: ReuseSettings,
    deviations: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None,
) -> TokenCurve:
    """deviations: computes `window_deviations`; by default a kernel on CUDA, where it compiles and starts."""
    queries, keys = (x[..., call.grid.video, :].flatten(0, 1) for x in (call.query, call.key))
    if settings.metric == "logit":
        # A diagonal estimate of how far merging moves the logits: the other side says how much a channel matters.
        weights = [call.logit_scale**2 * _mean_squares(other) for other in (keys, queries)]
    else:
        dtype = torch.promote_types(queries.dtype, torch.float32)
        weights = [torch.full_like(queries[:, 0], 1 / call.head_dim, dtype=dtype)] * 2
    table, occupied = window_table(call.grid, call.device)
    bits = sum(AXIS_BIT[axis] for axis in settings.axes)
    find = deviations or _fastest_deviations
    sides = (find(*side, table, bits) for side in zip((queries, keys), weights, strict=True))
    query, key = (Merges(*side, table, occupied, call.grid) for side in sides)
    return TokenCurve(query, key, call.batch)


TOKEN = Granularity(
    name="token",
    kind="realised",
    measure=measure,
    ceiling=lambda kept: 1 - kept**2,
    comfort=0.975,
    comfort_with_feedback=0.98,  # the last windows to merge lose more than one more refresh gives back
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

    video: [heads, video_tokens, d]; weight: [heads, d], of the channels, at least float32; table: see `window_table`;
    axes: bits. Returns thresholds and subsets, [heads, windows, levels]. The deviation of a subset is sqrt(mean over
    its groups of sum_c weight_c * Eq. 3 squared). The Haar transform splits a window by the axes along which a
    component changes; what changes along any axis of the subset is its deviation.
    """
    positions, haar = table.T.flatten(), HAAR.to(weight)
    windows = weight.new_empty(8, len(table) * video.shape[-1])
    parts, energy = torch.empty_like(windows), weight.new_empty(len(video), 8, len(table))
    for tokens, root, norm in zip(video, weight.sqrt(), energy, strict=True):  # head by head, in the same memory
        windows.view(-1, len(root)).copy_(tokens.index_select(0, positions)).mul_(root)
        torch.mm(haar, windows, out=parts)  # the bits of a part: the axes it changes along
        torch.linalg.vector_norm(parts.view(8, -1, len(root)), dim=-1, out=norm)
    energy = energy.square_() / 64

    smallest, levels = energy.new_tensor(math.inf), []
    for changing, subsets in _levels(axes, video.device):
        deviation, best = (changing.to(energy) @ energy).min(1)
        smallest = torch.minimum(smallest, deviation)  # rising by level, whatever the rounding
        levels.append((smallest, subsets[best]))
    thresholds, best = (torch.stack(part, dim=-1) for part in zip(*reversed(levels), strict=True))
    return thresholds.sqrt(), best


@lru_cache
@torch.inference_mode(False)  # as what is kept may be asked for outside of it
def _levels(axes: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Of the subsets of the axes, the largest first: which parts change along any axis of each, float [n, 8], and their
    bits, [n]."""
    levels = []
    for level in range(axes.bit_count(), 0, -1):
        subset = [mask for mask in range(7, 0, -1) if mask & axes == mask and mask.bit_count() == level]
        changing = [[float(mask & part > 0) for part in POSITIONS] for mask in subset]
        levels.append((torch.tensor(changing, device=device), torch.tensor(subset, device=device)))
    return levels


def _mean_squares(x: Tensor) -> Tensor:
    """Of every channel, [heads, tokens, d] -> [heads, d]; on the CPU head by head, for its cache."""
    parts = x.split(1 if x.device.type == "cpu" else len(x))
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.cat([part.to(dtype).square().mean(1) for part in parts])


@lru_cache(8)
@torch.inference_mode(False)
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


def _positions(x: Tensor) -> Tensor:
    """[n, t, y, x, d] of even sizes -> [8, n, windows, d]."""
    x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    return x.permute(2, 4, 6, 0, 1, 3, 5, 7).flatten(4, 6).flatten(0, 2)
