"""`probe`, `lab` and `record`: what attention sees in a dense run, what reuse would do to it, and both to keep."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from timeripple.cli.common import (
    AsJson,
    At,
    Frames,
    Model,
    Prompt,
    Seed,
    Size,
    Steps,
    check_file,
    clip_size,
    console,
    loaded_request,
    one_sentence,
    print_json,
    say,
    table_of,
)  # fmt: skip


def add_to(app: typer.Typer) -> None:
    app.command()(probe)
    app.command()(lab)
    app.command()(record)


def probe(
    prompt: Prompt,
    at: At = "10",
    seed: Seed = 0,
    steps: Steps = 20,
    frames: Frames = 17,
    size: Size = "128",
    model: Model = "pond",
    out: Annotated[Path, typer.Option(help="JSON file for the correlations of all channels, and the heads.")] = Path(
        "probe.json"
    ),
) -> None:
    """How much channels of Q and K repeat themselves along t, y and x in a dense run, and what its heads attend to."""
    with one_sentence(ValueError, OSError):
        from timeripple.clips.generate import read_steps
        from timeripple.inspection.reports import probe_report

        given, wanted = clip_size(steps, frames, size), read_steps(at, steps)
        check_file(out)
        result = probe_report(*loaded_request(model, prompt, seed, **given), wanted)
    out.write_text(json.dumps(result), encoding="utf-8")
    console().print(_correlation_table(result["rows"]))
    console().print(_head_table(result["heads"]))
    say(f"Wrote {out}")


def lab(
    prompt: Prompt,
    method: Annotated[str, typer.Option(help="channel, token or tile: name[:saving][:key=value...].")] = "token:0.7",
    at: At = "10",
    seed: Seed = 0,
    steps: Steps = 20,
    frames: Frames = 17,
    size: Size = "128",
    model: Model = "pond",
    as_json: AsJson = False,
) -> None:
    """What reuse saves and costs in every head of a dense run, against skipping and zeroing at the same saving.

    One threshold serves the heads of a layer; drift is how far the error has moved since the first of the steps.
    """
    with one_sentence(ValueError):
        from timeripple.clips.generate import read_steps
        from timeripple.inspection.laboratory import laboratory_report, parse_reuse

        config = parse_reuse(method)
        given, wanted = clip_size(steps, frames, size), read_steps(at, steps)
        result = laboratory_report(*loaded_request(model, prompt, seed, **given), wanted, config)
    if as_json:
        print_json(result)
    else:
        console().print(_laboratory_table(result["rows"], config.text))


def record(
    prompt: Prompt,
    out: Annotated[Path, typer.Option(help="Folder for frames, q, k and v, which the demo shows.")],
    at: At = "10",
    seed: Seed = 0,
    steps: Steps = 20,
    frames: Frames = 17,
    size: Size = "128",
    model: Model = "pond",
    bits: Annotated[int, typer.Option(help="Of every number: 8 or 16.")] = 8,
) -> None:
    """Keeps a dense run to look into: frames, and q, k and v of all layers at some steps."""
    with one_sentence(ValueError, OSError):
        from timeripple.attention.timing import environment
        from timeripple.clips.generate import read_steps
        from timeripple.inspection.probe import inspect_request

        given, wanted = clip_size(steps, frames, size), read_steps(at, steps)
        pipeline, request = loaded_request(model, prompt, seed, **given)
        out.mkdir(parents=True, exist_ok=True)
        seen = inspect_request(pipeline, request, wanted, out, bits=bits)
        seen.save(prompt=prompt, seed=seed, model=model, bits=bits, environment=environment(pipeline))
    megabytes = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    say(f"Wrote {out}, {megabytes:.1f} MB")


def _correlation_table(rows: list[dict[str, Any]]) -> Table:
    columns = ("step", "layer", "head", "of", "along t", "along y", "along x")
    title = "Correlation with the next token, mean over channels (measured here)"
    table = table_of(title, columns, left=("layer", "of"))
    for row in rows:
        channels = row["values"]
        means = {
            axis: sum(values[i] for values in channels) / len(channels)
            for i, (axis, lag) in enumerate(row["columns"])
            if lag == 1
        }
        numbers = (f"{means[axis]:.2f}" if axis in means else "-" for axis in "tyx")
        table.add_row(str(row["step"] + 1), row["layer"], str(row["head"]), row["side"], *numbers)
    return table


def _head_table(rows: list[dict[str, Any]]) -> Table:
    columns = ("step", "layer", "head", "own frame", "own place", "kind", "entropy")
    title = "Attention to a token's own frame and own place, over uniform attention (measured here)"
    table = table_of(title, columns, left=("layer", "kind"))
    for row in rows:
        numbers = f"{row['spatial']:.1f}×", f"{row['temporal']:.1f}×", row["kind"], f"{row['entropy']:.2f}"
        table.add_row(str(row["step"] + 1), row["layer"], str(row["head"]), *numbers)
    return table


def _laboratory_table(rows: list[dict[str, Any]], method: str) -> Table:
    others = {name: kind for row in rows for name, kind, *_ in row["alternatives"]}
    errors = (f"error:\n{name}\n({kind})" for name, kind in others.items())
    columns = ("step", "layer", "head", "θ", f"saving\n({rows[0]['kind']})", "error:\nreuse", *errors, "drift")
    table = table_of(f"{method}: errors of the output over its size, measured here", columns, left=("layer",))
    for row in rows:
        found = {name: f"{error:.3f}" for name, _, _, error in row["alternatives"]}
        place = str(row["step"] + 1), row["layer"], str(row["head"]), f"{row['theta']:.3g}", f"{row['saving']:.1%}"
        numbers = (f"{row['error']:.3f}", *(found.get(name, "-") for name in others))
        table.add_row(*place, *numbers, f"{row['drift']:.2f}")
    return table
