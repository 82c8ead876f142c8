"""What differs between pipelines of diffusers for who calls them: defaults, sizes, inputs, how steps are seen."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image, UnidentifiedImageError

from timeripple.clips.video import count_frames, read_clip
from timeripple.hooks import transformers
from timeripple.hooks.clock import LEFT_OUT
from timeripple.pond.autoencoder import SPATIAL_FACTOR, TEMPORAL_FACTOR
from timeripple.pond.pipeline import PondPipeline

Size = tuple[int, int, int]
"""Frames, height and width."""
SIXTEENS = ("Wan", "SkyReels", "Hunyuan")  # pipelines that refuse other heights and widths than multiples of 16
VIDEO_INPUTS = ("video", "control_video")
ROUGH = ("LTXI2VLongMultiPromptPipeline",)  # whose callback is not given what is denoised, nor the clip in 0 to 1
MOST_FRAMES = 481  # of a video that says how many there are


def parameters(pipeline: DiffusionPipeline) -> Mapping[str, inspect.Parameter]:
    """What the pipeline can be called with."""
    return inspect.signature(pipeline.__call__).parameters


def kind(pipeline: DiffusionPipeline) -> str:
    return type(pipeline).__name__


def factors(pipeline: DiffusionPipeline) -> tuple[int, int]:
    """Frames and pixels to a latent; families call the same thing otherwise."""
    if isinstance(pipeline, PondPipeline):
        return TEMPORAL_FACTOR, SPATIAL_FACTOR
    temporal = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
    spatial = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor")
    first, second = (
        next((int(getattr(pipeline, name)) for name in names if hasattr(pipeline, name)), default)
        for names, default in ((temporal, 4), (spatial, 8))
    )
    return first, second


def patch_of(pipeline: DiffusionPipeline) -> tuple[int, int, int]:
    """Latents to a token along t, y and x."""
    config = transformers(pipeline)[0].config
    patch = getattr(config, "patch_size", 1)
    return (getattr(config, "patch_size_t", None) or 1, patch, patch) if isinstance(patch, int) else tuple(patch)


# --- Defaults and sizes -----------------------------------------------------------------------------------------------


def defaults(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """What the pipeline takes where it is told nothing: steps, num_frames, height, width, guidance_scale,
    true_cfg_scale and strength, as far as it says; some read them off their transformer or guider."""
    names = ("num_inference_steps", "num_frames", "height", "width", "guidance_scale", "true_cfg_scale", "strength")
    accepted = parameters(pipeline)
    found = {name: accepted[name].default if name in accepted else None for name in names}
    config, (temporal, spatial) = transformers(pipeline)[0].config, factors(pipeline)
    for name in ("height", "width"):
        sample = getattr(config, f"sample_{name}", None)
        found[name] = found[name] or getattr(pipeline, f"default_{name}", None) or (sample and sample * spatial)
    if not found["height"] and hasattr(pipeline, "target_size"):  # HunyuanVideo 1.5
        shape = getattr(pipeline, "default_aspect_ratio", (16, 9))[::-1]
        found |= zip(
            ("height", "width"),
            pipeline.video_processor.calculate_default_height_width(*shape, pipeline.target_size),
            strict=True,
        )
    if sample := getattr(config, "sample_frames", None):
        found["num_frames"] = found["num_frames"] or sample * (temporal if hasattr(pipeline.vae, "kernel") else 1)
    if guider := getattr(pipeline, "guider", None):
        found["guidance_scale"] = guider.guidance_scale
    found["steps"] = found.pop("num_inference_steps")
    return {name: value for name, value in found.items() if value is not None}


def made(pipeline: DiffusionPipeline, asked: Size) -> Size:
    """The size that comes of it where a size is asked for: what autoencoder and patches can make, rounded as the
    pipeline does it, or down where it refuses."""
    frames, height, width = asked
    temporal, spatial = factors(pipeline)
    if isinstance(pipeline, PondPipeline):  # refuses heights and widths itself
        return (frames - 1) // temporal * temporal + 1, height, width
    if hasattr(pipeline.vae, "kernel"):  # Allegro decodes in tiles, and leaves black what they do not reach
        tiles = zip(asked, pipeline.vae.kernel, pipeline.vae.stride, strict=True)
        frames, height, width = (tile + max(0, size - tile) // stride * stride for size, tile, stride in tiles)
        return frames, height, width
    if "latent_window_size" in (accepted := parameters(pipeline)):  # FramePack makes whole sections
        window = accepted["latent_window_size"].default
        frames = sections(pipeline, frames) * window * temporal + 1
    elif getattr(transformers(pipeline)[0].config, "image_condition_type", None) == "latent_concat":
        frames = (frames - 1) // temporal * temporal + 1 - temporal  # HunyuanVideo drops the picture's own latent
    elif kind(pipeline).startswith(("Wan", "SkyReels")):
        frames = frames if frames % temporal == 1 else frames // temporal * temporal + 1
    else:
        frames = (frames - 1) // temporal * temporal + 1
    edge = math.lcm(spatial * patch_of(pipeline)[1], 16 if kind(pipeline).startswith(SIXTEENS) else 8)
    return max(1, frames), max(edge, height // edge * edge), max(edge, width // edge * edge)


def sizes_by_input(
    pipeline: DiffusionPipeline, image: str | None, video: str | None, num_frames: int | None
) -> dict[str, int]:
    """What the pipeline reads off a picture or video: height and width (HunyuanVideo 1.5), the number of frames, of
    which `num_frames` may be taken. Raises ValueError, one sentence, for files that cannot be read."""
    accepted = parameters(pipeline)
    sizes: dict[str, int] = {}
    if image and "height" not in accepted and hasattr(pipeline, "target_size"):
        width, height = read_image(image).size
        size = pipeline.video_processor.calculate_default_height_width(height, width, pipeline.target_size)
        sizes |= {"height": int(size[0]), "width": int(size[1])}
    if video and "num_frames" not in accepted:
        sizes["num_frames"] = count_frames(video, num_frames or MOST_FRAMES)
    return sizes


def size_text(size: Size) -> str:
    frames, height, width = size
    return f"{frames} frames of {width}x{height}"


def sections(pipeline: DiffusionPipeline, num_frames: int) -> int:
    """Parts that FramePack makes one after the other, each in all steps."""
    latents, temporal = parameters(pipeline)["latent_window_size"].default, factors(pipeline)[0]
    return max(1, math.ceil(num_frames / ((latents - 1) * temporal + 1)))


def denoising_steps(pipeline: DiffusionPipeline, steps: int, strength: float | None) -> int:
    """How many of the steps are made: video to video leaves out the first ones, as it begins with less noise, LTX' long
    clips the last one, and Mochi has no schedule of one step. strength: None is the pipeline's own."""
    if kind(pipeline) == "MochiPipeline" and steps < 2:
        return 0
    if "VideoToVideo" in kind(pipeline) and (own := parameters(pipeline).get("strength")):
        steps = int(steps * (own.default if strength is None else strength))
    return max(0, steps - LEFT_OUT.get(kind(pipeline), 0))


def fewest_steps(pipeline: DiffusionPipeline, strength: float | None) -> int:
    """The least number of steps to ask for of which one is made."""
    return next(steps for steps in count(1) if denoising_steps(pipeline, steps, strength))


# --- Inputs -----------------------------------------------------------------------------------------------------------


def check_inputs(pipeline: DiffusionPipeline, image: str, video: str) -> None:
    """Raises ValueError, one sentence, for a picture or video that is missing, not taken or cannot be read."""
    accepted, name = parameters(pipeline), kind(pipeline)
    takes = {"image": "image" in accepted, "video": any(each in accepted for each in VIDEO_INPUTS)}
    needs = {
        "image": "ImageToVideo" in name or (takes["image"] and accepted["image"].default is inspect.Parameter.empty),
        "video": "VideoToVideo" in name or "control_video" in accepted,
    }
    for what, path in (("image", image), ("video", video)):
        if path and not takes[what]:
            raise ValueError(f"{name} takes no {what}; leave it out, or load a pipeline that does.")
        if needs[what] and not path:
            raise ValueError(f"{name} begins with {'an' if what == 'image' else 'a'} {what}; give --{what} FILE.")
    given = {"image", "prompt", "self", *VIDEO_INPUTS}
    needed = [each.name for each in accepted.values() if each.default is each.empty and each.kind < each.VAR_POSITIONAL]
    if "overlap_history" in accepted and needs["video"]:  # SkyReels-V2's, which counts with what it takes for None
        needed.append("overlap_history")
    if missing := [each for each in needed if each not in given]:
        raise ValueError(f"{name} also needs {', '.join(missing)}, which cannot be given here; call it from Python.")
    if image:
        read_image(image)
    if video:
        count_frames(video, 2)


def read_image(path: str) -> Image.Image:
    """A picture in RGB. Raises ValueError, one sentence, for a file that holds none."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}; give a picture, such as a PNG or JPEG file.") from None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        raise ValueError(f"{path} is no picture that can be read; give a PNG or JPEG file.") from None


def read_video(path: str, size: Size) -> list[Image.Image]:
    """The beginning of a video at 16 frames a second, cropped to the middle. Raises ValueError, one sentence."""
    return [Image.fromarray(frame) for frame in read_clip(path, *size)]


def inputs(pipeline: DiffusionPipeline, image: str, video: str, size: Size) -> dict[str, Any]:
    """Picture and video as the pipeline takes them, from the paths of files; "" is none."""
    given: dict[str, Any] = {"image": read_image(image)} if image else {}
    if video:
        name = next(each for each in VIDEO_INPUTS if each in parameters(pipeline))
        given[name] = read_video(video, size)
    return given


# --- Calling ----------------------------------------------------------------------------------------------------------


@contextmanager
def freed(pipeline: DiffusionPipeline) -> Iterator[None]:
    """A run that is left inside the block frees what it held, as finished runs do."""
    try:
        yield
    except BaseException:
        pipeline.maybe_free_model_hooks()
        raise


@contextmanager
def prepared(pipeline: DiffusionPipeline, guidance_scale: float) -> Iterator[None]:
    """Inside, a guider guides by this scale, and an autoencoder that decodes in tiles only does so; then they are as
    they were."""
    guider: Any = getattr(pipeline, "guider", None)
    vae: Any = getattr(pipeline, "vae", None)
    only_tiles = hasattr(vae, "kernel") and not vae.use_tiling
    if guider is not None:
        pipeline.guider = guider.new(guidance_scale=guidance_scale)
    if only_tiles:
        vae.enable_tiling()
    try:
        yield
    finally:
        if guider is not None:
            pipeline.guider = guider
        if only_tiles:
            vae.disable_tiling()


AfterStep = Callable[[DiffusionPipeline, int, Any, dict[str, Any]], dict[str, Any]]


@contextmanager
def followed(pipeline: DiffusionPipeline, after_step: AfterStep) -> Iterator[dict[str, Any]]:
    """Inside, `after_step(pipeline, index, timestep, {"latents": ...})` is called after every denoising step: yields
    the argument to call the pipeline with. Pipelines without a callback are followed by their scheduler."""
    if "callback_on_step_end" in parameters(pipeline) and kind(pipeline) not in ROUGH:
        yield {"callback_on_step_end": after_step}
        return
    scheduler = pipeline.scheduler
    plain = scheduler.step

    def step(model_output: torch.Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        result = plain(model_output, timestep, *args, **kwargs)
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        after_step(pipeline, scheduler.step_index - 1, timestep, {"latents": latents})
        return result

    scheduler.step = step
    try:
        yield {}
    finally:
        del scheduler.step


def generated(pipeline: DiffusionPipeline, arguments: dict[str, Any]) -> torch.Tensor:
    """What the pipeline gives for these arguments: [1, F, 3, H, W] in 0..1."""
    video: torch.Tensor = pipeline(**arguments).frames
    if kind(pipeline) in ROUGH:
        video = pipeline.video_processor.postprocess_video(video, output_type="pt")
    return video
