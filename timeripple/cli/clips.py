"""`compare`: the same clip by several methods."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from timeripple.cli.common import (
    Compile,
    Device,
    Dtype,
    Model,
    Offload,
    Prompt,
    Seed,
    console,
    one_sentence,
    parse_size,
    progress_bars,
    say,
)  # fmt: skip

if TYPE_CHECKING:
    from timeripple.clips.compare import Comparison
    from timeripple.clips.generate import StepEvent


DIGITS = {"psnr": 2, "ssim": 4, "vmaf": 1}


def add_to(app: typer.Typer) -> None:
    app.command()(compare)


def compare(
    prompt: Prompt,
    negative_prompt: Annotated[str, typer.Option(help="What to steer away from.")] = "",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Each name[:budget][:key=value...], with commas between; the first is the reference. By default "
            "dense,token:0.75."
        ),
    ] = None,
    theta: Annotated[float | None, typer.Option(help="Threshold of all methods, instead of budgets.")] = None,
    settings: Annotated[
        Path | None, typer.Option(help="Settings that tune found, as one more method; reads a JSON file.")
    ] = None,
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; by default the pipeline's, Pond's 20.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames; by default the pipeline's, Pond's 33.")] = None,
    size: Annotated[str | None, typer.Option(help="N or WxH pixels; by default the pipeline's, Pond's 192.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; by default the pipeline's, Pond's 3.")] = None,
    true_guidance: Annotated[
        float | None,
        typer.Option(help="By a second pass, where guidance is an input of the model, as in HunyuanVideo."),
    ] = None,
    image: Annotated[str, typer.Option(help="Picture that an image-to-video pipeline begins with.")] = "",
    video: Annotated[str, typer.Option(help="Video that a video-to-video pipeline begins with.")] = "",
    strength: Annotated[
        float | None,
        typer.Option(help="How far video to video goes from its video, 0 to 1; by default the pipeline's."),
    ] = None,
    model: Model = "pond",
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Offload = "none",
    compile: Compile = False,
    repeat: Annotated[int, typer.Option(min=1, help="How often every clip is made; seconds are the medians.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the videos and report.json.")] = Path("outputs"),
) -> None:
    """Generate one prompt with several methods from the same noise, and write videos and a report.

    Names are dense, channel, token, tile and those of the baselines; a budget is the share of attention to save.
    """
    with one_sentence(ValueError, OSError):
        from timeripple.clips import compare as comparing
        from timeripple.clips.generate import Request
        from timeripple.clips.methods import load_method, parse_method
        from timeripple.clips.models import load_pipeline

        if methods is None:
            methods = "dense" if settings else "dense,token"
        chosen = [parse_method(_with_theta(text.strip(), theta)) for text in methods.split(",")]
        if settings is not None:
            chosen.append(load_method(settings))
        width, height = (None, None) if size is None else parse_size(size)
        comparing.check_folder(out)
        takes = "video" if video else "image" if image else None
        pipeline = load_pipeline(model, device, dtype, offload, takes, compile)
        given: dict[str, Any] = {"steps": steps, "num_frames": frames, "height": height, "width": width}
        given |= {"guidance_scale": guidance, "true_cfg_scale": true_guidance, "image": image, "video": video}
        given["strength"] = strength
        request = Request.for_pipeline(pipeline, prompt, negative_prompt=negative_prompt, seed=seed, **given)
        comparing.check(pipeline, request, chosen)

    with one_sentence(ValueError), progress_bars() as progress:
        tasks = {
            method.label: progress.add_task(method.label, total=request.evaluations(pipeline, method), start=False)
            for method in chosen
        }

        def show(event: "StepEvent") -> None:
            progress.start_task(tasks[event.method])
            progress.update(tasks[event.method], completed=event.step)

        comparison = comparing.compare(pipeline, request, chosen, repeat=repeat, on_step=show)
    console().print(_comparison_table(comparison))  # before the disk can fail
    for remark in comparison.remarks:
        say(remark)
    with one_sentence(OSError):
        paths = comparing.save(comparison, out, pipeline)
    say(f"Wrote {', '.join(path.name for path in paths)} to {out}")
    if not comparing.can_draw():
        say("There is no report.html, as plotly is not installed: pip install 'timeripple[app]'")


def _with_theta(method: str, theta: float | None) -> str:
    return method if theta is None or method.split(":")[0] == "dense" else f"{method}:theta={theta}"


def _comparison_table(comparison: "Comparison") -> Table:
    table = Table(title="Quality is measured against the first method", box=SIMPLE)
    table.add_column("method", no_wrap=True)
    for title in ("seconds\nmeasured", "speed-up\nmeasured", "attention s\nmeasured", "saving\n(kind)", "all\nsteps"):
        table.add_column(title, justify="right")
    table.add_column("PSNR\ndB", justify="right")
    table.add_column("SSIM", justify="right")
    table.add_column("VMAF", justify="right")
    for generation, speedup, score in zip(comparison.generations, comparison.speedups, comparison.quality, strict=True):
        seconds, saving = generation.seconds, generation.saving
        table.add_row(
            generation.method.label,
            *(f"{seconds['total']:.1f}", f"{speedup:.2f}x", f"{seconds['attention']:.1f}"),
            *((f"{saving['reuse_steps']:.1%}\n{saving['kind']}", f"{saving['all_steps']:.1%}") if saving else "--"),
            *(_digits(score.scores[name] if score else None, digits) for name, digits in DIGITS.items()),
        )
    return table


def _digits(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
