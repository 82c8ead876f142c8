"""Carries plans out with the kernels of `triton_kernels.py`, with the results of `plan.carry_out`.

Nothing here waits for the device: row counts and window lists stay on it, and kernels return early where there is
nothing to do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from timeripple.attention import triton_kernels as kernels
from timeripple.attention.call import AttentionCall
from timeripple.attention.method import Plan
from timeripple.attention.plans.channel import ChannelPlan
from timeripple.attention.plans.tile import TilePlan
from timeripple.attention.plans.token import Rows, TokenPlan
from timeripple.attention.triton_planning import INTERPRETED, on_its_device, padded, rows_together, small_block

LIST_BLOCK = 1024  # windows that `list_chosen` reads at once


@dataclass(frozen=True)
class Blocks:
    """How `attend` is cut: query rows and key rows per block, warps and pipeline stages."""

    query_rows: int
    key_rows: int
    warps: int
    stages: int


def attend_blocks(head_dim: int, dtype: torch.dtype, architecture: str, tiled: bool) -> Blocks:
    """Blocks that spill no registers and fit the shared memory of every target (`python -m timeripple kernels`).

    architecture: "sm_90" and the like, "gfx942" and the like. tiled: with a fine pass over chosen windows, which needs
    more registers. On Hopper they are the fastest of ten tried on an H200 (assets/benchmarks/gpu).
    """
    if dtype == torch.float32:  # no tensor cores at full precision
        return Blocks(16, 32 if head_dim <= 64 else 16, 8 if tiled and head_dim > 128 else 4, 1)
    if architecture.startswith("gfx"):
        return Blocks(64, 32, 4, 1)
    if architecture == "sm_90" and 64 < head_dim <= 128:
        return Blocks(64, 32 if tiled else 64, 4, 2)
    if architecture == "sm_90" and head_dim <= 64 and not tiled:
        return Blocks(128, 64, 4, 3)
    return Blocks(64 if head_dim > 128 else 128, 64 if head_dim <= 64 else 32, 8, 2)


@lru_cache
def architecture_of(device: torch.device) -> str:
    """Of a GPU, as compilers name it; "" for the CPU, where kernels are interpreted."""
    if device.type != "cuda":
        return ""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName)
    return f"sm_{properties.major}{properties.minor}"


def attention(call: AttentionCall, plan: Plan, *, residual: Tensor | None = None) -> Tensor:
    """Attention as planned, [batch, heads, tokens, d], with `residual` added; plans without kernels are left to
    PyTorch."""
    if isinstance(plan, TokenPlan):
        return token_attention(call, plan, residual)
    if isinstance(plan, TilePlan):
        return tile_attention(call, plan, residual)
    if isinstance(plan, ChannelPlan):
        return dense_attention(plan.snapped(call), residual)
    output = plan.carry_out(call)
    return output if residual is None else output.add_(residual)


def dense_attention(call: AttentionCall, residual: Tensor | None = None) -> Tensor:
    """The core without reuse: every token a row."""
    return _attend(call, None, _all_keys(call), None, residual)


def token_attention(call: AttentionCall, plan: TokenPlan, residual: Tensor | None = None) -> Tensor:
    """See `plans.token.TokenPlan.carry_out`."""
    bias, grid = plan.key.sizes.float().log2(), call.grid
    if call.key_mask is not None:  # masked keys are text, which has the first and the last rows
        hidden = _hidden(call.key_mask, call.heads)
        bias[:, : grid.text_before] += hidden[:, : grid.text_before]
        last = plan.key.counts[:, None] - torch.arange(grid.text_after, 0, -1, device=call.device)
        bias.scatter_add_(1, last, hidden[:, grid.video.stop :])
    return _attend(call, plan.query, _merged(call, plan.key, bias), None, residual)


def tile_attention(call: AttentionCall, plan: TilePlan, residual: Tensor | None = None) -> Tensor:
    """See `plans.tile.TilePlan.carry_out`."""
    grid, heads, device = plan.grid, len(plan.computed), call.device
    windows, tiles = len(plan.window_sizes), len(plan.tile_sizes)
    text = grid.text(device)
    order = torch.cat([plan.window.argsort(stable=True) + grid.text_before, text])[None].int()
    starts = pad(torch.cat([plan.window_sizes, torch.ones_like(text)]).cumsum(0), (1, 0))[None].int()
    rows = Rows(order, starts, torch.full((heads,), windows + len(text), dtype=torch.int32, device=device))
    sizes = plan.window_sizes.float()
    bias = torch.cat([torch.full_like(sizes, -math.inf) if plan.skip else sizes.log2(), sizes.new_zeros(len(text))])
    bias = bias.repeat(heads, 1)
    if call.key_mask is not None:
        bias[:, windows:] += _hidden(call.key_mask, call.heads)[:, text]
    keys = _merged(call, rows, bias)
    block = attend_blocks(call.head_dim, call.query.dtype, architecture_of(call.device), tiled=True).query_rows
    tile_rows = -(-plan.tile_tokens // block) * block
    ends = plan.tile_sizes.cumsum(0)[:, None]  # a tile is filled up with rows of no tokens
    starts = (ends - plan.tile_sizes[:, None] + torch.arange(tile_rows, device=device)).minimum(ends)
    starts = pad(starts.flatten(), (0, 1), value=grid.video_tokens)[None].int()
    order = (plan.tile.argsort(stable=True) + grid.text_before)[None].int()
    queries = Rows(order, starts, torch.full_like(rows.counts, tiles * tile_rows))
    output = _attend(call, queries, keys, Choice(plan.computed, plan.window_table, tile_rows), residual)
    if len(text):
        starts = torch.arange(len(text) + 1, dtype=torch.int32, device=device)[None]
        queries = Rows(text[None].int(), starts, torch.full_like(rows.counts, len(text)))
        _attend(call, queries, _all_keys(call), None, residual, output)
    return output


# --- what `attend` takes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyRows:
    """key, value: [batch, heads, rows, d]; bias: [batch * heads, rows] as log2, or None; counts: rows used."""

    key: Tensor
    value: Tensor
    bias: Tensor | None
    counts: Tensor


@dataclass(frozen=True)
class Choice:
    """Windows to compute. computed: bool [batch * heads, tiles, windows]; table: int32 [windows, 8], their tokens;
    tile_rows: rows of the query table that belong to a tile."""

    computed: Tensor
    table: Tensor
    tile_rows: int


def _attend(
    call: AttentionCall,
    queries: Rows | None,
    keys: KeyRows,
    choice: Choice | None,
    residual: Tensor | None,
    output: Tensor | None = None,
) -> Tensor:
    batch, heads, tokens, head_dim = call.query.shape
    query, key, value = (rows_together(x) for x in (call.query, call.key, call.value))
    row_key, row_value = (rows_together(x) for x in (keys.key, keys.value))
    output = torch.empty_like(query) if output is None else output
    if residual is not None and residual.stride() != output.stride():
        residual = torch.empty_like(output, dtype=residual.dtype).copy_(residual)
    blocks = attend_blocks(head_dim, query.dtype, architecture_of(query.device), tiled=choice is not None)
    rows = tokens if queries is None else queries.starts.shape[1] - 1
    nothing = query.new_empty(0, dtype=torch.int32)
    query_order, query_starts, query_counts, strides = nothing, nothing, nothing, (0, 0)
    if queries is not None:
        query_order, query_starts, query_counts = queries.order, queries.starts, queries.counts.to(torch.int32)
        strides = _head_strides(queries)
    chosen, chosen_counts, computed, window_table, windows, tile_rows = nothing, nothing, nothing, nothing, 0, 1
    if choice is not None:
        computed, window_table, tile_rows = choice.computed.to(torch.uint8), choice.table, choice.tile_rows
        chosen, chosen_counts = _list_chosen(computed)
        windows = computed.shape[-1]
    with on_its_device(query):
        kernels.attend[triton.cdiv(rows, blocks.query_rows), batch * heads](
            query, key, value, nothing if residual is None else residual, output,
            query_order, query_starts, query_counts,
            row_key, row_value, nothing if keys.bias is None else keys.bias, keys.counts.to(torch.int32),
            chosen, chosen_counts, computed, window_table,
            heads, tokens, rows, row_key.shape[2], windows, tile_rows,
            call.logit_scale / math.log(2),
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *output.stride()[:3],
            *row_key.stride()[:3], *row_value.stride()[:3],
            *strides,
            HEAD_DIM=head_dim, GATHERED=queries is not None, TILED=choice is not None,
            BIASED=keys.bias is not None, RESIDUAL=residual is not None, UPCAST=INTERPRETED,
            BLOCK_M=blocks.query_rows, BLOCK_N=blocks.key_rows, BLOCK_D=padded(head_dim),
            num_warps=blocks.warps, num_stages=blocks.stages,
        )  # fmt: skip
    return output


def _all_keys(call: AttentionCall) -> KeyRows:
    """Every key a row of its own."""
    bias = None if call.key_mask is None else _hidden(call.key_mask, call.heads)
    counts = torch.full((call.batch * call.heads,), call.key.shape[2], dtype=torch.int32, device=call.device)
    return KeyRows(call.key, call.value, bias, counts)


def _merged(call: AttentionCall, rows: Rows, bias: Tensor) -> KeyRows:
    """Keys and values, the tokens of a row merged into their mean. rows: of every head, or one for all."""
    return KeyRows(_merge(call.key, rows), _merge(call.value, rows), bias, rows.counts)


def _merge(x: Tensor, rows: Rows) -> Tensor:
    """Mean of the tokens of each row: -> [batch, heads, rows, d]."""
    batch, heads, _, head_dim = x.shape
    x, count = rows_together(x), rows.starts.shape[1] - 1
    merged = x.new_empty(batch, heads, count, head_dim)
    block = small_block(head_dim)
    with on_its_device(x):
        kernels.merge_rows[triton.cdiv(count, block), batch * heads](
            x, rows.order, rows.starts, rows.counts.to(torch.int32), merged, heads, count, *x.stride()[:3],
            *_head_strides(rows), HEAD_DIM=head_dim, BLOCK_ROWS=block, BLOCK_D=padded(head_dim),
        )  # fmt: skip
    return merged


def _head_strides(rows: Rows) -> tuple[int, int]:
    """Of order and starts, 0 where one serves all heads."""
    return (0, 0) if len(rows.order) == 1 else (rows.order.stride(0), rows.starts.stride(0))


def _list_chosen(computed: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [heads, tiles, windows] -> numbers of the set windows, int32 of the same shape, and counts."""
    chosen = torch.empty(computed.shape, dtype=torch.int32, device=computed.device)
    counts = torch.empty(computed.shape[:2], dtype=torch.int32, device=computed.device)
    with on_its_device(computed):
        kernels.list_chosen[(counts.numel(),)](computed, chosen, counts, computed.shape[-1], BLOCK_W=LIST_BLOCK)
    return chosen, counts


def _hidden(key_mask: Tensor, heads: int) -> Tensor:
    """bool [batch, tokens] -> float32 [batch * heads, tokens]: 0 where a key is seen, -inf where not."""
    bias = torch.zeros(key_mask.shape, device=key_mask.device).masked_fill_(~key_mask, -math.inf)
    return bias.repeat_interleave(heads, dim=0)
