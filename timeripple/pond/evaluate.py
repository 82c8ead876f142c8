"""Does Pond show what the prompt says? Measured on held-out combinations with OpenCV (`judge.py`).

python -m timeripple.pond.evaluate --prompts 64 --json     # the model
python -m timeripple.pond.evaluate --judge                 # the judge itself, on rendered clips
python -m timeripple.pond.evaluate --autoencoder assets/pond/vae --prompts 16 --json
"""

import json
import time
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from diffusers import AutoencoderKLLTXVideo
from rich.console import Console
from rich.progress import track

from timeripple.attention.timing import environment
from timeripple.pond.autoencoder import decode, encode, reconstruction_psnr, to_video
from timeripple.pond.clips import held_out_clips
from timeripple.pond.judge import Sighting, judge
from timeripple.pond.model import fastest_dtype
from timeripple.pond.pipeline import PondPipeline
from timeripple.pond.prompts import Description, describe
from timeripple.pond.shape import Shape, measure_shape

ASPECTS = ("colour", "motion", "background", "subject")
CHANGES_SIZE = ("growing", "shrinking")


def shares(pairs: list[tuple[Description, Sighting]]) -> dict[str, float]:
    """The share of clips, 0 to 1, in which the judge saw what was asked for, per aspect."""
    return {
        aspect: float(np.mean([getattr(asked, aspect) == getattr(seen, aspect) for asked, seen in pairs]))
        for aspect in ASPECTS
    }


def shapes(pairs: list[tuple[Description, Shape]]) -> dict[str, float]:
    """Means over clips: outline and one_piece (0 to 1), steady where the size should not change (a ratio), and the
    width of the border, edge (pixels)."""

    def mean(values: list[float | None]) -> float:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else float("nan")

    return {
        "outline": mean([shape.outline or 0.0 for _, shape in pairs]),
        "one_piece": mean([shape.one_piece for _, shape in pairs]),
        "steady": mean([shape.steady for asked, shape in pairs if asked.motion not in CHANGES_SIZE]),
        "edge": mean([shape.edge for _, shape in pairs]),
    }


def judged(clips: list[tuple[Description, np.ndarray]]) -> dict[str, float]:
    """What is measured of clips, uint8 RGB [F, H, W, 3], that should show their descriptions; edge in pixels."""
    seen = [(asked, judge(clip)) for asked, clip in clips]
    return shares(seen) | shapes([(asked, measure_shape(clip, cast(str, asked.subject))) for asked, clip in clips])


def evaluate(
    pipeline: PondPipeline, prompts: int, num_frames: int, size: int, steps: int, guidance_scale: float
) -> dict[str, Any]:
    """Generate held-out prompts and judge them.

    Returns: colour, motion, background, subject, outline and one_piece (0 to 1), steady and edge (ratios: of the area's
    deviation to its mean, and of the border's width to that of the same clips as rendered), vae_psnr (dB), the
    settings, what was missed and the machine.
    """
    pipeline.set_progress_bar_config(disable=True)
    started = time.perf_counter()
    generated: list[tuple[Description, np.ndarray]] = []
    rendered: list[tuple[Description, np.ndarray]] = []
    misses: list[dict[str, Any]] = []
    for asked, clip in track(held_out_clips(prompts, num_frames, size), "Generating", console=Console(stderr=True)):
        generator = torch.Generator().manual_seed(len(generated))
        frames = pipeline(
            describe(asked), None, num_frames, size, size, steps, guidance_scale, generator=generator
        ).frames[0]
        generated.append((asked, (frames * 255).round().astype(np.uint8)))
        rendered.append((asked, clip))
        seen = judge(generated[-1][1])
        wrong = {aspect: getattr(seen, aspect) for aspect in ASPECTS if getattr(seen, aspect) != getattr(asked, aspect)}
        if wrong:
            misses.append({"prompt": describe(asked), "seen": wrong})
    result, ideal = judged(generated), judged(rendered)
    return {
        **result,
        "edge": result["edge"] / ideal["edge"],
        "vae_psnr": reconstruction_psnr(pipeline.vae, [clip for _, clip in rendered[:16]]),
        "prompts": len(generated),
        "frames": num_frames,
        "size": size,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "seconds": time.perf_counter() - started,
        "misses": misses,
        "kind": "measured here",
        "environment": environment(pipeline),
    }


@torch.no_grad()
def evaluate_autoencoder(vae: AutoencoderKLLTXVideo, prompts: int, num_frames: int, size: int) -> dict[str, Any]:
    """Encode held-out clips and decode them again.

    Returns: vae_psnr (dB, over all pixels), psnr_start and psnr_end (of the first and last four frames: alike where
    nothing drifts), outline, one_piece, steady and edge as `evaluate`, encode_seconds and decode_seconds (medians), the
    settings and the machine.
    """
    rendered = held_out_clips(prompts, num_frames, size)
    given_back, errors, seconds = [], [], []
    for asked, clip in track(rendered, "Encoding and decoding", console=Console(stderr=True)):
        video = to_video(clip)
        started = time.perf_counter()
        latents = encode(vae, video.to(vae.dtype))
        encoded = time.perf_counter()
        decoded = decode(vae, latents).float().clamp(-1, 1)
        seconds.append((encoded - started, time.perf_counter() - encoded))
        errors.append(((decoded - video) / 2).pow(2).mean((0, 1, 3, 4)).numpy())
        given_back.append((asked, ((decoded[0].permute(1, 2, 3, 0) + 1) * 127.5).round().to(torch.uint8).numpy()))

    def psnr(part: np.ndarray) -> float:
        return -10 * float(np.log10(part.mean()))

    def shaped(clips: list[tuple[Description, np.ndarray]]) -> dict[str, float]:
        return shapes([(asked, measure_shape(clip, cast(str, asked.subject))) for asked, clip in clips])

    error, result, ideal = np.stack(errors), shaped(given_back), shaped(rendered)
    return {
        "vae_psnr": psnr(error),
        "psnr_start": psnr(error[:, :4]),
        "psnr_end": psnr(error[:, -4:]),
        **result,
        "edge": result["edge"] / ideal["edge"],
        "encode_seconds": float(np.median(seconds, 0)[0]),
        "decode_seconds": float(np.median(seconds, 0)[1]),
        "prompts": prompts,
        "frames": num_frames,
        "size": size,
        "dtype": str(vae.dtype).removeprefix("torch."),
        "kind": "measured here",
        "environment": environment(),
    }


def main(
    prompts: Annotated[int, typer.Option(min=1, help="How many held-out prompts.")] = 64,
    num_frames: Annotated[int, typer.Option("--frames", min=8, help="Frames per clip.")] = 33,
    size: Annotated[int, typer.Option(min=64, help="Height and width in pixels.")] = 192,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 14,
    guidance_scale: Annotated[float, typer.Option("--guidance", help="Classifier-free guidance.")] = 3.0,
    model: Annotated[Path, typer.Option(help="A Pond pipeline folder.")] = Path("assets/pond"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    autoencoder: Annotated[Path | None, typer.Option(help="Evaluate this autoencoder alone.")] = None,
    judge_only: Annotated[bool, typer.Option("--judge", help="Judge rendered clips, not generated ones.")] = False,
) -> None:
    """Evaluate Pond, its autoencoder alone, or the judge."""
    if judge_only:
        result = judged(held_out_clips(prompts, num_frames, size))
    elif autoencoder is not None:
        vae = AutoencoderKLLTXVideo.from_pretrained(autoencoder, torch_dtype=fastest_dtype("cpu"))
        result = evaluate_autoencoder(vae, prompts, num_frames, size)
    else:
        dtypes = {"transformer": fastest_dtype("cpu"), "default": torch.float32}
        pipeline = PondPipeline.from_pretrained(model, torch_dtype=dtypes)
        result = evaluate(pipeline, prompts, num_frames, size, steps, guidance_scale)
    if as_json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:>16}  {value:.3f}" if isinstance(value, float) else f"{name:>16}  {value}")


if __name__ == "__main__":
    typer.run(main)
