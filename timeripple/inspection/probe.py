"""What attention sees: query, key and value of chosen layers at chosen denoising steps, of a run or of any clip."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.grid import TokenGrid
from timeripple.attention.method import Kind, Step, dense_steps
from timeripple.attention.torch_backend import dense_attention
from timeripple.clips import pipelines
from timeripple.clips.generate import Cancelled, Request, stoppable, to_frames
from timeripple.clips.pipelines import freed
from timeripple.hooks import disable, enable, family_of
from timeripple.pond.autoencoder import TEMPORAL_FACTOR, to_video
from timeripple.pond.pipeline import PondPipeline, latent_frames

FACTS = "inspection.json"


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
    return _capture(pipeline, request, steps, layers, on_step, should_stop, to_the_end=False)[0]


def inspect_request(
    pipeline: DiffusionPipeline,
    request: Request,
    steps: Collection[int],
    folder: Path,
    *,
    bits: int = 16,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Inspection:
    """Generate densely to the end, keep q, k and v of all layers at `steps` (from 0) in `folder`, and the clip.

    bits: 16 or 8 a number, see `Inspection`. Callbacks and errors as in `capture`.
    """
    captures, video = _capture(pipeline, request, steps, None, on_step, should_stop, to_the_end=True)
    assert video is not None
    channels = rope_frequencies(pipeline.transformer)
    return _keep(captures, to_frames(video), request.steps, channels, folder, bits)


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
    once, told nothing about the content. Up to three frames at its end are left out, so that what is left is a whole
    number of latent frames. Callbacks as in `capture`. Raises ValueError for sizes and steps that cannot be generated,
    and clips of fewer than five frames.
    """
    if len(clip) <= TEMPORAL_FACTOR:
        raise ValueError(f"The clip has {len(clip)} frames; take one of at least {TEMPORAL_FACTOR + 1}.")
    clip = clip[: TEMPORAL_FACTOR * (latent_frames(len(clip)) - 1) + 1]
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
    return _keep(config.captures, clip, num_inference_steps, rope_frequencies(pipeline.transformer), folder)


@dataclass(frozen=True)
class Inspection:
    """What was kept of a run or a clip, in a folder; one layer is read at a time.

    steps: of the whole run; kept: those that can be looked at, from 0; layers: names, in the order of the model;
    channels: axis and radians a token of each channel of a head, see `rope_frequencies`. Numbers are kept in 16 bits,
    or as 8-bit integers with a scale for every channel, which are within 0.4 % of the largest in it.
    """

    folder: Path
    grid: TokenGrid
    steps: int
    kept: tuple[int, ...]
    layers: tuple[str, ...]
    channels: tuple[tuple[str, float], ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Inspection:
        """What `save` wrote. Raises OSError where it cannot be read."""
        told = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        channels = tuple((axis, radians) for axis, radians in told["channels"])
        grid, kept, layers = TokenGrid(**told["grid"]), tuple(told["kept"]), tuple(told["layers"])
        return cls(folder, grid, told["steps"], kept, layers, channels)

    def save(self, **facts: Any) -> None:
        """Writes what `load` reads beside the numbers, which are in the folder already; facts: more to say of the
        run, as JSON can hold it."""
        told = {name: value for name, value in asdict(self).items() if name != "folder"}
        (self.folder / FACTS).write_text(json.dumps(told | facts, indent=2) + "\n", encoding="utf-8")

    @property
    def heads(self) -> int:
        """Of a layer."""
        return int(np.load(self._file(self.kept[0], 0), mmap_mode="r").shape[1])

    @property
    def frames(self) -> np.ndarray:
        """The clip, uint8 [F, H, W, 3]."""
        return np.load(self.folder / "frames.npy")

    def qkv(self, step: int, layer: int, head: int | slice = slice(None)) -> Tensor:
        """q, k and v of a layer after RoPE, float32 [3, heads, tokens, d], or of one head, [3, tokens, d]."""
        kept = np.load(self._file(step, layer), mmap_mode="r")[:, head].astype(np.float32)
        if (scales := self._file(step, layer, "scales")).exists():
            kept *= np.load(scales)[:, head]
        return torch.from_numpy(kept)

    def _file(self, step: int, layer: int, of: str = "") -> Path:
        return self.folder / f"{step}-{layer}{of and '-'}{of}.npy"


def _keep(
    captures: list[Capture],
    frames: np.ndarray,
    steps: int,
    channels: list[tuple[str, float]],
    folder: Path,
    bits: int = 16,
) -> Inspection:
    """One file a step and layer, STEP-LAYER.npy: q, k and v of the first batch entry, [3, heads, tokens, d], float16,
    or int8 and STEP-LAYER-scales.npy, float32 [3, heads, 1, d]."""
    if bits not in (8, 16):
        raise ValueError(f"{bits} bits are no size that numbers are kept in; give 8 or 16.")
    layers = tuple(dict.fromkeys(c.layer for c in captures))
    kept = tuple(sorted({c.step for c in captures}))
    seen = Inspection(folder, captures[0].grid, steps, kept, layers, tuple(channels))
    for earlier in (path for path in folder.iterdir() if re.fullmatch(r"\d+-\d+(-scales)?\.npy", path.name)):
        earlier.unlink()
    np.save(folder / "frames.npy", frames)
    for c in captures:
        qkv, place = torch.stack([c.query[0], c.key[0], c.value[0]]).float().cpu(), (c.step, layers.index(c.layer))
        if bits == 8:
            scales = (qkv.abs().amax(2, keepdim=True) / 127).clamp(min=1e-12)
            np.save(seen._file(*place, "scales"), scales.numpy())
            np.save(seen._file(*place), (qkv / scales).round().to(torch.int8).numpy())
        else:
            np.save(seen._file(*place), qkv.to(torch.float16).numpy())
    return seen


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


class _Seen(Exception):
    """There is nothing more to see in this run."""


def _capture(
    pipeline: DiffusionPipeline,
    request: Request,
    steps: Collection[int],
    layers: Collection[str] | None,
    on_step: Callable[[int, int], None] | None,
    should_stop: Callable[[], bool] | None,
    to_the_end: bool,
) -> tuple[list[Capture], Tensor | None]:
    """Captures, and the clip [1, F, 3, H, W] if the run goes to the end or the last step is among the steps."""
    request.check(pipeline)
    _check_steps(steps, request.steps)
    config = CaptureConfig(frozenset(steps), None if layers is None else frozenset(layers))

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(step + 1, max(steps) + 1)
        if should_stop is not None and should_stop():
            raise Cancelled
        if not to_the_end and max(steps) <= step < request.steps - 1:
            raise _Seen
        return tensors

    video = None
    with (
        _enabled(pipeline, config),
        suppress(_Seen),
        freed(pipeline),
        stoppable(pipeline, should_stop),
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
        return CaptureRun(self, self.schedule(num_inference_steps))


class CaptureRun:
    """Used by the hooks like a `ReuseRun`."""

    held_bytes = 0
    _first: str | None = None

    def __init__(self, config: CaptureConfig, steps: tuple[Step, ...]):
        self.config, self.steps = config, steps
        self.records: list[dict[str, Any]] = []

    def begin_forward(self, pass_name: str, step_index: int) -> None:
        self._first = self._first or pass_name
        self._wanted = pass_name == self._first and step_index in self.config.steps
        self._step = step_index

    def attention(self, layer: str, call: AttentionCall) -> Tensor:
        if self._wanted and (self.config.layers is None or layer in self.config.layers):
            seen = (call.query, call.key, call.value)
            query, key, value = (x.detach().clone() for x in seen)
            self.config.captures.append(Capture(self._step, layer, query, key, value, call.grid))
        return dense_attention(call)

    def skipped(self, layer: str, heads: int) -> None:
        """Nothing to note."""

    def end_forward(self) -> None:
        """Nothing to close."""
