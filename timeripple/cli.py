"""The command line: `python -m timeripple compare`, `bench …` and `kernels`.

Everything heavy is imported inside the commands, so that help and wrong options answer at once.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from timeripple.compare import Comparison

USER_ERROR = 2
app = typer.Typer(add_completion=False, no_args_is_help=True, help="Reuse of attention in video diffusion, measured.")
bench_app = typer.Typer(no_args_is_help=True, help="Benchmarks.")
app.add_typer(bench_app, name="bench")

Steps = Annotated[int, typer.Option(help="Denoising steps.")]
Frames = Annotated[int, typer.Option(help="Frames of the clip.")]
Size = Annotated[str, typer.Option(help="Pixels: N or WxH, multiples of 8.")]
Model = Annotated[str, typer.Option(help='"pond", the folder of a diffusers pipeline, or its name on the hub.')]
Device = Annotated[str, typer.Option(help='"auto", "cpu", "cuda" or "cuda:N".')]
Dtype = Annotated[str, typer.Option(help="Of the denoiser: auto, bfloat16, float16 or float32.")]
Offload = Annotated[str, typer.Option(help="What waits in the host's memory: none, model, group or sequential.")]
Engine = Annotated[str, typer.Option(help="local, or ray to spread runs over the machines of a Ray cluster.")]
PondModel = Annotated[str, typer.Option(help='"pond" or the folder of a model of its kind.')]


@app.command()
def compare(
    prompt: Annotated[str, typer.Option(help='Such as "a red ball rolling left across the ocean at sunset".')],
    negative_prompt: Annotated[str, typer.Option(help="What to steer away from.")] = "",
    methods: Annotated[
        str | None,
        typer.Option(help="Each name[:budget][:key=value...], with commas between; the first is the reference."),
    ] = None,
    theta: Annotated[float | None, typer.Option(help="Threshold of all methods, instead of budgets.")] = None,
    settings: Annotated[
        Path | None, typer.Option(help="Settings saved by calibrate, as one more method; reads a JSON file.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the initial noise.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; by default the pipeline's, Pond's 20.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames; by default the pipeline's, Pond's 16.")] = None,
    size: Annotated[str | None, typer.Option(help="N or WxH pixels; by default the pipeline's, Pond's 128.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; by default the pipeline's, Pond's 3.")] = None,
    model: Model = "pond",
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Offload = "none",
    out: Annotated[Path, typer.Option(help="Folder for the videos and report.json.")] = Path("outputs"),
) -> None:
    """Generate one prompt with several methods from the same noise, and write videos and a report.

    Names are dense, channel, token, tile and those of the baselines; a budget is the share of attention to save.
    """
    with _one_sentence(ValueError, OSError):
        from timeripple import compare as comparing
        from timeripple.generate import Request
        from timeripple.methods import load_method, parse_method
        from timeripple.models import load_pipeline

        if methods is None:
            methods = "dense" if settings else "dense,token"
        chosen = [parse_method(_with_theta(text.strip(), theta)) for text in methods.split(",")]
        if settings is not None:
            chosen.append(load_method(settings))
        width, height = (None, None) if size is None else _parse_size(size)
        comparing.check_folder(out)
        pipeline = load_pipeline(model, device, dtype, offload)
        given = {"steps": steps, "num_frames": frames, "height": height, "width": width, "guidance_scale": guidance}
        request = Request.for_pipeline(pipeline, prompt, negative_prompt=negative_prompt, seed=seed, **given)
        comparing.check(pipeline, request, chosen)

    with _one_sentence(ValueError), _progress() as progress:
        tasks = {method.label: progress.add_task(method.label, total=request.steps, start=False) for method in chosen}

        def show(event):
            progress.start_task(tasks[event.method])
            progress.update(tasks[event.method], completed=event.step)

        comparison = comparing.compare(pipeline, request, chosen, on_step=show)
    with _one_sentence(OSError):
        paths = comparing.save(comparison, out, pipeline)
    console = _console()
    console.print(_comparison_table(comparison))
    console.print(
        f"Wrote {', '.join(path.name for path in paths)} to {out}", highlight=False, markup=False, soft_wrap=True
    )


@app.command()
def probe(
    prompt: Annotated[str, typer.Option(help='Such as "a red ball rolling left across the ocean at sunset".')],
    at: Annotated[str, typer.Option(help="Denoising steps to look at, counted from 1, with commas between.")] = "10",
    seed: Annotated[int, typer.Option(help="Of the initial noise.")] = 0,
    steps: Steps = 20,
    frames: Frames = 16,
    size: Size = "96",
    model: Model = "pond",
    out: Annotated[Path, typer.Option(help="JSON file for the correlations of all channels, and the heads.")] = Path(
        "probe.json"
    ),
) -> None:
    """How much channels of Q and K repeat themselves along t, y and x in a dense run, and what its heads attend to."""
    with _one_sentence(ValueError, OSError):
        from timeripple.generate import Request, read_steps
        from timeripple.models import load_pipeline
        from timeripple.probe import probe_report

        width, height = _parse_size(size)
        wanted = read_steps(at, steps)
        _check_file(out)
        pipeline = load_pipeline(model)
        given = {"seed": seed, "steps": steps, "num_frames": frames, "height": height, "width": width}
        request = Request.for_pipeline(pipeline, prompt, **given)
        result = probe_report(pipeline, request, wanted)
    out.write_text(json.dumps(result))
    table = Table(title="Correlation with the next token, mean over channels (measured here)", box=SIMPLE)
    for title in ("step", "layer", "head", "of", "along t", "along y", "along x"):
        table.add_column(title, justify="left" if title in ("layer", "of") else "right")
    for row in result["rows"]:
        channels = row["values"]
        means = {
            axis: sum(values[i] for values in channels) / len(channels)
            for i, (axis, lag) in enumerate(row["columns"])
            if lag == 1
        }
        numbers = (f"{means[axis]:.2f}" if axis in means else "-" for axis in "tyx")
        table.add_row(str(row["step"] + 1), row["layer"], str(row["head"]), row["side"], *numbers)
    title = "Attention to a token's own frame and own place, over uniform attention (measured here)"
    heads = Table(title=title, box=SIMPLE)
    for column in ("step", "layer", "head", "own frame", "own place", "kind", "entropy"):
        heads.add_column(column, justify="left" if column in ("layer", "kind") else "right")
    for row in result["heads"]:
        numbers = f"{row['spatial']:.1f}×", f"{row['temporal']:.1f}×", row["kind"], f"{row['entropy']:.2f}"
        heads.add_row(str(row["step"] + 1), row["layer"], str(row["head"]), *numbers)
    console = _console()
    console.print(table)
    console.print(heads)
    console.print(f"Wrote {out}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def lab(
    prompt: Annotated[str, typer.Option(help='Such as "a red ball rolling left across the ocean at sunset".')],
    method: Annotated[str, typer.Option(help="channel, token or tile: name[:saving][:key=value...].")] = "token:0.7",
    at: Annotated[str, typer.Option(help="Denoising steps to look at, counted from 1, with commas between.")] = "10",
    seed: Annotated[int, typer.Option(help="Of the initial noise.")] = 0,
    steps: Steps = 20,
    frames: Frames = 16,
    size: Size = "96",
    model: Model = "pond",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """What reuse saves and costs in every head of a dense run, against skipping and zeroing at the same saving.

    One threshold serves the heads of a layer; drift is how far the error has moved since the first of the steps.
    """
    with _one_sentence(ValueError):
        from timeripple.generate import Request, read_steps
        from timeripple.laboratory import laboratory_report, parse_reuse
        from timeripple.models import load_pipeline

        config = parse_reuse(method)
        width, height = _parse_size(size)
        wanted = read_steps(at, steps)
        pipeline = load_pipeline(model)
        given = {"seed": seed, "steps": steps, "num_frames": frames, "height": height, "width": width}
        request = Request.for_pipeline(pipeline, prompt, **given)
        result = laboratory_report(pipeline, request, wanted, config)
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        _console().print(_laboratory_table(result["rows"], config.text))


@app.command()
def calibrate(
    psnr: Annotated[float | None, typer.Option(help="Keep this PSNR in dB and save as much as possible.")] = None,
    saving: Annotated[float | None, typer.Option(help="Save this share over all steps, at the best quality.")] = None,
    granularity: Annotated[str, typer.Option(help="channel, token or tile.")] = "token",
    prompts: Annotated[int, typer.Option(help="Prompts to average over.")] = 2,
    steps: Steps = 20,
    frames: Frames = 16,
    size: Size = "96",
    model: PondModel = "pond",
    out: Annotated[Path, typer.Option(help="JSON file for the settings.")] = Path("settings.json"),
) -> None:
    """Find settings that keep a quality or reach a saving; `compare --settings` takes the file they are saved in."""
    with _one_sentence(ValueError, OSError):
        from timeripple import calibrate as calibrating
        from timeripple.attention.config import ReuseConfig
        from timeripple.bench.quality import QualityBench
        from timeripple.models import load_pond

        ReuseConfig(granularity, budget=0)
        width, height = _parse_size(size)
        requests = QualityBench(prompts, steps, frames, height, width).requests()
        calibrating.check_targets(psnr, saving)
        _check_file(out)
        pipeline = load_pond(model)
    console = _console()

    def show(trial):
        console.print(f"{trial.config.label}: {trial.psnr:.2f} dB, {trial.saving:.1%} of all steps", highlight=False)

    with _one_sentence(ValueError):
        best = calibrating.calibrate(pipeline, requests, psnr=psnr, saving=saving, granularity=granularity, on_run=show)
    best.config.save(out)
    console.print(f"Best: {best.config.label}, saved in {out}", highlight=False, soft_wrap=True)


@app.command()
def magnitudes(
    prompts: Annotated[int, typer.Option(help="Prompts to average over.")] = 2,
    steps: Steps = 20,
    frames: Frames = 16,
    size: Size = "96",
    model: PondModel = "pond",
    out: Annotated[Path, typer.Option(help="JSON file for the ratios.")] = Path("mag-ratios.json"),
) -> None:
    """Measure what mag-cache has to know of a model: how the magnitude of its residual moves from step to step."""
    with _one_sentence(ValueError, OSError):
        from timeripple.attention.timing import environment
        from timeripple.baselines.mag_cache import magnitude_ratios
        from timeripple.bench.quality import QualityBench
        from timeripple.models import load_pond

        width, height = _parse_size(size)
        bench = QualityBench(prompts, steps, frames, height, width)
        _check_file(out)
        pipeline = load_pond(model)
        bench.check(pipeline)
    runs = [magnitude_ratios(pipeline, **request.arguments(pipeline)) for request in bench.requests()]
    ratios = [round(sum(step) / len(runs), 4) for step in zip(*runs, strict=True)]
    result = {
        "ratios": ratios,
        "prompts": prompts,
        "size": [frames, height, width],
        "environment": environment(pipeline),
    }
    out.write_text(json.dumps(result) + "\n")
    _console().print(f"Wrote {out}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def pareto(
    prompts: Annotated[int, typer.Option(help="Prompts to average over.")] = 4,
    methods: Annotated[str, typer.Option(help="As in compare, without dense; by default one of every kind.")] = "",
    steps: Steps = 20,
    frames: Frames = 16,
    size: Size = "128",
    model: PondModel = "pond",
    engine: Engine = "local",
    out: Annotated[
        Path, typer.Option(help="Folder for pareto.json, pareto.html and runs.jsonl, from which a later call takes up.")
    ] = Path("outputs/pareto"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Seconds, PSNR and SSIM of our methods and their peers, and the front of speed and quality (half an hour)."""
    with _one_sentence(ValueError, OSError):
        from timeripple import figures
        from timeripple.bench import pareto as bench
        from timeripple.compare import check_folder
        from timeripple.models import load_pond

        width, height = _parse_size(size)
        chosen = [text.strip() for text in methods.split(",")] if methods else bench.METHODS
        check_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        pipeline = load_pond(model)
    with _one_sentence(ValueError, OSError), _counted("generations") as count:
        given = {"steps": steps, "num_frames": frames, "height": height, "width": width}
        load = partial(load_pond, model)
        result = bench.pareto(pipeline, prompts, chosen, out / "runs.jsonl", engine, count, load, **given)
    (out / "pareto.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    figure = figures.speed_and_quality(result["rows"], f"Speed and quality ({result['kind']})")
    figure.write_html(out / "pareto.html", include_plotlyjs=True)
    columns = ("method", "seconds", "speedup", "psnr", "ssim", "saving_all_steps", "saving_kind", "front")
    _print_result(result, as_json, columns)


@bench_app.command()
def quality(
    prompts: Annotated[int, typer.Option(help="Prompts to average over.")] = 4,
    steps: Steps = 20,
    frames: Frames = 16,
    size: Size = "96",
    model: PondModel = "pond",
    out: Annotated[
        Path | None, typer.Option(help="JSON-lines file of finished runs; a later call takes up from there.")
    ] = None,
    engine: Engine = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """PSNR and SSIM of every method at equal savings, against dense clips (below 40 minutes on two cores)."""
    with _one_sentence(ValueError, OSError):
        from timeripple.bench import quality as bench
        from timeripple.models import load_pond

        width, height = _parse_size(size)
        settings = bench.QualityBench(prompts, steps, frames, height, width)
        if out is not None:
            _check_file(out)
        pipeline = load_pond(model)
        settings.check(pipeline)

    with _one_sentence(ValueError, OSError), _counted("runs") as count:
        result = bench.quality(pipeline, settings, out, count, engine, partial(load_pond, model))
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        _console().print(_quality_table(result["rows"]))


@bench_app.command()
def attention(
    tokens: Annotated[int, typer.Option(help="Length of the sequence, 16 frames of a square.")] = 4096,
    shape: Annotated[
        str, typer.Option(help="hunyuan-video, wan2.1 or cogvideox: that model's shape, on noise correlated as Pond's.")
    ] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of every method.")] = 7,
    model: PondModel = "pond",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Milliseconds of attention on q, k and v of real denoising steps, planning included."""
    with _one_sentence(ValueError):
        from timeripple.attention.timing import environment
        from timeripple.bench import attention as bench
        from timeripple.models import load_pond

        if shape and shape not in bench.SHAPES:
            raise ValueError(f"The shape {shape!r} is unknown; choose from {', '.join(bench.SHAPES)}.")
        pipeline = load_pond(model)
        if shape and pipeline.device.type != "cuda":
            raise ValueError(f"The shape {shape!r} needs a GPU, and there is none here; leave --shape out.")
        bench.request_for(tokens).check(pipeline)
    with _counted("attention") as count:
        captures = bench.pond_captures(pipeline, tokens)
        if shape:
            captures = bench.synthetic_captures(captures, *bench.SHAPES[shape])
        rows = bench.attention(captures, repeats, on_run=count)
    _print_result(
        {"rows": rows, "shape": shape or "pond", "kind": "measured here", "environment": environment(pipeline)},
        as_json,
        ("method", "ms", "speedup", "kept_plan_speedup", "ideal_speedup", "saving", "relative_error", "planning_share"),
    )


@bench_app.command("end-to-end")
def end_to_end(
    tokens: Annotated[str, typer.Option(help="Lengths of sequences, separated by commas.")] = "4096,9216",
    methods: Annotated[str, typer.Option(help="As in compare; the first is the reference. By default a choice.")] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Generations of every method, each of another prompt.")] = 3,
    model: PondModel = "pond",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Seconds, speed-up and quality of whole generations, interleaved and repeated."""
    with _one_sentence(ValueError):
        from timeripple.bench import end_to_end as bench
        from timeripple.models import load_pond

        counts = _parse_counts(tokens)
        chosen = tuple(text.strip() for text in methods.split(",")) if methods else bench.METHODS
        pipeline = load_pond(model)
    with _one_sentence(ValueError), _counted("generations") as count:
        result = bench.end_to_end(pipeline, counts, chosen, repeats, count)
    columns = ("tokens", "method", "seconds", "speedup", "amdahl_speedup", "attention_share", "planning_share")
    _print_result(result, as_json, (*columns, "saving", "saving_all_steps", "psnr", "ssim", "peak_mb"))


@bench_app.command()
def scaling(
    tokens: Annotated[str, typer.Option(help="Lengths of sequences, separated by commas.")] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Generations of every method and length.")] = 1,
    model: PondModel = "pond",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """How the time of attention and of whole generations grows with the number of tokens."""
    with _one_sentence(ValueError):
        from timeripple.bench import scaling as bench
        from timeripple.bench.attention import request_for
        from timeripple.models import load_pond

        counts = _parse_counts(tokens) if tokens else bench.TOKENS
        pipeline = load_pond(model)
        for count in counts:
            request_for(count).check(pipeline)
    with _counted("lengths") as count:
        result = bench.scaling(pipeline, counts, repeats, count)
    columns = ("tokens", "method", "attention_ms", "attention_speedup", "seconds", "speedup", "attention_share")
    _print_result(result, as_json, columns)


@bench_app.command()
def roofline(
    tokens: Annotated[str, typer.Option(help="Lengths of sequences, separated by commas.")] = "",
    saving: Annotated[float, typer.Option(min=0, max=0.8, help="Share of attention that token and tile save.")] = 0.7,
    model: PondModel = "pond",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Attention over the number of tokens, and how near it comes to the peak of this machine."""
    with _one_sentence(ValueError):
        from timeripple.bench import roofline as bench
        from timeripple.models import load_pond

        counts = _parse_counts(tokens) if tokens else bench.TOKENS
        pipeline = load_pond(model)
    with _one_sentence(ValueError), _counted("lengths") as count:
        result = bench.attention_scaling(pipeline, counts, saving, on_step=count)
    columns = ("tokens", "method", "ms", "speedup", "ideal_speedup", "saving", "relative_error", "planning_share")
    _print_result(result, as_json, (*columns, "gflops", "intensity"))
    if not as_json:
        _console().print(
            "Peak {gflops:.0f} GFLOP/s, memory {gbytes:.0f} GB/s, measured here.".format(**result["roofs"])
        )


@bench_app.command()
def ui(
    repeats: Annotated[int, typer.Option(min=1, help="Visits, and picks of each kind.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """First paint of the page and the answer to every pick, in headless Chromium."""
    with _one_sentence(ValueError), _counted("visits") as count:
        from timeripple.bench.ui import page_speed

        result = page_speed(repeats, count)
    _print_result(result, as_json, ("what", "ms", "worst_ms", "goal_ms"))


@app.command()
def kernels(
    targets: Annotated[str, typer.Option(help="GPU architectures, separated by commas; by default all.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Compile every Triton kernel for real GPUs, without one: registers, spills, shared memory, occupancy."""
    with _one_sentence(ValueError, ImportError):
        from timeripple import kernels as compiling
        from timeripple.attention.timing import environment

        names = tuple(name.strip() for name in targets.split(",") if name.strip()) or tuple(compiling.TARGETS)
        rows = compiling.report(names)
    with _progress() as progress:
        total = sum(len(list(compiling.builds(compiling.TARGETS[name]))) for name in names)
        rows = list(progress.track(rows, total=total, description="compiling"))
    if as_json:
        print(json.dumps({"rows": rows, "environment": environment(), "kind": "compiled here"}, indent=2))
    else:
        _console().print(_kernel_table(rows))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every error of the user is one sentence on stderr and exit code 2."""
    from typer import _click

    try:
        code = app(arguments, prog_name="timeripple", standalone_mode=False)
    except _click.exceptions.UsageError as error:
        _fail(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        print("Stopped.", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)


def _fail(message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(USER_ERROR)


@contextmanager
def _one_sentence(*errors: type[Exception]) -> Iterator[None]:
    """Turn `errors` into their message on stderr and exit code 2."""
    try:
        yield
    except errors as error:
        message = f"{error.filename}: {error.strerror}." if getattr(error, "filename", None) else str(error)
        typer.echo(message, err=True)
        raise typer.Exit(USER_ERROR) from None


def _check_file(path: Path) -> None:
    """Raise OSError unless the file can be written; what it holds stays."""
    path.open("a").close()


def _with_theta(method: str, theta: float | None) -> str:
    return method if theta is None or method == "dense" else f"{method}:theta={theta}"


def _parse_size(text: str) -> tuple[int, int]:
    """ "128" or "192x128" to (width, height)."""
    parts = text.lower().split("x")
    if not all(part.isascii() and part.isdigit() for part in parts) or len(parts) > 2:
        raise ValueError(f'The size is "{text}"; give N or WxH in pixels, such as 128 or 192x128.')
    return int(parts[0]), int(parts[-1])


def _parse_counts(text: str) -> tuple[int, ...]:
    """ "4096,9216" to numbers."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f'These numbers are "{text}"; give whole numbers and commas, such as 4096,9216.')
    return tuple(map(int, parts))


def _print_result(result: dict, as_json: bool, columns: tuple[str, ...]) -> None:
    """A benchmark as one JSON object, or some columns of its rows as a table."""
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    table = Table(title=f"{result['kind'].capitalize()} on {result['environment']['cpu']}", box=SIMPLE)
    for column in columns:
        table.add_column(column.replace("_", "\n"), justify="left" if column in ("method", "what") else "right")
    for row in result["rows"]:
        cells = (row[column] for column in columns)
        table.add_row(*("-" if c is None else f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells))
    _console().print(table)


def _progress() -> Progress:
    """On stderr, so that stdout holds results only."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def _counted(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, moved by what this yields, which takes (done, all)."""
    with _progress() as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _console() -> Console:
    """For results; files and pipes are as wide as the tables need."""
    return Console(width=None if sys.stdout.isatty() else 120)


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
            *((f"{score['psnr']:.2f}", f"{score['ssim']:.4f}", f"{score['vmaf']:.1f}") if score else "---"),
        )
    return table


def _kernel_table(rows: list[dict]) -> Table:
    table = Table(title="What the compilers say; occupancy is an estimate", box=SIMPLE)
    for title in ("kernel", "target", "configuration", "registers", "spills B", "shared B", "occupancy"):
        table.add_column(title, justify="left" if title in ("kernel", "target", "configuration") else "right")
    for row in rows:
        figures = (row["registers"], row["spills"], row["shared_bytes"])
        table.add_row(row["kernel"], row["target"], row["config"], *map(str, figures), f"{row['occupancy']:.0%}")
    return table


def _laboratory_table(rows: list[dict], method: str) -> Table:
    table = Table(title=f"{method}: errors of the output over its size, measured here", box=SIMPLE)
    others = {name: kind for row in rows for name, kind, *_ in row["alternatives"]}
    errors = (f"error:\n{name}\n({kind})" for name, kind in others.items())
    for title in ("step", "layer", "head", "θ", f"saving\n({rows[0]['kind']})", "error:\nreuse", *errors, "drift"):
        table.add_column(title, justify="left" if title == "layer" else "right")
    for row in rows:
        found = {name: f"{error:.3f}" for name, _, _, error in row["alternatives"]}
        place = str(row["step"] + 1), row["layer"], str(row["head"]), f"{row['theta']:.3g}", f"{row['saving']:.1%}"
        errors = (f"{row['error']:.3f}", *(found.get(name, "-") for name in others))
        table.add_row(*place, *errors, f"{row['drift']:.2f}")
    return table


def _quality_table(rows: list[dict]) -> Table:
    title = "Measured here, against dense clips of the same noise; saving over the reuse window"
    table = Table(title=title, box=SIMPLE)
    for title in ("method", "feedback", "saving", "all steps", "kind", "PSNR dB", "SSIM"):
        table.add_column(title, justify="left" if title in ("method", "kind") else "right")
    for row in rows:
        measured = ("-", "-", "out of reach", "-", "-")
        if row["psnr"] is not None:
            savings = f"{row['saving']:.1%}", f"{row['saving_all_steps']:.1%}", row["saving_kind"]
            measured = *savings, f"{row['psnr']:.2f}", f"{row['ssim']:.4f}"
        table.add_row(row["method"], "yes" if row["feedback"] else "no", *measured)
    return table
