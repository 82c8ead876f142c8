"""What all commands share: options, errors in one sentence, progress and tables."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from timeripple.clips.generate import Request

USER_ERROR = 2

Prompt = Annotated[str, typer.Option(help='Such as "a red ball rolling left across the ocean at sunset".')]
Prompts = Annotated[int, typer.Option(help="Prompts to average over.")]
Seed = Annotated[int, typer.Option(help="Of the initial noise.")]
Steps = Annotated[int, typer.Option(help="Denoising steps.")]
At = Annotated[str, typer.Option(help="Denoising steps to look at, counted from 1, with commas between.")]
Frames = Annotated[int, typer.Option(help="Frames of the clip.")]
Size = Annotated[str, typer.Option(help="Pixels: N or WxH, multiples of 8.")]
Tokens = Annotated[str, typer.Option(help="Lengths of sequences, separated by commas.")]
Model = Annotated[str, typer.Option(help='"pond", the folder of a diffusers pipeline, or its name on the hub.')]
PondModel = Annotated[str, typer.Option(help='"pond" or the folder of a model of its kind.')]
Device = Annotated[str, typer.Option(help='"auto", "cpu", "cuda" or "cuda:N".')]
Dtype = Annotated[str, typer.Option(help="Of the denoiser: auto, bfloat16, float16 or float32.")]
Offload = Annotated[str, typer.Option(help="What waits in the host's memory: none, model, group or sequential.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the blocks of the denoiser; takes a minute first.")]
Engine = Annotated[str, typer.Option(help="local, or ray to spread runs over the machines of a Ray cluster.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


@contextmanager
def one_sentence(*errors: type[Exception]) -> Iterator[None]:
    """Turn `errors` into their message on stderr and exit code 2."""
    try:
        yield
    except errors as error:
        message = str(error)
        if isinstance(error, OSError) and error.filename:
            message = f"{error.filename}: {error.strerror}."
        typer.echo(message, err=True)
        raise typer.Exit(USER_ERROR) from None


def check_file(path: Path) -> None:
    """Raise OSError unless the file can be written; what it holds stays, and none is left where none was."""
    is_new = not path.exists()
    path.open("a", encoding="utf-8").close()
    if is_new:
        path.unlink()


def parse_size(text: str) -> tuple[int, int]:
    """ "128" or "192x128" to (width, height)."""
    parts = text.lower().split("x")
    if not all(part.isascii() and part.isdigit() for part in parts) or len(parts) > 2:
        raise ValueError(f'The size is "{text}"; give N or WxH in pixels, such as 128 or 192x128.')
    return int(parts[0]), int(parts[-1])


def parse_counts(text: str) -> tuple[int, ...]:
    """ "5184,9216" to numbers."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f'These numbers are "{text}"; give whole numbers and commas, such as 5184,9216.')
    return tuple(map(int, parts))


def parse_names(text: str) -> tuple[str, ...]:
    """ "dense,token:0.7" to names."""
    return tuple(name.strip() for name in text.split(","))


def clip_size(steps: int, frames: int, size: str) -> dict[str, int]:
    """The settings of a clip as requests and benchmarks name them."""
    width, height = parse_size(size)
    return {"steps": steps, "num_frames": frames, "height": height, "width": width}


def loaded_request(model: str, prompt: str, seed: int, **size: int) -> "tuple[Any, Request]":
    """A pipeline and a request for it."""
    from timeripple.clips.generate import Request
    from timeripple.clips.models import load_pipeline

    pipeline = load_pipeline(model)
    return pipeline, Request.for_pipeline(pipeline, prompt, seed=seed, **size)


def progress_bars() -> Progress:
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
def counted(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, moved by what this yields, which takes (done, all)."""
    with progress_bars() as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def console() -> Console:
    """For results; files and pipes are as wide as the tables need."""
    return Console(width=None if sys.stdout.isatty() else 120)


def say(text: str) -> None:
    """A line as it is, without colours."""
    console().print(text, highlight=False, markup=False, soft_wrap=True)


def table_of(title: str, columns: Sequence[str], left: Sequence[str] = ()) -> Table:
    """An empty table; columns named in `left` are texts, the others numbers."""
    table = Table(title=title, box=SIMPLE)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    return table


def print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result, indent=2, allow_nan=False))
