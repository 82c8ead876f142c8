"""The definition: reuse at all three granularities as explicit loops over heads, windows and tiles.

Slow on purpose, in the dtype of its inputs (float64 for tests), and independent of the planner: what the fast
backends compute is checked against this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, product
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.grid import AXES, TokenGrid
from timeripple.attention.method import ReuseSettings

Position = tuple[int, ...]
Group = list[int]  # tokens, by their index in the sequence
Block = dict[Position, int]  # of the grid: {position inside the block: index in the sequence}


class Head(NamedTuple):
    """One head of a call: [tokens, d] query, key and value; hidden: [tokens], -inf for keys not seen, 0 for others."""

    query: Tensor
    key: Tensor
    value: Tensor
    grid: TokenGrid
    scale: float
    hidden: Tensor


class Settings(ReuseSettings, Protocol):
    """What is read of a `config.ReuseConfig`."""

    @property
    def granularity(self) -> str: ...


def attention(call: AttentionCall, config: Settings, theta: float) -> tuple[Tensor, Tensor]:
    """Output, [batch, heads, tokens, d], and saving, [heads], mean over the batch, of a `config.ReuseConfig`."""
    head_attention = {"token": token_head, "tile": tile_head, "channel": channel_head}[config.granularity]
    output, saving = torch.empty_like(call.query), torch.zeros(call.query.shape[:2], dtype=torch.float64)
    for b, h in product(range(call.batch), range(call.heads)):
        hidden = torch.zeros(call.grid.tokens, dtype=call.query.dtype)
        if call.key_mask is not None:
            hidden[~call.key_mask[b]] = -math.inf
        query, key, value = (x[b, h] for x in (call.query, call.key, call.value))
        head = Head(query, key, value, call.grid, call.logit_scale, hidden)
        output[b, h], saving[b, h] = head_attention(head, config, theta)
    return output, saving.mean(0)


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k^T + bias) v with one bias per key row."""
    return (scale * query @ key.T + bias).softmax(-1) @ value


def token_head(head: Head, config: Settings, theta: float) -> tuple[Tensor, float]:
    """Token reuse of one head."""
    query, key, value, grid, scale, hidden = head
    query_groups = token_groups(query, key, grid, config, theta, scale)
    key_groups = token_groups(key, query, grid, config, theta, scale)
    rows = torch.stack([query[group].mean(0) for group in query_groups])
    keys = torch.stack([key[group].mean(0) for group in key_groups])
    values = torch.stack([value[group].mean(0) for group in key_groups])
    bias = torch.stack([math.log(len(group)) + hidden[group[0]] for group in key_groups])
    result = softmax_attention(rows, keys, values, bias, scale)
    output = torch.empty_like(query)
    for group, row in zip(query_groups, result, strict=True):
        output[group] = row
    return output, 1 - len(query_groups) * len(key_groups) / grid.tokens**2


def token_groups(
    x: Tensor, other: Tensor, grid: TokenGrid, config: Settings, theta: float, scale: float
) -> list[Group]:
    """Groups of tokens that share a row: every window merges along the coarsest subset of axes it can."""
    if config.metric == "logit":
        weight = scale**2 * other[grid.video].square().mean(0)
    else:
        weight = torch.full_like(x[0], 1 / x.shape[-1])
    groups = [[token] for token in range(grid.tokens) if not grid.video.start <= token < grid.video.stop]
    for window in blocks(grid, (2, 2, 2)):
        groups += merge_window(window, x, weight, config.axes, theta)
    return groups


def merge_window(window: Block, x: Tensor, weight: Tensor, axes: Sequence[str], theta: float) -> list[Group]:
    """The groups of one window, {(t, y, x): token}: levels from all axes to one, the smallest deviation of a level."""
    for level in range(len(axes), 0, -1):
        candidates: list[tuple[float, list[Group]]] = []
        for subset in combinations(axes, level):
            groups: dict[Position, Group] = {}
            for position, token in window.items():
                leader = tuple(p for axis, p in zip(AXES, position, strict=True) if axis not in subset)
                groups.setdefault(leader, []).append(token)
            variance = [(x[group].var(0, correction=0) * weight).sum() for group in groups.values()]
            candidates.append((math.sqrt(sum(variance) / len(variance)), list(groups.values())))
        deviation, merged = min(candidates, key=lambda candidate: candidate[0])
        if deviation < theta:
            return merged
    return [[token] for token in window.values()]


def tile_head(head: Head, config: Settings, theta: float) -> tuple[Tensor, float]:
    """Tile reuse of one head."""
    query, key, value, grid, scale, hidden = head
    windows = [list(w.values()) for w in blocks(grid, [2 if axis in config.axes else 1 for axis in AXES])]
    text = [token for token in range(grid.tokens) if not grid.video.start <= token < grid.video.stop]
    output, visited = torch.empty_like(query), 0
    if text:
        output[text] = softmax_attention(query[text], key, value, hidden, scale)
        visited += len(text) * grid.tokens
    for block in blocks(grid, config.query_tile):
        tile = list(block.values())
        reused = reused_windows(query[tile], key, windows, text, theta, scale, hidden)
        computed = text + [token for w, window in enumerate(windows) if w not in reused for token in window]
        keys, values, bias = [key[computed]], [value[computed]], [hidden[computed]]
        for w in sorted(reused):
            keys.append(key[windows[w]].mean(0, keepdim=True))
            values.append(value[windows[w]].mean(0, keepdim=True))
            bias.append(hidden.new_tensor([math.log(len(windows[w]))]))
        output[tile] = softmax_attention(query[tile], torch.cat(keys), torch.cat(values), torch.cat(bias), scale)
        visited += len(tile) * (len(computed) + len(windows))
    return output, 1 - visited / grid.tokens**2


def reused_windows(
    query: Tensor, key: Tensor, windows: list[Group], text: Group, theta: float, scale: float, hidden: Tensor
) -> set[int]:
    """As many windows as leave a summed predicted error below theta, the smallest errors first."""
    logits = [scale * query.mean(0) @ key[window].mean(0) + math.log(len(window)) for window in windows]
    logits += [scale * query.mean(0) @ key[token] + hidden[token] for token in text]
    probability = torch.stack(logits).softmax(0)[: len(windows)]
    spread = [(query.square().mean(0) * key[window].var(0, correction=0)).sum().sqrt() for window in windows]
    error = [(float(p * scale * s), w) for w, (p, s) in enumerate(zip(probability, spread, strict=True))]
    reused: set[int] = set()
    total = 0.0
    for e, w in sorted(error):
        total += e
        if total < theta:
            reused.add(w)
    return reused


def channel_head(head: Head, config: Settings, theta: float) -> tuple[Tensor, float]:
    """Channel reuse of one head, the paper's method."""
    query, key, value, grid, scale, hidden = head
    snapped_query, reused_query = snap(query, grid, theta, config.axes, config.window)
    snapped_key, reused_key = snap(key, grid, theta, config.axes, config.window)
    share_query, share_key = reused_query.double().mean(0), reused_key.double().mean(0)
    saving = 1 - ((1 - share_query) * (1 - share_key)).mean()
    return softmax_attention(snapped_query, snapped_key, value, hidden, scale), saving.item()


def snap(x: Tensor, grid: TokenGrid, theta: float, axes: Sequence[str], window: int) -> tuple[Tensor, Tensor]:
    """Window by window and channel by channel: [tokens, d] -> (snapped, reused)."""
    snapped, reused = x.clone(), torch.zeros_like(x, dtype=torch.bool)
    for axis in AXES:
        if axis not in axes:
            continue
        for line in blocks(grid, [window if a == axis else 1 for a in AXES]):
            tokens = list(line.values())
            if len(tokens) < window:
                continue
            for channel in range(x.shape[-1]):
                if x[tokens, channel].std(correction=0) < theta:
                    snapped[tokens[1:], channel] = snapped[tokens[0], channel]
                    reused[tokens[1:], channel] = True
    return snapped, reused


def blocks(grid: TokenGrid, size: Sequence[int]) -> list[Block]:
    """Blocks of the grid in t, y, x order, each {position inside the block: index in the sequence}."""
    result: dict[Position, Block] = {}
    for t, y, x in product(*map(range, grid.shape)):
        block = (t // size[0], y // size[1], x // size[2])
        position = (t % size[0], y % size[1], x % size[2])
        token = grid.text_before + (t * grid.height + y) * grid.width + x
        result.setdefault(block, {})[position] = token
    return [result[block] for block in sorted(result)]
