"""Carries plans out on any device, through scaled_dot_product_attention on the rows that are left."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad, scaled_dot_product_attention

from timeripple.attention.plan import ChannelPlan, PackedRows, TilePlan, TokenPlan, block_mean

ROWS_PER_THREAD = 128  # fewer queries than these are not worth a thread


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: TokenPlan | TilePlan | ChannelPlan,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Attention as planned: [batch, heads, tokens, d] -> the same shape.

    key_mask: bool [batch, tokens]; residual: added to the output, of its shape.
    """
    if isinstance(plan, ChannelPlan):
        return dense_attention(plan.query, plan.key, value, scale=scale, key_mask=key_mask, residual=residual)
    carry_out = token_attention if isinstance(plan, TokenPlan) else tile_attention
    output = carry_out(query, key, value, plan, scale=scale, key_mask=key_mask)
    return output if residual is None else output.add_(residual)


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Attention without reuse; keys where the bool key_mask [batch, tokens] is False are not seen."""
    mask = None if key_mask is None else key_mask[:, None, None, :]
    output = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return output if residual is None else output.add_(residual)


def token_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: TokenPlan,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Each head attends from its query rows to its key rows, whose logits get log(tokens of the row) added."""
    queries, keys = plan.query.packed, plan.key.packed
    query_rows = _merge(query, queries)
    key_rows, value_rows = _merge(key, keys), _merge(value, keys)
    bias = keys.sizes.to(key.dtype).log()
    if key_mask is not None:  # masked keys are text, which has rows of its own
        hidden = ~key_mask.repeat_interleave(query.shape[1], dim=0)
        bias[keys.owner[hidden.flatten()]] = float("-inf")
    output = torch.empty_like(query_rows)
    for query_bounds, key_bounds in zip(pairwise(queries.bounds), pairwise(keys.bounds), strict=True):
        m, n = slice(*query_bounds), slice(*key_bounds)
        output[m] = _attend(query_rows[m], key_rows[n], value_rows[n], bias[n], scale)
    return output.index_select(0, queries.owner).view(query.shape)


def tile_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: TilePlan,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Each query tile attends to text keys, the keys of its computed windows and one representative of each other.

    A representative is the mean key, with log(window size) added to its logit, and the mean value. A plan
    that skips leaves the reused windows out instead; every tile must then compute a window.
    """
    grid, text = plan.grid, ~plan.grid.with_text(torch.ones_like(plan.tile, dtype=torch.bool), False)
    flat_query, flat_key, flat_value = (x.flatten(0, 1) for x in (query, key, value))
    keys = torch.cat([flat_key, block_mean(flat_key[:, grid.video], plan.window, plan.window_sizes)], dim=1)
    values = torch.cat([flat_value, block_mean(flat_value[:, grid.video], plan.window, plan.window_sizes)], dim=1)
    bias = torch.cat([torch.zeros_like(text, dtype=key.dtype), plan.window_sizes.to(key.dtype).log()])
    seen = text.expand(len(query), -1) if key_mask is None else text & key_mask
    owner = grid.with_text(plan.tile, -1)
    members = [(owner == tile).nonzero()[:, 0] for tile in range(len(plan.tile_sizes))]

    output = torch.empty_like(flat_query)
    for head, computed in enumerate(plan.computed):
        text_rows = seen[head // query.shape[1]].expand(len(computed), -1)
        visited = text_rows.clone()
        visited[:, grid.video] = computed[:, plan.window]
        visited = torch.cat([visited, torch.zeros_like(computed) if plan.skip else ~computed], dim=1)
        for tile, rows in enumerate(members):
            chosen = visited[tile].nonzero()[:, 0]
            output[head, rows] = _attend(
                flat_query[head, rows], keys[head, chosen], values[head, chosen], bias[chosen], scale
            )
    output = output.view(query.shape)
    if text.any():
        output[:, :, text] = dense_attention(query[:, :, text], key, value, scale=scale, key_mask=key_mask)
    return output


def _merge(x: Tensor, rows: PackedRows) -> Tensor:
    """Mean of the tokens of each row: [batch, heads, tokens, d] -> [rows of all heads, d]."""
    return embedding_bag(rows.order, x.reshape(-1, x.shape[-1]), rows.starts, mode="mean")


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float | None) -> Tensor:
    """One head: [rows, d] queries, keys with a bias each, values.

    On the CPU, queries are dealt out to the threads in equal parts: left to itself, PyTorch deals out blocks of 256,
    and one thread may get one more than the others.
    """
    parts = max(1, min(torch.get_num_threads(), len(query) // ROWS_PER_THREAD)) if query.device.type == "cpu" else 1
    rows = -(-len(query) // parts)
    queries = pad(query, (0, 0, 0, parts * rows - len(query))).view(parts, 1, rows, -1)
    keys, values = (x.expand(parts, 1, -1, -1) for x in (key, value))
    output = scaled_dot_product_attention(queries, keys, values, attn_mask=bias[None, None, None], scale=scale)
    return output.view(parts * rows, -1)[: len(query)]
