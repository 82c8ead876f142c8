"""What attention sees: query, key and value of chosen layers at chosen denoising steps."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from timeripple.attention.torch_backend import dense_attention
from timeripple.generate import Cancelled, Request
from timeripple.grid import TokenGrid
from timeripple.hooks import disable, enable
from timeripple.hooks.families import FAMILIES
from timeripple.pond.pipeline import PondPipeline
from timeripple.similarity import correlation_table


@dataclass(frozen=True)
class Capture:
    """query, key, value: [batch, heads, tokens, head_dim] after RoPE, as self-attention gets them."""

    step: int
    layer: str
    query: Tensor
    key: Tensor
    value: Tensor
    grid: TokenGrid


def capture(
    pipeline: PondPipeline,
    request: Request,
    steps: Collection[int],
    layers: Collection[str] | None = None,
    *,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Capture]:
    """Generate densely up to the last of `steps` (from 0) and return what the first guidance pass held in `layers`.

    layers: names of self-attention modules such as "blocks.0.attn1"; None: all. on_step(done, all) is called after
    every step; once should_stop says True, Cancelled is raised. Raises what `Request.check` raises, and ValueError for
    a step the request does not have.
    """
    request.check(pipeline)
    if not steps or not 0 <= min(steps) <= max(steps) < request.steps:
        raise ValueError(f"The steps are {sorted(steps)}; give some from 0 to {request.steps - 1}.")
    config = CaptureConfig(frozenset(steps), None if layers is None else frozenset(layers))

    def after_step(pipe, step: int, timestep, tensors: dict) -> dict:
        if on_step is not None:
            on_step(step + 1, max(steps) + 1)
        if should_stop is not None and should_stop():
            raise Cancelled
        pipe._interrupt = step >= max(steps)
        return tensors

    enable(pipeline, config)
    try:
        pipeline(**request.arguments(), callback_on_step_end=after_step)
    finally:
        disable(pipeline)
    return config.captures


def save_captures(captures: list[Capture], folder: Path) -> None:
    """One file a step and layer, STEP-LAYER.npy: q, k and v of the first batch entry, float16 [3, heads, tokens, d]."""
    for c in captures:
        qkv = torch.stack([c.query[0], c.key[0], c.value[0]]).to(torch.float16)
        np.save(folder / f"{c.step}-{c.layer}.npy", qkv.cpu().numpy())


def load_layer(folder: Path, step: int, layer: str, head: int | slice = slice(None)) -> Tensor:
    """q, k and v of a layer, float32 [3, heads, tokens, d], or of one head, [3, tokens, d]; only that is read."""
    return torch.from_numpy(np.load(folder / f"{step}-{layer}.npy", mmap_mode="r")[:, head].astype(np.float32))


def rope_frequencies(transformer) -> list[tuple[str, float]]:
    """Of every channel of a head: the axis RoPE turns it with, and by how many radians per token.

    Channels lie in pairs, and pair i of an axis with d channels turns by 10000^(-2 i / d).
    """
    groups = FAMILIES[type(transformer).__name__].rope(transformer)
    return [
        (axis, 10_000 ** (-2 * (channel // 2) / (group.stop - group.start)))
        for axis, group in groups.items()
        for channel in range(group.stop - group.start)
    ]


def correlation_report(captures: list[Capture], lags: tuple[int, ...] = (1, 2, 3, 4)) -> list[dict]:
    """One row a step, layer, head and side ("query", "key"): step, layer, head, side, columns [axis, lag] and values,
    [channels][columns], as `similarity.correlation_table` gives them, rounded to 4 digits."""
    rows = []
    for c in captures:
        for side, x in (("query", c.query), ("key", c.key)):
            columns, values = correlation_table(x[0].float(), c.grid, lags)
            names = {"step": c.step, "layer": c.layer, "side": side, "columns": [list(column) for column in columns]}
            for head, table in enumerate(values):
                rows.append(names | {"head": head, "values": [[round(v, 4) for v in row] for row in table.tolist()]})
    return rows


@dataclass(frozen=True)
class CaptureConfig:
    """What `hooks.enable` takes in place of a method: dense attention that keeps its inputs in `captures`."""

    steps: frozenset[int]
    layers: frozenset[str] | None
    captures: list[Capture] = field(default_factory=list)
    label = "capture"
    granularity = None

    def start(self, num_inference_steps: int) -> CaptureRun:
        return CaptureRun(self)


class CaptureRun:
    """Used by the hooks like a `ReuseRun`."""

    held_bytes = 0

    def __init__(self, config: CaptureConfig):
        self.config, self.records = config, []

    def begin_forward(self, pass_name: str, step_index: int, grid: TokenGrid) -> None:
        self._first = getattr(self, "_first", pass_name)
        self._wanted = pass_name == self._first and step_index in self.config.steps
        self._step, self._grid = step_index, grid

    def attention(self, layer: str, query: Tensor, key: Tensor, value: Tensor, *, scale=None, key_mask=None) -> Tensor:
        if self._wanted and (self.config.layers is None or layer in self.config.layers):
            copies = (x.detach().clone(memory_format=torch.contiguous_format) for x in (query, key, value))
            self.config.captures.append(Capture(self._step, layer, *copies, self._grid))
        return dense_attention(query, key, value, scale=scale, key_mask=key_mask)

    def end_forward(self) -> None:
        """Nothing to close."""

    def saving(self) -> None:
        """Nothing is saved."""
