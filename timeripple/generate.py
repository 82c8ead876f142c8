"""One prompt, one method: frames, measured seconds and savings."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

from timeripple.methods import Method
from timeripple.pond.pipeline import SPATIAL_FACTOR, PondPipeline
from timeripple.timing import Stopwatch

MAX_STEPS, MAX_SEED, MAX_GUIDANCE = 200, 2**32 - 1, 30
POND = Path(__file__).resolve().parent.parent / "assets" / "pond"


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

    @property
    def tokens(self) -> int:
        """Positions of the latent clip; Pond makes one token of each."""
        return self.num_frames * (self.height // SPATIAL_FACTOR) * (self.width // SPATIAL_FACTOR)

    def check(self, pipeline: PondPipeline) -> None:
        """Raise ValueError (PromptError for prompts), one sentence each, for what `pipeline` cannot generate."""
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"The seed is {self.seed}; give a whole number from 0 to {MAX_SEED}.")
        if not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"The number of steps is {self.steps}; give 1 to {MAX_STEPS}, such as 20.")
        if not (math.isfinite(self.guidance_scale) and 0 <= self.guidance_scale <= MAX_GUIDANCE):
            raise ValueError(f"The guidance scale is {self.guidance_scale}; give 0 to {MAX_GUIDANCE}, such as 3.")
        pipeline.check_inputs(self.num_frames, self.height, self.width, self.steps)
        pipeline.encode_prompt(self.prompt, self.negative_prompt)

    def arguments(self) -> dict:
        """What the pipeline is called with, up to the latents; the noise is drawn on the CPU, so that it is the same
        on every device."""
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "num_frames": self.num_frames,
            "height": self.height,
            "width": self.width,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "generator": torch.Generator().manual_seed(self.seed),
            "output_type": "latent",
        }


@dataclass(frozen=True)
class StepEvent:
    """Progress after a denoising step.

    step: finished steps, from 1; seconds: so far, in this method; preview: the middle frame of the clip as the model
    expects it to become, uint8 [H, W, 3].
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
    saving: dict | None
    summary: dict


def load_pipeline(model: str = "pond", device: str = "auto") -> PondPipeline:
    """The bundled model ("pond") or one in a local folder; device "auto" is the GPU where there is one.

    The denoiser computes in bfloat16 where the device has instructions for it, which makes its matrix products
    several times faster, and in float32 elsewhere. Raises ValueError, one sentence, if there is no such model or
    device.
    """
    folder = POND if model == "pond" else Path(model)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f'There is no model at {folder}; give "pond" or a folder that holds model_index.json.')
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        dtypes = {"transformer": fastest_dtype(device), "default": torch.float32}
        pipeline = PondPipeline.from_pretrained(folder, local_files_only=True, dtype=dtypes).to(device)
    except Exception as error:  # whatever a folder that is no model makes diffusers raise
        raise ValueError(f"The model at {folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def fastest_dtype(device: str) -> torch.dtype:
    """bfloat16 where the device multiplies in it, float32 elsewhere."""
    if torch.device(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if native else torch.float32


def generate(
    pipeline: PondPipeline,
    request: Request,
    method: Method,
    *,
    on_step: Callable[[StepEvent], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Generation:
    """Generate one clip.

    on_step is called after every denoising step. should_stop is asked before the first and after every step; once it
    says True, Cancelled is raised. Raises what `Request.check` and the method's settings raise.
    """
    request.check(pipeline)
    stopped = should_stop is not None and should_stop()
    watch = Stopwatch(pipeline.device)
    text_seconds, step_input = None, None

    def before_forward(module, args, kwargs):
        nonlocal text_seconds, step_input
        if text_seconds is None:
            text_seconds = watch.seconds
        step_input = kwargs["hidden_states"][:, : pipeline.transformer.config.out_channels]  # without coordinates

    def after_step(pipe: DiffusionPipeline, index: int, timestep: torch.Tensor, tensors: dict) -> dict:
        nonlocal stopped
        with watch.paused():
            if on_step is not None:
                done, seconds = index + 1, watch.seconds
                eta = seconds / done * (request.steps - done)
                preview = _preview(pipe, index, step_input, tensors["latents"])
                on_step(StepEvent(method.label, done, request.steps, seconds, eta, preview))
            stopped = pipe._interrupt = should_stop is not None and should_stop()
        return tensors

    if stopped:
        raise Cancelled
    hook = pipeline.transformer.register_forward_pre_hook(before_forward, with_kwargs=True)
    try:
        with method.applied(pipeline) as summarise:
            latents = pipeline(**request.arguments(), callback_on_step_end=after_step).frames
            denoised_seconds = watch.seconds
            if stopped:
                raise Cancelled
            summary = summarise()
    finally:
        hook.remove()
    decode_watch = Stopwatch(pipeline.device)
    frames = to_frames(pipeline.decode(latents))
    decode_seconds = decode_watch.seconds
    seconds = {
        "total": denoised_seconds + decode_seconds,
        "text": text_seconds,
        "denoise": denoised_seconds - text_seconds,
        "attention": summary["seconds"]["attention"],
        "plan": summary["seconds"]["plan"],
        "decode": decode_seconds,
    }
    return Generation(method, frames, seconds, summary["saving"], summary)


def read_steps(text: str, steps: int) -> set[int]:
    """Denoising steps "5,10", counted from 1, to {4, 9}. Raises ValueError, one sentence, for what is none of them."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= steps for part in parts):
        raise ValueError(f"The steps to look at are {text!r}; give numbers from 1 to {steps}, such as 1,{steps}.")
    return {int(part) - 1 for part in parts}


def to_frames(video: torch.Tensor) -> np.ndarray:
    """[1, F, 3, H, W] in 0..1 to uint8 [F, H, W, 3]."""
    return (video[0].permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()


def _preview(pipe: DiffusionPipeline, index: int, before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    """Middle frame of the estimated clean clip, uint8 [H, W, 3], from the latents before and after a step.

    Flow matching moves along x = (1 - sigma) * clean + sigma * noise, and an Euler step is x += (change of sigma) * v;
    so v is the step's slope, and clean = x - sigma * v.
    """
    start, end = pipe.scheduler.sigmas[index : index + 2].tolist()
    middle = slice(after.shape[2] // 2, after.shape[2] // 2 + 1)
    before, after = before[:1, :, middle].to(after.dtype), after[:1, :, middle]
    velocity = (after - before) / (end - start)
    return to_frames(pipe.decode(after - end * velocity))[0]
