"""`bench …` and `support`: benchmarks, with the same progress and the same tables."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from timeripple.cli.common import (
    AsJson,
    Compile,
    Engine,
    Frames,
    PondModel,
    Prompts,
    Size,
    Steps,
    Tokens,
    check_file,
    clip_size,
    console,
    counted,
    one_sentence,
    parse_counts,
    parse_names,
    print_json,
    say,
    table_of,
)  # fmt: skip

if TYPE_CHECKING:
    from timeripple.pond.pipeline import PondPipeline

TEXTS = ("method", "what")  # columns that hold no numbers
Count = Callable[[int, int], None]


def add_to(app: typer.Typer) -> None:
    bench = typer.Typer(no_args_is_help=True, help="Benchmarks.")
    for name, command in (
        ("work", work),
        ("quality", quality),
        ("attention", attention),
        ("end-to-end", end_to_end),
        ("scaling", scaling),
        ("roofline", roofline),
        ("ui", ui),
        ("load", load),
    ):
        bench.command(name)(command)
    app.add_typer(bench, name="bench")
    app.command()(support)


def quality(
    prompts: Prompts = 4,
    steps: Steps = 20,
    frames: Frames = 33,
    size: Size = "128",
    model: PondModel = "pond",
    out: Annotated[
        Path | None, typer.Option(help="JSON-lines file of finished runs; a later call takes up from there.")
    ] = None,
    engine: Engine = "local",
    as_json: AsJson = False,
) -> None:
    """PSNR and SSIM of every method at equal savings, against dense clips."""
    with one_sentence(ValueError, OSError):
        from timeripple.bench import quality as bench
        from timeripple.clips.models import load_pond

        settings = bench.QualityBench(prompts, **clip_size(steps, frames, size))
        if out is not None:
            check_file(out)
        pipeline = load_pond(model)
        settings.check(pipeline)
    load = partial(load_pond, model)
    result = _run("runs", lambda count: bench.quality(pipeline, settings, out, count, engine, load))
    if as_json:
        print_json(result)
    else:
        console().print(_quality_table(result["rows"]))


def attention(
    tokens: Annotated[int, typer.Option(help="Length of the sequence, 33 frames of a square.")] = 5184,
    shape: Annotated[
        str, typer.Option(help="hunyuan-video, wan2.1 or cogvideox: that model's shape, on noise correlated as Pond's.")
    ] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of every method.")] = 7,
    model: PondModel = "pond",
    as_json: AsJson = False,
) -> None:
    """Milliseconds of attention on q, k and v of real denoising steps, planning included."""
    with one_sentence(ValueError):
        from timeripple.attention.timing import environment
        from timeripple.bench import attention as bench
        from timeripple.clips.models import load_pond

        if shape and shape not in bench.SHAPES:
            raise ValueError(f"The shape {shape!r} is unknown; choose from {', '.join(bench.SHAPES)}.")
        pipeline = load_pond(model)
        if shape and pipeline.device.type != "cuda":
            raise ValueError(f"The shape {shape!r} needs a GPU, and there is none here; leave --shape out.")
        bench.request_for(tokens).check(pipeline)

    def run(count: Count) -> dict[str, Any]:
        captures = bench.pond_captures(pipeline, tokens)
        if shape:
            captures = bench.synthetic_captures(captures, *bench.SHAPES[shape])
        rows = bench.attention(captures, repeats, on_run=count)
        return {"rows": rows, "shape": shape or "pond", "kind": "measured here", "environment": environment(pipeline)}

    columns = ("method", "ms", "speedup", "kept_plan_speedup", "ideal_speedup", "saving", "relative_error")
    _print(_run("attention", run), as_json, (*columns, "planning_share"))


def end_to_end(
    tokens: Tokens = "5184,9216",
    methods: Annotated[str, typer.Option(help="As in compare; the first is the reference. By default a choice.")] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Generations of every method, each of another prompt.")] = 3,
    model: PondModel = "pond",
    as_json: AsJson = False,
) -> None:
    """Seconds, speed-up and quality of whole generations, interleaved and repeated."""
    with one_sentence(ValueError):
        from timeripple.bench import end_to_end as bench
        from timeripple.clips.models import load_pond

        counts, chosen = parse_counts(tokens), parse_names(methods) if methods else bench.METHODS
        pipeline = load_pond(model)
    result = _run("generations", lambda count: bench.end_to_end(pipeline, counts, chosen, repeats, count))
    columns = ("tokens", "method", "seconds", "speedup", "amdahl_speedup", "attention_share", "planning_share")
    _print(result, as_json, (*columns, "saving", "saving_all_steps", "psnr", "ssim", "peak_mb"))


def scaling(
    tokens: Tokens = "",
    repeats: Annotated[int, typer.Option(min=1, help="Generations of every method and length.")] = 1,
    model: PondModel = "pond",
    as_json: AsJson = False,
) -> None:
    """How the time of attention and of whole generations grows with the number of tokens."""
    with one_sentence(ValueError):
        from timeripple.bench import scaling as bench

        counts, pipeline = _lengths(tokens, bench.TOKENS, model)
    result = _run("lengths", lambda count: bench.scaling(pipeline, counts, repeats, count))
    columns = ("tokens", "method", "attention_ms", "attention_speedup", "seconds", "speedup", "attention_share")
    _print(result, as_json, columns)


def roofline(
    tokens: Tokens = "",
    saving: Annotated[float, typer.Option(min=0, max=0.8, help="Share of attention that token and tile save.")] = 0.7,
    model: PondModel = "pond",
    as_json: AsJson = False,
) -> None:
    """Attention over the number of tokens, and how near it comes to the peak of this machine."""
    with one_sentence(ValueError):
        from timeripple.bench import roofline as bench

        counts, pipeline = _lengths(tokens, bench.TOKENS, model)
    result = _run("lengths", lambda count: bench.attention_scaling(pipeline, counts, saving, on_step=count))
    columns = ("tokens", "method", "ms", "speedup", "ideal_speedup", "saving", "relative_error", "planning_share")
    _print(result, as_json, (*columns, "gflops", "intensity"))
    if not as_json:
        peak = "Peak {gflops:.0f} GFLOP/s, memory {gbytes:.0f} GB/s, measured here."
        console().print(peak.format(**result["roofs"]))


def work(
    prompts: Prompts = 8,
    tokens: Tokens = "5184,9216",
    methods: Annotated[
        str, typer.Option(help="As in compare, each with steps of its own; by default dense, ours and every peer.")
    ] = "",
    model: PondModel = "pond",
    compile: Compile = False,
    engine: Engine = "local",
    out: Annotated[
        Path, typer.Option(help="Folder for work.json, work.html and runs.jsonl, from which a later call takes up.")
    ] = Path("outputs/work"),
    as_json: AsJson = False,
) -> None:
    """Seconds and quality of every method in its own number of steps, against the converged clip (a day on two cores).

    Dense at every number of steps is the curve to beat; who is ahead is said at equal dB, with its interval.
    """
    with one_sentence(ValueError, OSError):
        from timeripple.bench import work as bench
        from timeripple.bench.contenders import METHODS
        from timeripple.clips.compare import can_draw, check_folder
        from timeripple.clips.models import load_pond

        if not can_draw():
            raise ValueError("work.html is drawn with plotly, which is not installed: pip install 'timeripple[app]'.")
        from timeripple.bench.figures import quality_over_seconds
        from timeripple.clips.figures import fragments

        chosen = parse_names(methods) if methods else METHODS
        requests = [request for count in parse_counts(tokens) for request in bench.requests_at(count, prompts)]
        check_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        load = partial(load_pond, model, compile)
        pipeline = load()
    log = out / "runs.jsonl"
    result = _run("generations", lambda count: bench.work(pipeline, requests, chosen, log, engine, count, load))
    with one_sentence(OSError):
        (out / "work.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    figures = [
        quality_over_seconds(
            [row for row in result["rows"] if row["tokens"] == count], f"{count} tokens (measured here)"
        )
        for count in dict.fromkeys(row["tokens"] for row in result["rows"])
    ]
    with one_sentence(OSError):
        (out / "work.html").write_text("<!doctype html>" + "".join(fragments(figures)), encoding="utf-8")
    columns = ("tokens", "method", "solver", "seconds", "attention_share", "psnr_converged", "psnr_dense")
    _print(result, as_json, (*columns, "ssim_converged", "vmaf_converged"))
    if not as_json:
        for lead in result["ahead"]:
            low, high = lead["interval"]
            say(
                f"{lead['tokens']} tokens, {lead['psnr']} dB: {lead['ours']} is {lead['ratio']:.2f}x as fast as "
                f"{lead['best_other']} ({low:.2f} to {high:.2f})"
            )


def ui(
    repeats: Annotated[int, typer.Option(min=1, help="Picks and drags of each kind.")] = 20,
    as_json: AsJson = False,
) -> None:
    """First picture of the page, and the answer to every pick and drag, in headless Chromium."""
    with one_sentence(ValueError):
        from timeripple.bench.ui import GOALS, page_speed
    result = _run("visits and picks", lambda count: page_speed(repeats, count))
    first = {"what": "first picture", "median": None, "worst": result["first_picture"], "goal": GOALS["first_picture"]}
    player = {"what": "player ready", "median": None, "worst": result["player"], "goal": None}
    rows = [first, player, *result["tabs"], *result["picks"], *result["drags"]]
    shown = result if as_json else result | {"rows": rows}
    _print(shown, as_json, ("what", "median", "worst", "goal"))


def _lengths(tokens: str, usual: tuple[int, ...], model: str) -> tuple[tuple[int, ...], "PondPipeline"]:
    """Numbers of tokens, `usual` where none are given, and a Pond that has been asked whether it can make them."""
    from timeripple.bench.attention import request_for
    from timeripple.clips.models import load_pond

    counts, pipeline = parse_counts(tokens) if tokens else usual, load_pond(model)
    for length in counts:
        request_for(length).check(pipeline)
    return counts, pipeline


def load(
    visitors: Annotated[int, typer.Option(min=1, help="Open pages at a time.")] = 50,
    seconds: Annotated[int, typer.Option(min=1, help="How long they come and go.")] = 120,
    as_json: AsJson = False,
) -> None:
    """Many visitors at once on the real app: pages, picks, runs, uploads and cancels, over HTTP."""
    with one_sentence(ValueError):
        try:
            from timeripple.bench import load as bench
        except ImportError:
            raise ValueError("Visitors speak HTTP through httpx, which comes with Gradio; install '.[app]'.") from None
    result = _run("seconds", lambda count: bench.load(visitors, seconds, count))
    _print(result, as_json, ("what", "count", "p50", "p95", "worst"))
    if not as_json:
        say("lost {lost}, mixed {mixed}, refused {refused}, memory grew by {growth_mb:.0f} MB".format(**result))


def _run(name: str, bench: Callable[[Count], dict[str, Any]]) -> dict[str, Any]:
    """The result of a benchmark, which is given what moves a progress bar."""
    with one_sentence(ValueError, OSError), counted(name) as count:
        return bench(count)


def _print(result: dict[str, Any], as_json: bool, columns: tuple[str, ...]) -> None:
    """A benchmark as one JSON object, or some columns of its rows as a table."""
    if as_json:
        print_json(result)
        return
    title = f"{result['kind'].capitalize()} on {result['environment']['cpu']}"
    table = table_of(title, [column.replace("_", "\n") for column in columns], left=TEXTS)
    for row in result["rows"]:
        cells = (row[column] for column in columns)
        table.add_row(*("-" if c is None else f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells))
    console().print(table)


def _quality_table(rows: list[dict[str, Any]]) -> Table:
    columns = ("method", "feedback", "saving", "all steps", "kind", "PSNR dB", "SSIM")
    title = "Measured here, against dense clips of the same noise; saving over the reuse window"
    table = table_of(title, columns, left=("method", "kind"))
    for row in rows:
        measured: tuple[str, ...] = ("-", "-", "out of reach", "-", "-")
        if row["psnr"] is not None:
            savings = f"{row['saving']:.1%}", f"{row['saving_all_steps']:.1%}", row["saving_kind"]
            measured = *savings, f"{row['psnr']:.2f}", f"{row['ssim']:.4f}"
        table.add_row(row["method"], "yes" if row["feedback"] else "no", *measured)
    return table


def support(
    into: Annotated[Path | None, typer.Option(help="A file whose table, between its marks, becomes this one.")] = None,
) -> None:
    """In which pipelines of diffusers reuse works, tried on tiny ones of the real classes (a minute)."""
    with one_sentence(ValueError, OSError):
        from timeripple.bench import support as tried

        if into is not None:
            tried.replaced(into.read_text(encoding="utf-8"), "")  # whether it can be, before it takes a minute
        with counted("pipelines") as count:
            table = tried.table(tried.support(count))
        say(table)
        if into is not None:
            into.write_text(tried.replaced(into.read_text(encoding="utf-8"), table), encoding="utf-8")
