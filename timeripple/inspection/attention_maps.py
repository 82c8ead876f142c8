"""What a token attends to, densely and under reuse, and what kind of attention a head has.

query, key: [heads, tokens, d] after RoPE, as `Inspection.qkv` gives them. Logits are scaled by 1/sqrt(d).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool1d

from timeripple.attention.call import AttentionCall
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid
from timeripple.attention.method import Plan
from timeripple.attention.plans.curve import theta_for_saving
from timeripple.attention.plans.tile import TilePlan
from timeripple.attention.plans.token import TokenPlan

DOMINANT = 1.5  # times uniform attention, from where a head is said to have a kind
CELLS_AT_ONCE = 3  # of queries
SAMPLES = 256  # queries from which the scores of a head are estimated


def attention_row(query: Tensor, key: Tensor, token: int) -> Tensor:
    """Attention of one token to all tokens, [heads, tokens]; every row sums to 1."""
    return _softmax(query[:, token, None], key)[:, 0]


def reused_row(query: Tensor, key: Tensor, token: int, plan: Plan) -> tuple[Tensor, Tensor]:
    """The row that attention under a plan uses in place of `attention_row`, and [heads, tokens] of how many keys share
    the key that stands for each: 1 is a key that was computed.

    A row of n keys has log n added to its logit, so each of them gets the weight that their mean key would have alone.
    """
    if isinstance(plan, TokenPlan):
        members = plan.query.owner == plan.query.owner[:, token, None]
        mean_query = (query * members[..., None]).sum(1) / members.sum(1)[:, None]
        owner, reused = plan.key.owner, torch.ones_like(members)
    else:
        assert isinstance(plan, TilePlan)  # channels have no rows that stand for others
        grid, video = plan.grid, token - plan.grid.text_before
        mean_query, owner = query[:, token], torch.arange(grid.tokens).repeat(len(query), 1)
        reused = torch.zeros_like(owner, dtype=torch.bool)
        if 0 <= video < grid.video_tokens:  # text computes everything
            owner[:, grid.video] = grid.tokens + plan.window
            reused[:, grid.video] = ~plan.computed[:, plan.tile[video]][:, plan.window]
    rows = int(owner.max()) + 1
    sizes = torch.zeros(len(query), rows).scatter_add_(1, owner, torch.ones(owner.shape))
    sums = torch.zeros(len(query), rows, key.shape[-1])
    sums.scatter_add_(1, owner[..., None].expand_as(key), key)
    shared = sizes.gather(1, owner)
    means = sums.gather(1, owner[..., None].expand_as(key)) / shared[..., None]
    keys = torch.where(reused[..., None], means, key)
    return _softmax(mean_query[:, None], keys)[:, 0], torch.where(reused, shared, 1.0)


def plan_at(query: Tensor, key: Tensor, grid: TokenGrid, config: ReuseConfig) -> Plan:
    """The plan that saves what the config's budget asks for in this one call, on average over the heads."""
    call = AttentionCall(query[None], key[None], key[None], grid)  # what is planned does not depend on the values
    curve = config.measure(call)
    return curve.plan(call, theta_for_saving([curve], config.budget or 0.0))


def averaged_map(
    query: Tensor,
    key: Tensor,
    grid: TokenGrid,
    cells: int = 256,
    query_frame: int | None = None,
    key_frame: int | None = None,
    samples: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens x tokens map of one head, [tokens, d], averaged over cells that never cross a frame.

    Returns the map, at most cells x cells where there are no more frames than that, and the tokens of every row and
    column of cells. query_frame, key_frame: only this frame's tokens on that side. Video tokens only, in t, y, x order;
    the softmax runs over all keys. samples: how many evenly spaced queries stand for those of a cell; by default all
    are computed. A few cells of queries are computed at a time: their softmax stays in the cache.
    """
    frames = grid.shape[0]
    rows = range(frames) if query_frame is None else [query_frame]
    columns = range(frames) if key_frame is None else [key_frame]
    size = grid.video_tokens // frames
    row_cells, column_cells = (_cells(size, max(1, cells // len(side))) for side in (rows, columns))
    taken = [torch.linspace(0, n - 1, min(n, samples or n)).round().long() for n in row_cells]
    starts = torch.tensor([0, *row_cells]).cumsum(0)
    chosen = torch.cat([start + each for start, each in zip(starts, taken, strict=False)])
    blocks = []
    for frame in rows:
        queries = query[grid.video].unflatten(0, (frames, size))[frame, chosen]
        for some in queries.split(CELLS_AT_ONCE * len(taken[0])):
            weights = _softmax(some, key)
            means = torch.stack([cell.mean(0) for cell in weights.split(len(taken[0]))])  # rows first: most of the work
            by_frame = means[:, grid.video].unflatten(1, (frames, size))[:, columns]
            blocks.append(avg_pool1d(by_frame, column_cells[0], ceil_mode=True).flatten(1))
    return torch.cat(blocks), torch.tensor(row_cells * len(rows)), torch.tensor(column_cells * len(columns))


def head_scores(query: Tensor, key: Tensor, grid: TokenGrid, samples: int = SAMPLES) -> dict[str, Tensor]:
    """What kind of attention every head has, [heads] each, means over `samples` queries drawn with seed 0.

    spatial: attention to the query's own frame; temporal: to its own place (y, x) in all frames; both as multiples of
    what uniform attention would give, as Sparse VideoGen (arXiv 2502.01776) tells spatial from temporal heads.
    entropy: of the row, over log N: 0 attends to one token, 1 to all alike.
    """
    frames, size = grid.shape[0], grid.video_tokens // grid.shape[0]
    chosen = torch.randperm(grid.video_tokens, generator=torch.Generator().manual_seed(0))[:samples]
    frame, place, sample = chosen // size, chosen % size, torch.arange(len(chosen))
    found = []
    for queries, keys in zip(query[:, chosen + grid.text_before], key, strict=True):
        logits = _logits(queries, keys)
        logits -= logits.amax(-1, keepdim=True)  # so that what counts for the entropy is small
        rows = logits.softmax(-1)
        video = rows[:, grid.video].unflatten(-1, (frames, size))
        spatial, temporal = video[sample, frame].sum(-1), video[sample, :, place].sum(-1)
        entropy = logits.logsumexp(-1) - torch.linalg.vecdot(rows, logits)
        found.append(torch.stack([spatial.mean(), temporal.mean(), entropy.mean()]))
    scale = torch.tensor([grid.tokens / size, grid.tokens / frames, 1 / math.log(grid.tokens)]).to(query)
    return dict(zip(("spatial", "temporal", "entropy"), (torch.stack(found) * scale).unbind(-1), strict=True))


def frame_map(query: Tensor, key: Tensor, grid: TokenGrid, samples: int = 8) -> Tensor:
    """Attention from frame to frame, [heads, frames, frames], rows add up to that to video tokens: means over evenly
    spaced queries, so many a frame."""
    frames, size = grid.shape[0], grid.video_tokens // grid.shape[0]
    places = torch.linspace(0, size - 1, min(samples, size)).round().long()
    chosen = (torch.arange(frames)[:, None] * size + places).flatten() + grid.text_before
    rows = _softmax(query[:, chosen], key)[..., grid.video].unflatten(-1, (frames, size)).sum(-1)
    return rows.unflatten(1, (frames, len(places))).mean(2)


def standing_out(frames: np.ndarray, grid: TokenGrid) -> tuple[int, int, int]:
    """The token (t, y, x) in the middle frame whose pixels differ most from the mean colour of the clip, uint8
    [F, H, W, 3]."""
    middle = torch.from_numpy(frames[len(frames) // 2]).double().movedim(-1, 0)[None]
    shape = grid.shape[1:]
    cells = adaptive_avg_pool2d(middle, shape)[0]
    away = (cells - torch.from_numpy(frames).double().mean((0, 1, 2))[:, None, None]).square().sum(0)
    y, x = divmod(int(away.argmax()), shape[1])
    return grid.shape[0] // 2, y, x


def head_kind(spatial: float, temporal: float) -> str:
    """ "spatial" or "temporal" by the larger of its scores; "neither" where both are below DOMINANT."""
    if max(spatial, temporal) < DOMINANT:
        return "neither"
    return "spatial" if spatial > temporal else "temporal"


def _logits(query: Tensor, key: Tensor) -> Tensor:
    """[..., queries, d], [..., keys, d] -> [..., queries, keys]."""
    return query @ key.mT * query.shape[-1] ** -0.5


def _softmax(query: Tensor, key: Tensor) -> Tensor:
    """As `_logits`, rows that add up to 1."""
    return _logits(query, key).softmax(-1)


def _cells(tokens: int, count: int) -> list[int]:
    """Sizes of the cells a frame is dealt into: equal but for the last."""
    size = -(-tokens // count)
    return [min(size, tokens - start) for start in range(0, tokens, size)]
