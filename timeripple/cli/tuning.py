"""`calibrate` and `magnitudes`: what is found out about a model once and kept in a file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from timeripple.cli.common import (
    Frames,
    PondModel,
    Prompts,
    Size,
    Steps,
    check_file,
    clip_size,
    console,
    one_sentence,
    say,
)  # fmt: skip

if TYPE_CHECKING:
    from timeripple.bench.calibrate import Trial


def add_to(app: typer.Typer) -> None:
    app.command()(calibrate)
    app.command()(magnitudes)


def calibrate(
    psnr: Annotated[float | None, typer.Option(help="Keep this PSNR in dB and save as much as possible.")] = None,
    saving: Annotated[float | None, typer.Option(help="Save this share over all steps, at the best quality.")] = None,
    granularity: Annotated[str, typer.Option(help="channel, token or tile.")] = "token",
    prompts: Prompts = 2,
    steps: Steps = 20,
    frames: Frames = 16,
    size: Size = "96",
    model: PondModel = "pond",
    out: Annotated[Path, typer.Option(help="JSON file for the settings.")] = Path("settings.json"),
) -> None:
    """Find settings that keep a quality or reach a saving; `compare --settings` takes the file they are saved in."""
    with one_sentence(ValueError, OSError):
        from timeripple.attention.config import ReuseConfig
        from timeripple.bench import calibrate as calibrating
        from timeripple.bench.quality import QualityBench
        from timeripple.clips.models import load_pond

        ReuseConfig(granularity, budget=0)
        requests = QualityBench(prompts, **clip_size(steps, frames, size)).requests()
        calibrating.check_targets(psnr, saving)
        check_file(out)
        pipeline = load_pond(model)
    lines = console()

    def show(trial: "Trial") -> None:
        lines.print(f"{trial.config.label}: {trial.psnr:.2f} dB, {trial.saving:.1%} of all steps", highlight=False)

    with one_sentence(ValueError):
        best = calibrating.calibrate(pipeline, requests, psnr=psnr, saving=saving, granularity=granularity, on_run=show)
    best.config.save(out)
    lines.print(f"Best: {best.config.label}, saved in {out}", highlight=False, soft_wrap=True)


def magnitudes(
    prompts: Prompts = 2,
    steps: Steps = 20,
    frames: Frames = 16,
    size: Size = "96",
    model: PondModel = "pond",
    out: Annotated[Path, typer.Option(help="JSON file for the ratios.")] = Path("mag-ratios.json"),
) -> None:
    """Measure what mag-cache and teacache have to know of a model: how its residual and its output move by step."""
    with one_sentence(ValueError, OSError):
        from timeripple.attention.timing import environment
        from timeripple.baselines.mag_cache import magnitude_ratios
        from timeripple.baselines.teacache import coefficients
        from timeripple.bench.quality import QualityBench
        from timeripple.clips.models import load_pond

        bench = QualityBench(prompts, **clip_size(steps, frames, size))
        check_file(out)
        pipeline = load_pond(model)
        bench.check(pipeline)
    requests = bench.requests()
    runs = [magnitude_ratios(pipeline, **request.arguments(pipeline)) for request in requests]
    polynomial = coefficients(pipeline, [request.arguments(pipeline) for request in requests])
    ratios = [round(sum(step) / len(runs), 4) for step in zip(*runs, strict=True)]
    result = {
        "ratios": ratios,
        "tea_coefficients": polynomial,
        "prompts": prompts,
        "size": [bench.num_frames, bench.height, bench.width],
        "environment": environment(pipeline),
    }
    out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    say(f"Wrote {out}")
