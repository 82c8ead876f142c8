"""What attention sees: query, key and value of chosen layers at chosen denoising steps, of a run or of any clip."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid
from timeripple.attention.method import Kind, Step, dense_steps
from timeripple.attention.timing import environment
from timeripple.attention.torch_backend import dense_attention
from timeripple.clips import pipelines
from timeripple.clips.generate import Cancelled, Request, freed, to_frames
from timeripple.hooks import disable, enable, family_of
from timeripple.inspection import attention_maps as maps
from timeripple.inspection.correlations import correlation_table
from timeripple.pond.autoencoder import to_video
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
    pipeline: DiffusionPipeline,
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
    return _capture(pipeline, request, steps, layers, on_step, should_stop)[0]


def inspect_request(
    pipeline: DiffusionPipeline,
    request: Request,
    steps: Collection[int],
    folder: Path,
    *,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Inspection:
    """Generate densely to the end, keep q, k and v of all layers at `steps` (from 0) in `folder`, and the clip.

    Callbacks and errors as in `capture`.
    """
    kept = {*steps, request.steps - 1}  # the last one, so that the clip is finished
    captures, video = _capture(pipeline, request, kept, None, on_step, should_stop)
    assert video is not None  # as the last step is among them
    return _keep(captures, to_frames(video), request.steps, folder)


def inspect_clip(
    pipeline: PondPipeline,
    clip: np.ndarray,
    num_inference_steps: int,
    steps: Collection[int],
    seed: int,
    folder: Path,
    *,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Inspection:
    """Look at any clip, uint8 [F, H, W, 3], as the model sees it at `steps` (from 0) of a run.

    The clip is encoded, noise of `seed` is mixed in as it would be at each of the steps, and the transformer runs
    once, told nothing about the content. Callbacks as in `capture`. Raises ValueError for sizes and steps that cannot
    be generated.
    """
    frames, height, width, _ = clip.shape
    pipeline.check_inputs(frames, height, width, num_inference_steps)
    _check_steps(steps, num_inference_steps)
    config = CaptureConfig(frozenset(steps), None)
    clean = pipeline.encode(to_video(clip).to(pipeline.device)).float()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
    with _enabled(pipeline, config):
        for done, step in enumerate(sorted(steps), start=1):
            if should_stop is not None and should_stop():
                raise Cancelled
            pipeline.denoise_once(clean, noise, step, num_inference_steps)
            if on_step is not None:
                on_step(done, len(steps))
    return _keep(config.captures, clip, num_inference_steps, folder)


@dataclass(frozen=True)
class Inspection:
    """What was kept of a run or a clip, in a folder; one layer is read at a time.

    steps: of the whole run; kept: those that can be looked at, from 0; layers: names, in the order of the model.
    """

    folder: Path
    grid: TokenGrid
    steps: int
    kept: tuple[int, ...]
    layers: tuple[str, ...]

    @property
    def frames(self) -> np.ndarray:
        """The clip, uint8 [F, H, W, 3]."""
        return np.load(self.folder / "frames.npy")

    def qkv(self, step: int, layer: int, head: int | slice = slice(None)) -> Tensor:
        """q, k and v of a layer after RoPE, float32 [3, heads, tokens, d], or of one head, [3, tokens, d]."""
        kept = np.load(self.folder / f"{step}-{layer}.npy", mmap_mode="r")
        return torch.from_numpy(kept[:, head].astype(np.float32))


def _keep(captures: list[Capture], frames: np.ndarray, steps: int, folder: Path) -> Inspection:
    """One file a step and layer, STEP-LAYER.npy: q, k and v of the first batch entry, float16 [3, heads, tokens, d]."""
    layers = tuple(dict.fromkeys(c.layer for c in captures))
    np.save(folder / "frames.npy", frames)
    for c in captures:
        qkv = torch.stack([c.query[0], c.key[0], c.value[0]]).to(torch.float16)
        np.save(folder / f"{c.step}-{layers.index(c.layer)}.npy", qkv.cpu().numpy())
    return Inspection(folder, captures[0].grid, steps, tuple(sorted({c.step for c in captures})), layers)


class _Seen(Exception):
    """There is nothing more to see in this run."""


def _capture(
    pipeline: DiffusionPipeline,
    request: Request,
    steps: Collection[int],
    layers: Collection[str] | None,
    on_step: Callable[[int, int], None] | None,
    should_stop: Callable[[], bool] | None,
) -> tuple[list[Capture], Tensor | None]:
    """Captures, and the clip [1, F, 3, H, W] if the last step is among the steps."""
    request.check(pipeline)
    _check_steps(steps, request.steps)
    config = CaptureConfig(frozenset(steps), None if layers is None else frozenset(layers))

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(step + 1, max(steps) + 1)
        if should_stop is not None and should_stop():
            raise Cancelled
        if max(steps) <= step < request.steps - 1:
            raise _Seen
        return tensors

    video = None
    with (
        _enabled(pipeline, config),
        suppress(_Seen),
        freed(pipeline),
        pipelines.prepared(pipeline, request.guidance_scale),
        pipelines.followed(pipeline, after_step) as follow,
    ):
        video = pipeline(**request.arguments(pipeline), **follow).frames
    return config.captures, video


def _check_steps(steps: Collection[int], total: int) -> None:
    if not steps or not 0 <= min(steps) <= max(steps) < total:
        raise ValueError(f"The steps are {sorted(steps)}; give some from 0 to {total - 1}.")


@contextmanager
def _enabled(pipeline: DiffusionPipeline, config: CaptureConfig) -> Iterator[None]:
    enable(pipeline, config)
    try:
        yield
    finally:
        disable(pipeline)


def rope_frequencies(transformer: Any) -> list[tuple[str, float]]:
    """Of every channel of a head: the axis RoPE turns it with, and by how many radians per token.

    Channels lie in pairs, and pair i of an axis with d channels turns by theta^(-2 i / d), theta 10,000 unless the
    model says otherwise. Empty for models whose channels mix axes.
    """
    family = family_of(transformer)
    groups = family.rope(transformer) if family else {}
    theta = getattr(transformer.config, "rope_theta", 10_000)
    return [
        (axis, theta ** (-2 * (channel // 2) / (group.stop - group.start)))
        for axis, group in groups.items()
        for channel in range(group.stop - group.start)
    ]


def probe_report(
    pipeline: DiffusionPipeline,
    request: Request,
    steps: Collection[int],
    *,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """What a dense run shows at `steps` (from 0): rows, see `correlation_report`; heads, see `head_report`; channels:
    axis and radians per token of each; kind; environment. Callbacks and errors as in `capture`."""
    captures = capture(pipeline, request, steps, on_step=on_step, should_stop=should_stop)
    return {
        "rows": correlation_report(captures),
        "heads": head_report(captures),
        "channels": [{"axis": axis, "radians": radians} for axis, radians in rope_frequencies(pipeline.transformer)],
        "kind": "measured here",
        "environment": environment(pipeline),
    }


def attention_report(
    pipeline: DiffusionPipeline,
    request: Request,
    step: int,
    layer: int,
    head: int,
    place: tuple[int, int, int],
    config: ReuseConfig,
    *,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """What the token at `place` = (t, y, x) attends to in a dense run at `step`, all counted from 0.

    dense, reuse: its attention to every video token as [t][y][x] lists, and with the plan that saves the config's
    budget in this call; sharing: how many keys share the one that stands for each, 1 where it is computed; map: of the
    head, at most 256 x 256 cells, see `averaged_map`; head: a row of `head_report`. Callbacks as in `capture`. Raises
    ValueError, one sentence, for a layer, head or place that does not exist.
    """
    model = pipeline.transformer.config
    for name, value, count in (("layer", layer, model.num_layers), ("head", head, model.num_attention_heads)):
        if not 0 <= value < count:
            raise ValueError(f"The {name} is {value}; give one from 0 to {count - 1}.")
    captures = capture(pipeline, request, [step], on_step=on_step, should_stop=should_stop)
    seen, grid = captures[layer], captures[layer].grid
    if not all(0 <= at < size for at, size in zip(place, grid.shape, strict=True)):
        raise ValueError(f"The token is {place}; the grid is {grid.shape} (t, y, x), counted from 0.")
    query, key = (side[0, head : head + 1].float() for side in (seen.query, seen.key))
    token = grid.text_before + (place[0] * grid.height + place[1]) * grid.width + place[2]
    reused, sharing = maps.reused_row(query, key, token, maps.plan_at(query, key, grid, config))

    def on_grid(row: Tensor) -> list[Any]:
        return grid.unflatten(row[0, grid.video, None])[..., 0].tolist()

    return {
        "grid": list(grid.shape),
        "dense": on_grid(maps.attention_row(query, key, token)),
        "reuse": on_grid(reused),
        "sharing": on_grid(sharing),
        "map": maps.averaged_map(query[0], key[0], grid)[0].tolist(),
        "head": head_report([seen])[head],
        "method": config.text,
        "kind": "measured here",
        "environment": environment(pipeline),
    }


def correlation_report(captures: list[Capture], lags: tuple[int, ...] = (1, 2, 3, 4)) -> list[dict[str, Any]]:
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


def head_report(captures: list[Capture]) -> list[dict[str, Any]]:
    """One row a step, layer and head: step, layer, head, spatial, temporal and entropy, as `head_scores` gives them,
    rounded to 4 digits, and kind, see `head_kind`."""
    rows = []
    for c in captures:
        scores = maps.head_scores(c.query[0].float().cpu(), c.key[0].float().cpu(), c.grid)
        for head in range(c.query.shape[1]):
            numbers = {name: round(values[head].item(), 4) for name, values in scores.items()}
            kind = maps.head_kind(numbers["spatial"], numbers["temporal"])
            rows.append({"step": c.step, "layer": c.layer, "head": head} | numbers | {"kind": kind})
    return rows


@dataclass(frozen=True)
class CaptureConfig:
    """What `hooks.enable` takes in place of a method: dense attention that keeps its inputs in `captures`."""

    steps: frozenset[int]
    layers: frozenset[str] | None
    captures: list[Capture] = field(default_factory=list)
    label = "capture"
    granularity: ClassVar[None] = None
    kind: ClassVar[Kind] = "realised"

    def schedule(self, num_inference_steps: int) -> tuple[Step, ...]:
        return dense_steps(num_inference_steps)

    def start(self, num_inference_steps: int) -> CaptureRun:
        return CaptureRun(self)


class CaptureRun:
    """Used by the hooks like a `ReuseRun`."""

    held_bytes = 0
    _first: str | None = None

    def __init__(self, config: CaptureConfig):
        self.config = config
        self.records: list[dict[str, Any]] = []

    def begin_forward(self, pass_name: str, step_index: int) -> None:
        self._first = self._first or pass_name
        self._wanted = pass_name == self._first and step_index in self.config.steps
        self._step = step_index

    def attention(self, layer: str, call: AttentionCall) -> Tensor:
        if self._wanted and (self.config.layers is None or layer in self.config.layers):
            seen = (call.query, call.key, call.value)
            query, key, value = (x.detach().clone(memory_format=torch.contiguous_format) for x in seen)
            self.config.captures.append(Capture(self._step, layer, query, key, value, call.grid))
        return dense_attention(call)

    def skipped(self, layer: str, heads: int) -> None:
        """Nothing to note."""

    def end_forward(self) -> None:
        """Nothing to close."""

    def saving(self) -> None:
        """Nothing is saved."""
