"""`kernels` and `gpu`: what compilers and a GPU say of the kernels, and what a GPU makes of all of it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from timeripple.cli.common import (
    AsJson,
    console,
    one_sentence,
    parse_names,
    print_json,
    progress_bars,
    say,
    table_of,
)


def add_to(app: typer.Typer) -> None:
    app.command()(kernels)
    app.command()(gpu)


def kernels(
    targets: Annotated[str, typer.Option(help="GPU architectures, separated by commas; by default all.")] = "",
    as_json: AsJson = False,
) -> None:
    """Compile every Triton kernel for real GPUs, without one: registers, spills, shared memory, occupancy."""
    with one_sentence(ValueError, ImportError):
        from timeripple.attention.timing import environment
        from timeripple.bench import kernels as compiling

        names = tuple(name.strip() for name in targets.split(",") if name.strip()) or tuple(compiling.TARGETS)
        compiled = compiling.report(names)
    with progress_bars() as progress:
        total = sum(len(list(compiling.builds(compiling.TARGETS[name]))) for name in names)
        rows = list(progress.track(compiled, total=total, description="compiling"))
    if as_json:
        print_json({"rows": rows, "environment": environment(), "kind": "compiled here"})
    else:
        console().print(_kernel_table(rows))


def gpu(
    minutes: Annotated[float, typer.Option(help="For all parts together.")] = 13,
    parts: Annotated[
        str,
        typer.Option(
            help="Of kernels, attention, end-to-end, denoising, pipelines, training; by default all, in this order."
        ),
    ] = "",
    device: Annotated[str, typer.Option(help='"cuda:N", or "cpu" for what can be rehearsed there.')] = "cuda:0",
    small: Annotated[bool, typer.Option("--small", help="Tiny sizes, for a rehearsal.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for one JSON file a part.")] = Path("outputs/gpu"),
) -> None:
    """Everything a GPU shall tell: kernels against float64, attention in real shapes, Pond, whole denoising runs in a
    real model's size, pipelines, training.

    Every part runs in a process of its own and ends in time; one that fails is a finding, and the next one runs.
    """
    with one_sentence(ValueError, OSError):
        from timeripple.bench.gpu import PARTS, run_parts

        chosen = parse_names(parts) if parts else tuple(PARTS)
        run_parts(out, minutes, chosen, device, small, on_part=_print_part)
    say(f"Wrote {len(chosen)} files to {out}")


def _kernel_table(rows: list[dict[str, Any]]) -> Table:
    texts = ("kernel", "target", "configuration")
    columns = (*texts, "registers", "spills B", "shared B", "occupancy")
    table = table_of("What the compilers say; occupancy is an estimate", columns, left=texts)
    for row in rows:
        figures = (row["registers"], row["spills"], row["shared_bytes"])
        table.add_row(row["kernel"], row["target"], row["config"], *map(str, figures), f"{row['occupancy']:.0%}")
    return table


def _print_part(document: dict[str, Any]) -> None:
    """What one part of `gpu` found, as a table."""
    from timeripple.bench.gpu import PARTS

    columns = PARTS[document["part"]].columns
    device = document["environment"].get("device", "an unknown device")
    titles = [column.replace("_", "\n") for column in columns]
    table = table_of(f"{document['part']}: {document['outcome']}, measured here on {device}", titles, left=titles[:2])
    for row in document["rows"]:
        cells = (row.get(column) for column in columns)
        table.add_row(*("-" if c is None else f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells))
    console().print(table)
    failures = {f"{row.get('method', '')} {row.get('case', '')}".strip(): row["failure"] for row in _failed(document)}
    said = [f"{what}: {why}" for what, why in list(failures.items())[:15]]
    for sentence in (*said, *document.get("notes", ()), document.get("last_words", "")):
        say(sentence)


def _failed(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in (*document["rows"], *document.get("cases", ())) if row.get("failure")]
