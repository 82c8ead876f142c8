"""`tune` and `magnitudes`: what is found out about a model once and kept in a file."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from timeripple.cli.common import (
    Compile,
    Device,
    Dtype,
    Engine,
    Frames,
    Model,
    Offload,
    PondModel,
    Prompts,
    Size,
    Steps,
    check_file,
    clip_size,
    console,
    counted,
    one_sentence,
    parse_size,
    say,
    table_of,
)  # fmt: skip

PROMPTS = 4  # held-out ones of Pond


def add_to(app: typer.Typer) -> None:
    app.command()(tune)
    app.command()(magnitudes)


def tune(
    psnr: Annotated[
        float | None, typer.Option(help="Keep this PSNR in dB to the converged clip, in least time.")
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(help="Be so much faster than dense in the model's own steps.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Take at most this long.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file with a prompt a line; Pond has four of its own.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps that speedup is against; by default the model's own.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames; by default the model's.")] = None,
    size: Annotated[str | None, typer.Option(help="N or WxH pixels; by default the model's, of Pond 128.")] = None,
    model: Model = "pond",
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Offload = "none",
    compile: Compile = False,
    engine: Engine = "local",
    out: Annotated[Path, typer.Option(help="JSON file for the settings; a picture lies beside it.")] = Path(
        "tuned.json"
    ),
) -> None:
    """Find what is best for a model on this machine: steps, solver, method and stack, ours and the peers' alike.

    `compare --settings` takes the file, and timeripple.load puts it into a pipeline. Where dense with fewer steps or a
    peer wins, that is what it holds.
    """
    with one_sentence(ValueError, OSError):
        from timeripple.bench import tune as tuning
        from timeripple.bench.quality import held_out_prompts
        from timeripple.bench.search import Target
        from timeripple.clips.compare import can_draw
        from timeripple.clips.generate import Request
        from timeripple.clips.models import load_pipeline
        from timeripple.pond.pipeline import PondPipeline

        target = Target(psnr, speedup, seconds)
        if out.suffix == ".html":
            raise ValueError(f"{out} is where the picture would lie; give a name for the settings, such as tuned.json.")
        texts = None if prompts is None else read_prompts(prompts)
        check_file(out)
        load = partial(load_pipeline, model, device, dtype, offload, compile=compile)
        pipeline = load()
        if isinstance(pipeline, PondPipeline):
            texts, size = texts or held_out_prompts(PROMPTS), size or "128"
        if texts is None:
            raise ValueError(f"{model} has no prompts of its own; give --prompts, a file with a prompt a line.")
        width, height = (None, None) if size is None else parse_size(size)
        given = {"steps": steps, "num_frames": frames, "height": height, "width": width}
        requests = [Request.for_pipeline(pipeline, text, seed=seed, **given) for seed, text in enumerate(texts)]
        for request in requests:
            request.check(pipeline)
    lines = console()
    with one_sentence(ValueError), counted("generations") as count:
        found = tuning.tune(pipeline, requests, target, engine=engine, on_run=count, load=load)
    table = table_of("Measured here, means over prompts, PSNR to the converged clip", ("method", "seconds", "PSNR dB"),
                     left=("method",))  # fmt: skip
    for row in found["rows"]:
        table.add_row(row["method"], f"{row['seconds']:.2f}", f"{row['psnr_converged']:.2f}")
    lines.print(table)
    for name, reason in found["left_out"].items():
        say(f"Left out: {name}: {reason}")
    seconds_span, psnr_span = (spread(found[name]) for name in ("seconds_interval", "psnr_interval"))
    of_others = f", with {psnr_span} to expect of other prompts" if psnr_span else ""
    say(f"Best: {found['method']}, {found['seconds']:.2f} s ({seconds_span}), {found['psnr']:.1f} dB{of_others}")
    with one_sentence(OSError):
        out.write_text(json.dumps({"model": model, **found}, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        say(f"Saved in {out}")
        if can_draw():
            from timeripple.bench.figures import quality_over_seconds

            figure = quality_over_seconds(found["rows"], f"{model}: what was tried (measured here)")
            figure.write_html(out.with_suffix(".html"), include_plotlyjs=True)


def spread(interval: list[float] | None) -> str:
    """An interval as text, "" for none."""
    return "" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that are not empty. Raises ValueError, one sentence, where there are none."""
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8; save it as such.") from None
    if not texts:
        raise ValueError(f"{path} holds no prompts; give one a line.")
    return texts


def magnitudes(
    model: PondModel = "pond",
    prompts: Prompts = 2,
    steps: Steps = 20,
    frames: Frames = 33,
    size: Size = "192",
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
