"""One prompt, one method: frames, measured seconds and savings."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from timeripple.attention.timing import Stopwatch
from timeripple.clips.methods import Method
from timeripple.hooks import transformers
from timeripple.pond.pipeline import SPATIAL_FACTOR, PondPipeline

MAX_STEPS, MAX_SEED, MAX_GUIDANCE = 200, 2**32 - 1, 30
SIZE_STEP = 16  # pixels: what autoencoders and patches of all supported models divide


class Cancelled(Exception):
    """The caller asked to stop before the clip was finished."""


@dataclass(frozen=True)
class Request:
    """What to generate. Sizes in pixels; `seed` fixes the initial noise."""

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 20
    num_frames: int = 16
    height: int = 128
    width: int = 128
    guidance_scale: float = 3.0

    def tokens(self, pipeline: DiffusionPipeline) -> int:
        """Video tokens that attention will see: of Pond every position of the latent clip, of other pipelines by the
        factors of their autoencoder and patches."""
        if isinstance(pipeline, PondPipeline):
            return self.num_frames * (self.height // SPATIAL_FACTOR) * (self.width // SPATIAL_FACTOR)
        spatial = _attribute(pipeline, 8, "vae_scale_factor_spatial", "vae_spatial_compression_ratio",
                             "vae_spatial_scale_factor")  # fmt: skip
        temporal = _attribute(pipeline, 4, "vae_scale_factor_temporal", "vae_temporal_compression_ratio",
                              "vae_temporal_scale_factor")  # fmt: skip
        config = transformers(pipeline)[0].config
        patch = getattr(config, "patch_size", 1)
        patch = (getattr(config, "patch_size_t", None) or 1, patch, patch) if isinstance(patch, int) else tuple(patch)
        latent = (self.num_frames - 1) // temporal + 1, self.height // spatial, self.width // spatial
        return math.prod(max(1, size // edge) for size, edge in zip(latent, patch, strict=True))

    @classmethod
    def for_pipeline(cls, pipeline: DiffusionPipeline, prompt: str, **given: Any) -> "Request":
        """What is not given, or None, is what the pipeline itself takes by default."""
        parameters = inspect.signature(pipeline.__call__).parameters
        names = {"steps": "num_inference_steps"}
        defaults = {
            name: parameters[theirs].default
            for name in ("steps", "num_frames", "height", "width", "guidance_scale")
            if (theirs := names.get(name, name)) in parameters and parameters[theirs].default is not None
        }
        return cls(prompt, **{**defaults, **{name: value for name, value in given.items() if value is not None}})

    def by(self, method: Method) -> "Request":
        """This request as a method with steps of its own takes it."""
        return replace(self, steps=method.steps or self.steps)

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Raise ValueError (PromptError for prompts), one sentence each, for what `pipeline` cannot generate.

        Of pipelines other than Pond's only what holds for all is known before they run.
        """
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"The seed is {self.seed}; give a whole number from 0 to {MAX_SEED}.")
        if not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"The number of steps is {self.steps}; give 1 to {MAX_STEPS}, such as 20.")
        if not (math.isfinite(self.guidance_scale) and 0 <= self.guidance_scale <= MAX_GUIDANCE):
            raise ValueError(f"The guidance scale is {self.guidance_scale}; give 0 to {MAX_GUIDANCE}, such as 3.")
        if isinstance(pipeline, PondPipeline):
            pipeline.check_inputs(self.num_frames, self.height, self.width, self.steps)
            pipeline.encode_prompt(self.prompt, self.negative_prompt)
            return
        if not self.prompt.strip():
            raise ValueError("The prompt is empty; say what to show.")
        if self.num_frames < 1:
            raise ValueError(f"The number of frames is {self.num_frames}; give at least 1.")
        for name, size in (("height", self.height), ("width", self.width)):
            if size < SIZE_STEP or size % SIZE_STEP:
                raise ValueError(f"The {name} is {size}; give a multiple of {SIZE_STEP} pixels.")

    def arguments(self, pipeline: DiffusionPipeline) -> dict[str, Any]:
        """What the pipeline is called with, for frames as a tensor; the noise is drawn on the CPU, so that it is the
        same on every device. A negative prompt goes to pipelines that take one, and to others than Pond's if said."""
        accepted = inspect.signature(pipeline.__call__).parameters
        wanted = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt or (None if not isinstance(pipeline, PondPipeline) else ""),
            "num_frames": self.num_frames,
            "height": self.height,
            "width": self.width,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "generator": torch.Generator().manual_seed(self.seed),
            "output_type": "pt",
        }
        return {name: value for name, value in wanted.items() if name in accepted}


@dataclass(frozen=True)
class StepEvent:
    """Progress after a denoising step.

    step: finished steps, from 1, of `steps`: as often as the solver asks the denoiser. seconds: so far, in this method;
    preview: the middle frame of the clip as the model expects it to become, uint8 [H, W, 3].
    """

    method: str
    step: int
    steps: int
    seconds: float
    eta_seconds: float
    preview: np.ndarray | None


@dataclass(frozen=True)
class Generation:
    """A clip and what it took.

    frames: uint8 [F, H, W, 3]. seconds, measured: total = text (up to the first denoising step, drawing the noise
    included) + denoise + decode; attention (self-attention after projections) is a part of denoise, and plan (deciding
    what to reuse) a part of attention. Previews and callbacks are not counted. saving, summary: see `hooks.summary`.
    """

    method: Method
    frames: np.ndarray
    seconds: dict[str, float]
    saving: dict[str, Any] | None
    summary: dict[str, Any]


def generate(
    pipeline: DiffusionPipeline,
    request: Request,
    method: Method,
    *,
    on_step: Callable[[StepEvent], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Generation:
    """Generate one clip, in the method's own number of steps if it has one.

    on_step is called after every denoising step. should_stop is asked before the first and after every step; once it
    says True, Cancelled is raised. Raises what `Request.check` and the method's settings raise.
    """
    request = request.by(method)
    request.check(pipeline)
    steps = method.evaluations(request.steps)
    if should_stop is not None and should_stop():
        raise Cancelled
    watch = Stopwatch(pipeline._execution_device)
    text_seconds: float | None = None
    step_input: torch.Tensor | None = None
    denoised_seconds = 0.0

    def before_forward(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal text_seconds, step_input
        if text_seconds is None:
            text_seconds = watch.seconds
        step_input = kwargs.get("hidden_states")

    def after_step(
        pipe: DiffusionPipeline, index: int, timestep: torch.Tensor, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        nonlocal denoised_seconds
        with watch.paused():
            if on_step is not None:
                done, seconds = index + 1, watch.seconds
                eta = seconds / done * (steps - done)
                preview = _preview(pipe, index, step_input, tensors.get("velocity"))
                on_step(StepEvent(method.label, done, steps, seconds, eta, preview))
            if should_stop is not None and should_stop():
                raise Cancelled
        denoised_seconds = watch.seconds
        return {"latents": tensors["latents"]}

    # The pipelines of other models have no velocity to tell, and no preview.
    seen = {"callback_on_step_end_tensor_inputs": ["latents", "velocity"]} if isinstance(pipeline, PondPipeline) else {}
    hooks = [model.register_forward_pre_hook(before_forward, with_kwargs=True) for model in transformers(pipeline)]
    try:
        with method.applied(pipeline, request.steps) as summarise:
            with freed(pipeline):
                video = pipeline(**request.arguments(pipeline), callback_on_step_end=after_step, **seen).frames
            summary = summarise()
    finally:
        for hook in hooks:
            hook.remove()
    total = watch.seconds
    text = text_seconds or 0.0
    seconds = {
        "total": total,
        "text": text,
        "denoise": denoised_seconds - text,
        "attention": summary["seconds"]["attention"],
        "plan": summary["seconds"]["plan"],
        "decode": total - denoised_seconds,
    }
    return Generation(method, to_frames(video), seconds, summary["saving"], summary)


def _attribute(pipeline: DiffusionPipeline, default: int, *names: str) -> int:
    """The first of the attributes that a pipeline has; families call the same thing otherwise."""
    return next((getattr(pipeline, name) for name in names if hasattr(pipeline, name)), default)


@contextmanager
def freed(pipeline: DiffusionPipeline) -> Iterator[None]:
    """A run that is left inside the block frees what it held, as finished runs do."""
    try:
        yield
    except BaseException:
        pipeline.maybe_free_model_hooks()
        raise


def read_steps(text: str, steps: int) -> set[int]:
    """Denoising steps "5,10", counted from 1, to {4, 9}. Raises ValueError, one sentence, for what is none of them."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= steps for part in parts):
        raise ValueError(f"The steps to look at are {text!r}; give numbers from 1 to {steps}, such as 1,{steps}.")
    return {int(part) - 1 for part in parts}


def to_frames(video: torch.Tensor) -> np.ndarray:
    """[1, F, 3, H, W] in 0..1 to uint8 [F, H, W, 3]."""
    return (video[0].permute(0, 2, 3, 1).float() * 255).round().byte().cpu().numpy()


def _preview(
    pipe: DiffusionPipeline, index: int, before: torch.Tensor | None, velocity: torch.Tensor | None
) -> np.ndarray | None:
    """Middle frame of the estimated clean clip, uint8 [H, W, 3], from the latents before a step and the velocity there;
    None for models whose latents are not decoded frame by frame.

    Flow matching moves along x = (1 - sigma) * clean + sigma * noise, with velocity noise - clean; so
    clean = x - sigma * velocity.
    """
    if not isinstance(pipe, PondPipeline) or before is None or velocity is None:
        return None
    middle = slice(velocity.shape[2] // 2, velocity.shape[2] // 2 + 1)
    before = before[:1, : velocity.shape[1], middle].to(velocity.dtype)  # without coordinates
    return to_frames(pipe.decode(before - float(pipe.scheduler.sigmas[index]) * velocity[:1, :, middle]))[0]
