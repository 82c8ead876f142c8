"""In which pipelines of diffusers reuse works, tried on tiny ones of the real classes: the table in the README."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline

from timeripple.bench.tiny import PIPELINES, example_files, small_request, tiny
from timeripple.clips.generate import Request, generate
from timeripple.clips.methods import parse_method

METHODS = ("token:0.5", "tile:0.3", "channel:0.5")
BEGIN, END = "<!-- made by `python -m timeripple support` -->\n", "<!-- end -->"
STEPS = 5


def support(on_run: Callable[[int, int], None] | None = None) -> dict[str, dict[str, str]]:
    """By pipeline and method: "works", "dense: " and the reason that was given, or "fails: " and the error.

    Works: something was saved, the clip differs from the dense one and is the same a second time, and the dense clip
    comes again once the method is gone. on_run is called with the pipelines done and all of them.
    """
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="timeripple-") as folder:
        files = example_files(Path(folder))
        for done, name in enumerate(PIPELINES, 1):
            pipeline = tiny(name)
            request = small_request(pipeline, files, steps=STEPS)
            found[name], plain = {}, None
            for method in METHODS:
                found[name][method], plain = _tried(pipeline, request, method, plain)
            if on_run is not None:
                on_run(done, len(PIPELINES))
    return found


def table(found: dict[str, dict[str, str]]) -> str:
    """What `support` gives as lines of the README, between its marks."""
    lines = [
        "| pipeline | " + " | ".join(f"`{method}`" for method in METHODS) + " |",
        "|---" * (1 + len(METHODS)) + "|",
    ]
    lines += [f"| {name} | " + " | ".join(cells[method] for method in METHODS) + " |" for name, cells in found.items()]
    return BEGIN + "\n".join(lines) + "\n" + END


def replaced(text: str, table: str) -> str:
    """A text with this table between its marks. Raises ValueError, one sentence, where there are none."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"There is no table to replace; put {BEGIN.strip()} and {END} where it is to be.")
    return text[: text.index(BEGIN)] + table + text[text.index(END) + len(END) :]


def _tried(
    pipeline: DiffusionPipeline, request: Request, text: str, plain: np.ndarray | None = None
) -> tuple[str, np.ndarray | None]:
    """What the table says, and the dense clip. plain: that clip, where it has been made before."""
    dense, method = parse_method("dense"), parse_method(text)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            if plain is None:
                plain = generate(pipeline, request, dense).frames
            runs = [generate(pipeline, request, each) for each in (method, method, dense)]
        except Exception as error:  # a table names what does not work
            return f"fails: {' '.join(str(error).split())[:120]}", plain
    reasons = {str(each.message) for each in said if "stays dense" in str(each.message)}
    if reasons:
        return "dense: " + min(reasons).removeprefix("Attention stays dense: ").rstrip("."), plain
    first, second, after = (run.frames for run in runs)
    saved = runs[0].saving
    for holds, trouble in (
        (saved is not None and max(saved["per_step"]) > 0, "nothing is saved"),
        (not np.array_equal(first, plain), "the clip is the dense one"),
        (np.array_equal(first, second), "the clip differs from run to run"),
        (np.array_equal(after, plain), "something is left behind"),
    ):
        if not holds:
            return f"fails: {trouble}", plain
    return "works", plain
