"""Does Pond show what the prompt says? Measured on held-out combinations with OpenCV (`judge.py`).

python -m timeripple.pond.evaluate --prompts 64 --json     # the model
python -m timeripple.pond.evaluate --judge                 # the judge itself, on rendered clips
"""

import json
import random
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track

from timeripple.pond.autoencoder import reconstruction_psnr, to_tensor
from timeripple.pond.judge import Sighting, judge
from timeripple.pond.pipeline import PondPipeline
from timeripple.pond.prompts import Description, describe, random_description
from timeripple.pond.scenes import render

CLIP_SEED = 20_000
ASPECTS = ("colour", "motion", "background", "subject")


def shares(pairs: list[tuple[Description, Sighting]]) -> dict[str, float]:
    """The share of clips, 0 to 1, in which the judge saw what was asked for, per aspect."""
    return {
        aspect: float(np.mean([getattr(asked, aspect) == getattr(seen, aspect) for asked, seen in pairs]))
        for aspect in ASPECTS
    }


def held_out_descriptions(count: int, rng: random.Random | None = None) -> list[Description]:
    """Descriptions of held-out combinations, the same for every call."""
    rng = rng or random.Random(CLIP_SEED)
    return [random_description(rng, held_out=True) for _ in range(count)]


def held_out_clips(count: int, num_frames: int, size: int) -> list[tuple[Description, np.ndarray]]:
    """Rendered clips of held-out descriptions, the same for every call."""
    rng = random.Random(CLIP_SEED)
    descriptions = held_out_descriptions(count, rng)
    return [(d, render(d, rng.getrandbits(31), num_frames, size, size)) for d in descriptions]


def evaluate(
    pipeline: PondPipeline, prompts: int, num_frames: int, size: int, steps: int, guidance_scale: float
) -> dict:
    """Generate held-out prompts and judge them; returns shares per aspect, the autoencoder's PSNR and the settings."""
    pipeline.set_progress_bar_config(disable=True)
    descriptions = held_out_descriptions(prompts)
    pairs, misses, started = [], [], time.perf_counter()
    for index, asked in enumerate(track(descriptions, "Generating", console=Console(stderr=True))):
        generator = torch.Generator().manual_seed(index)
        frames = pipeline(
            describe(asked), None, num_frames, size, size, steps, guidance_scale, generator=generator
        ).frames[0]
        seen = judge((frames * 255).round().astype(np.uint8))
        pairs.append((asked, seen))
        wrong = {aspect: getattr(seen, aspect) for aspect in ASPECTS if getattr(seen, aspect) != getattr(asked, aspect)}
        if wrong:
            misses.append({"prompt": describe(asked), "seen": wrong})
    reference = torch.cat([to_tensor(clip[::5]) for _, clip in held_out_clips(min(prompts, 16), num_frames, size)])
    return {
        **shares(pairs),
        "vae_psnr": reconstruction_psnr(pipeline.vae, reference),
        "prompts": prompts,
        "frames": num_frames,
        "size": size,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "seconds": time.perf_counter() - started,
        "misses": misses,
    }


def main(
    prompts: Annotated[int, typer.Option(min=1, help="How many held-out prompts.")] = 64,
    num_frames: Annotated[int, typer.Option("--frames", min=8, help="Frames per clip.")] = 16,
    size: Annotated[int, typer.Option(min=64, help="Height and width in pixels.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 10,
    guidance_scale: Annotated[float, typer.Option("--guidance", help="Classifier-free guidance.")] = 3.0,
    model: Annotated[Path, typer.Option(help="A Pond pipeline folder.")] = Path("assets/pond"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    judge_only: Annotated[bool, typer.Option("--judge", help="Judge rendered clips, not generated ones.")] = False,
) -> None:
    """Evaluate Pond, or the judge."""
    if judge_only:
        result = shares([(asked, judge(clip)) for asked, clip in held_out_clips(prompts, num_frames, size)])
    else:
        pipeline = PondPipeline.from_pretrained(model, torch_dtype=torch.float32)
        result = evaluate(pipeline, prompts, num_frames, size, steps, guidance_scale)
    if as_json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:>16}  {value:.3f}" if isinstance(value, float) else f"{name:>16}  {value}")


if __name__ == "__main__":
    typer.run(main)
