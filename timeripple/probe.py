"""What attention sees: query, key and value of chosen layers at chosen denoising steps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from timeripple.attention.torch_backend import dense_attention
from timeripple.generate import Request
from timeripple.grid import TokenGrid
from timeripple.hooks import disable, enable
from timeripple.pond.pipeline import PondPipeline


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
    pipeline: PondPipeline, request: Request, steps: Collection[int], layers: Collection[str] | None = None
) -> list[Capture]:
    """Generate densely up to the last of `steps` (from 0) and return what the first guidance pass held in `layers`.

    layers: names of self-attention modules such as "blocks.0.attn1"; None: all. Raises what `Request.check` raises,
    and ValueError for a step the request does not have.
    """
    request.check(pipeline)
    if not steps or not 0 <= min(steps) <= max(steps) < request.steps:
        raise ValueError(f"The steps are {sorted(steps)}; give some from 0 to {request.steps - 1}.")
    config = CaptureConfig(frozenset(steps), None if layers is None else frozenset(layers))

    def stop_after_the_last(pipe, step: int, timestep, tensors: dict) -> dict:
        pipe._interrupt = step >= max(steps)
        return tensors

    enable(pipeline, config)
    try:
        pipeline(
            request.prompt,
            request.negative_prompt,
            num_frames=request.num_frames,
            height=request.height,
            width=request.width,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="latent",
            callback_on_step_end=stop_after_the_last,
        )
    finally:
        disable(pipeline)
    return config.captures


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
