"""One prompt, one method: frames, measured seconds and savings."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from timeripple.attention.timing import Stopwatch
from timeripple.clips import pipelines
from timeripple.clips.methods import Method, blocks_of, is_compiled
from timeripple.clips.quality import flaw
from timeripple.clips.solvers import evaluations
from timeripple.hooks import shortfall, transformers, turns
from timeripple.pond.autoencoder import TEMPORAL_FACTOR
from timeripple.pond.pipeline import PondPipeline

MAX_STEPS, MAX_SEED, MAX_GUIDANCE = 200, 2**32 - 1, 30


class Cancelled(Exception):
    """The caller asked to stop before the clip was finished."""


class BrokenClip(ValueError):
    """No clip came of a method; the message is one sentence that names it, and the step."""


@dataclass(frozen=True)
class Request:
    """What to generate. Sizes in pixels; `seed` fixes the initial noise; true_cfg_scale: guidance by a second pass in
    pipelines whose guidance_scale is an input of the model, 1 for none; image, video: paths of files to begin with, ""
    for none; strength: how far video to video goes from its video, or as the pipeline takes it, None for its own.
    Lone surrogates, which no file can hold, are replaced in the prompts."""

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 20
    num_frames: int = 33
    height: int = 192
    width: int = 192
    guidance_scale: float = 3.0
    true_cfg_scale: float = 1.0
    image: str = ""
    video: str = ""
    strength: float | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            object.__setattr__(self, name, text)

    @property
    def size(self) -> pipelines.Size:
        """Frames, height and width."""
        return self.num_frames, self.height, self.width

    def grid(self, pipeline: DiffusionPipeline) -> tuple[int, int, int]:
        """(t, y, x) sizes in video tokens, as attention will see them: of Pond every position of the latent clip, of
        other pipelines by the factors of their autoencoder and patches."""
        temporal, spatial = pipelines.factors(pipeline)
        latent = (self.num_frames - 1) // temporal + 1, self.height // spatial, self.width // spatial
        frames, height, width = (
            max(1, size // edge) for size, edge in zip(latent, pipelines.patch_of(pipeline), strict=True)
        )
        return frames, height, width

    def tokens(self, pipeline: DiffusionPipeline) -> int:
        """Video tokens that attention will see, see `grid`."""
        return math.prod(self.grid(pipeline))

    @classmethod
    def for_pipeline(cls, pipeline: DiffusionPipeline, prompt: str, **given: Any) -> "Request":
        """What is not given, or None, is what the pipeline itself takes by default, or as long as the video given.

        Sizes that the pipeline cannot make are rounded as it does it, with a warning that says so.
        """
        told = {name: value for name, value in given.items() if value is not None}
        by_input = pipelines.sizes_by_input(pipeline, told.get("image"), told.get("video"), told.get("num_frames"))
        request = cls(prompt, **pipelines.defaults(pipeline) | told | by_input)
        if min(request.size) < 1:
            return request  # which `check` refuses
        made = pipelines.made(pipeline, request.size)
        sizes: dict[str, Any] = dict(zip(("num_frames", "height", "width"), made, strict=True))
        if others := [f"{name} {told[name]}" for name in sizes if told.get(name, sizes[name]) != sizes[name]]:
            text = f"{pipelines.size_text(made)}, where {' and '.join(others)} was asked for"
            warnings.warn(f"{pipelines.kind(pipeline)} makes {text}.", stacklevel=2)
        if pipelines.made(pipeline, made) != made:  # some make another length than they are asked for
            sizes["num_frames"] = request.num_frames
        return replace(request, **sizes)

    def by(self, method: Method) -> "Request":
        """This request as a method with steps of its own takes it."""
        return replace(self, steps=method.steps or self.steps)

    def evaluations(self, pipeline: DiffusionPipeline, method: Method) -> int:
        """How often the denoiser is asked by a method, of one guidance pass."""
        steps = pipelines.denoising_steps(pipeline, self.by(method).steps, self.strength)
        return evaluations(method.solver, steps)

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Raise ValueError (PromptError for prompts), one sentence each, for what `pipeline` cannot generate; of others
        than Pond's only what holds for all is known before they run."""
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"The seed is {self.seed}; give a whole number from 0 to {MAX_SEED}.")
        if not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"The number of steps is {self.steps}; give 1 to {MAX_STEPS}, such as 20.")
        for name, scale in (("guidance scale", self.guidance_scale), ("true guidance", self.true_cfg_scale)):
            if not (math.isfinite(scale) and 0 <= scale <= MAX_GUIDANCE):
                raise ValueError(f"The {name} is {scale}; give 0 to {MAX_GUIDANCE}, such as 3.")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"The strength is {self.strength}; give a number above 0 and up to 1, such as 0.8.")
        if self.strength not in (None, 1) and "strength" not in pipelines.parameters(pipeline):
            raise ValueError(f"{pipelines.kind(pipeline)} has no strength; leave it out.")
        pipelines.check_inputs(pipeline, self.image, self.video)
        if isinstance(pipeline, PondPipeline):
            pipeline.check_inputs(self.num_frames, self.height, self.width, self.steps)
            pipeline.encode_prompt(self.prompt, self.negative_prompt)
            return
        if not self.prompt.strip():
            raise ValueError("The prompt is empty; say what to show.")
        if self.num_frames < 1:
            raise ValueError(f"The number of frames is {self.num_frames}; give at least 1.")
        _, *possible = pipelines.made(pipeline, self.size)
        for name, size, near in zip(("height", "width"), (self.height, self.width), possible, strict=True):
            if size != near:
                raise ValueError(
                    f"The {name} is {size} pixels, which {pipelines.kind(pipeline)} cannot make; give {near}."
                )
        if not pipelines.denoising_steps(pipeline, self.steps, self.strength):
            fewest = pipelines.fewest_steps(pipeline, self.strength)
            raise ValueError(f"Of {self.steps} steps {pipelines.kind(pipeline)} makes none; give at least {fewest}.")
        if "true_cfg_scale" in pipelines.parameters(pipeline) and self.negative_prompt and self.true_cfg_scale <= 1:
            raise ValueError(
                f"{pipelines.kind(pipeline)} heeds a negative prompt only with true guidance; give a scale above 1."
            )

    def arguments(self, pipeline: DiffusionPipeline) -> dict[str, Any]:
        """What the pipeline is called with, for frames as a tensor; the noise is drawn on the CPU, so that it is the
        same on every device. A negative prompt that says nothing is left to the pipeline, unless it is what switches
        true guidance on."""
        accepted = pipelines.parameters(pipeline)
        wanted = {
            "prompt": self.prompt,
            "num_frames": self.num_frames,
            "height": self.height,
            "width": self.width,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "true_cfg_scale": self.true_cfg_scale,
            "strength": self.strength,
            "seed": self.seed,  # of pipelines that draw some noise by it
            "generator": torch.Generator().manual_seed(self.seed),
            "output_type": "pt",
        }
        if self.negative_prompt or ("true_cfg_scale" in accepted and self.true_cfg_scale > 1):
            wanted["negative_prompt"] = self.negative_prompt
        chosen = {name: value for name, value in wanted.items() if name in accepted and value is not None}
        return chosen | pipelines.inputs(pipeline, self.image, self.video, self.size)


@dataclass(frozen=True)
class StepEvent:
    """Progress after a denoising step.

    step: finished steps, from 1, of `steps`: as often as the solver asks the denoiser, in a clip that is made in
    sections those of the sections begun. seconds: so far, in this method; preview: the middle frame of the clip as the
    model expects it to become, uint8 [H, W, 3].
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
    flaw: see `quality.flaw`. step_seconds: of every denoising step; together they are denoise. rounds: the seconds of
    every time that the clip was made, of which `seconds` are the medians; empty where it was made once.
    """

    method: Method
    frames: np.ndarray
    seconds: dict[str, float]
    saving: dict[str, Any] | None
    summary: dict[str, Any]
    flaw: str | None = None
    step_seconds: tuple[float, ...] = ()
    rounds: tuple[dict[str, float], ...] = ()

    @property
    def shortfall(self) -> str | None:
        """See `hooks.shortfall`."""
        return shortfall(self.method.config, self.summary)


def generate(
    pipeline: DiffusionPipeline,
    request: Request,
    method: Method,
    *,
    on_step: Callable[[StepEvent], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Generation:
    """Generate one clip, in the method's own number of steps if it has one.

    on_step is called after every denoising step. should_stop is asked before every block of the transformer and after
    every step; once it says True, Cancelled is raised. Raises what `Request.check` and the method's settings raise.
    """
    request = request.by(method)
    request.check(pipeline)
    if should_stop is not None and should_stop():
        raise Cancelled
    watch = Stopwatch(pipeline._execution_device)
    text_seconds: float | None = None
    step_seconds: list[float] = []
    step_input: torch.Tensor | None = None
    denoised_seconds = 0.0
    done = steps = 0
    all_steps = pipelines.denoising_steps(pipeline, request.steps, request.strength)

    def before_forward(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal text_seconds, step_input
        if text_seconds is None:
            text_seconds = watch.seconds
        step_input = kwargs.get("hidden_states")

    def after_step(pipe: DiffusionPipeline, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal denoised_seconds, done, steps
        done += 1
        steps = max(steps, done + (turns(pipe) or all_steps) - index - 1)
        with watch.paused():
            if not tensors["latents"].isfinite().all():
                raise _broken(method, f"at step {done} of {steps}")
            if on_step is not None:
                seconds = watch.seconds
                preview = _preview(pipe, index, step_input, tensors.get("velocity"))
                on_step(StepEvent(method.label, done, steps, seconds, seconds / done * (steps - done), preview))
            if should_stop is not None and should_stop():
                raise Cancelled
        begun, denoised_seconds = denoised_seconds or text_seconds or 0.0, watch.seconds
        step_seconds.append(denoised_seconds - begun)
        return {}

    def after_decoding(module: Any, args: Any, output: Any) -> None:
        with watch.paused():
            if not (output[0] if isinstance(output, tuple) else output).isfinite().all():
                raise _broken(method, "in decoding, after the last step")

    # The pipelines of other models have no velocity to tell, and no preview.
    seen = {"callback_on_step_end_tensor_inputs": ["latents", "velocity"]} if isinstance(pipeline, PondPipeline) else {}
    with ExitStack() as hooks:
        for model in transformers(pipeline):
            hooks.enter_context(model.register_forward_pre_hook(before_forward, with_kwargs=True))
        if isinstance(decoder := getattr(pipeline.vae, "decoder", None), torch.nn.Module):
            hooks.enter_context(decoder.register_forward_hook(after_decoding))
        summarise = hooks.enter_context(method.applied(pipeline, all_steps, warn_of_shortfall=False))
        with (
            pipelines.freed(pipeline),
            stoppable(pipeline, should_stop),
            pipelines.prepared(pipeline, request.guidance_scale),
            pipelines.followed(pipeline, after_step) as follow,
        ):
            video = pipelines.generated(pipeline, request.arguments(pipeline) | follow | seen)
        summary = summarise()
    total = watch.seconds
    if not video.isfinite().all():
        raise _broken(method, "in decoding, after the last step")
    text = text_seconds or 0.0
    seconds = {
        "total": total,
        "text": text,
        "denoise": denoised_seconds - text,
        "attention": summary["seconds"]["attention"],
        "plan": summary["seconds"]["plan"],
        "decode": total - denoised_seconds,
    }
    frames = to_frames(video)
    return Generation(method, frames, seconds, summary["saving"], summary, flaw(frames), tuple(step_seconds))


def _broken(method: Method, where: str) -> BrokenClip:
    remedy = "another dtype, such as float32" if method.label == "dense" else "dense, a smaller budget or another dtype"
    return BrokenClip(
        f"{method.label} gave numbers that are not finite (NaN or infinite) {where}, so there is no clip of it; "
        f"try {remedy}."
    )


@contextmanager
def stoppable(pipeline: DiffusionPipeline, should_stop: Callable[[], bool] | None) -> Iterator[None]:
    """Inside the block a forward pass, which may take many seconds, ends with Cancelled before the next block of the
    transformer once `should_stop` says True. Blocks are what lies in the transformer's lists of modules and is not
    compiled."""

    def before_block(module: Any, args: Any) -> None:
        if should_stop is not None and should_stop():
            raise Cancelled

    blocks = [] if should_stop is None else [block for block in blocks_of(pipeline) if not is_compiled(block)]
    with ExitStack() as watched:
        for block in blocks:
            watched.enter_context(block.register_forward_pre_hook(before_block))
        yield


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
    None for models of other kinds than Pond.

    Flow matching moves along x = (1 - sigma) * clean + sigma * noise, with velocity noise - clean; so
    clean = x - sigma * velocity.
    """
    if not isinstance(pipe, PondPipeline) or before is None or velocity is None:
        return None
    middle = TEMPORAL_FACTOR * (velocity.shape[2] - 1) // 2
    last = math.ceil(middle / TEMPORAL_FACTOR)
    shown = slice(max(0, last - 1), last + 1)  # the latent frame that holds it, and the one before
    before = before[:1, : velocity.shape[1], shown].to(velocity.dtype)  # without coordinates
    frames = to_frames(pipe.decode(before - float(pipe.scheduler.sigmas[index]) * velocity[:1, :, shown]))
    return frames[middle - TEMPORAL_FACTOR * shown.start]
