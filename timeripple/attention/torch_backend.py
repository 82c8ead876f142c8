"""Carries plans out on any device, through scaled_dot_product_attention on the rows that are left."""

from __future__ import annotations

from itertools import pairwise, product

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad, scaled_dot_product_attention

from timeripple.attention.plan import WINDOW, ChannelPlan, PackedRows, TilePlan, TokenPlan, row_members

ROWS_PER_PART = 384  # PyTorch's blocks are smaller, and evenly dealt out, below twice these


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
    bias = keys.sizes.to(torch.promote_types(key.dtype, torch.float32)).log()
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
    grid, (batch, heads, _, head_dim) = plan.grid, query.shape
    text = grid.text(query.device)
    pairs = torch.cat([key, value], dim=-1).flatten(0, 1)  # keys and their values are gathered together
    table = row_members(plan.window[None], len(plan.window_sizes), WINDOW, grid.text_before)[0]
    dtype = torch.promote_types(key.dtype, torch.float32)
    sizes, empty = plan.window_sizes.to(dtype), table < 0
    fine = pairs[:, table.clamp(min=0)]
    coarse = (fine.to(dtype).masked_fill_(empty[..., None], 0).sum(2) / sizes[:, None]).to(key.dtype)
    fine = fine.flatten(2)
    fine_bias = torch.zeros_like(empty, dtype=dtype).masked_fill_(empty, float("-inf"))
    coarse_bias = sizes.log()
    text_pairs, text_bias = pairs[:, text], fine_bias.new_zeros(batch, len(text))
    if key_mask is not None:
        text_bias.masked_fill_(~key_mask[:, text], float("-inf"))
    computed_first = plan.computed.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices
    counts = plan.computed.sum(-1).tolist()
    tiles = (plan.tile.argsort(stable=True) + grid.text_before).split(plan.tile_sizes.tolist())

    flat_query = query.flatten(0, 1)
    output = torch.empty_like(flat_query)
    for head, tile in product(range(batch * heads), range(len(tiles))):
        count = counts[head][tile]
        chosen, others = computed_first[head, tile, :count], computed_first[head, tile, count:]
        parts = [(text_pairs[head], text_bias[head // heads]), (fine[head, chosen], fine_bias[chosen])]
        if not plan.skip:
            parts.append((coarse[head, others], coarse_bias[others]))
        rows = torch.cat([part.view(-1, 2 * head_dim) for part, _ in parts])
        bias = torch.cat([part.flatten() for _, part in parts])
        key_rows, value_rows = rows.split(head_dim, dim=-1)
        output[head, tiles[tile]] = _attend(flat_query[head, tiles[tile]], key_rows, value_rows, bias, scale)
    output = output.view(query.shape)
    if len(text):
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
    parts = max(1, min(torch.get_num_threads(), len(query) // ROWS_PER_PART)) if query.device.type == "cpu" else 1
    rows = -(-len(query) // parts)
    queries = pad(query, (0, 0, 0, parts * rows - len(query))).view(parts, 1, rows, -1)
    keys, values = (x.expand(parts, 1, -1, -1) for x in (key, value))
    output = scaled_dot_product_attention(queries, keys, values, attn_mask=bias[None, None, None], scale=scale)
    return output.view(parts * rows, -1)[: len(query)]
