"""Endpoints for programs (`gradio_client`), by stable names: what the tabs show, without the page.

Sizes are `num_frames` frames of `pixels` x `pixels`; steps to look at are counted from 1, as texts such as "5,10".
Whatever can be known to be wrong is said before anything is queued, and a caller that is gone is not worked for.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import isgeneratorfunction, signature
from typing import Any

import gradio as gr
from gradio.context import LocalContext

from timeripple.clips.generate import Request, read_steps
from timeripple.clips.methods import parse_method
from timeripple.inspection.laboratory import parse_reuse
from timeripple.inspection.reports import check_place
from ui.comparison import submit
from ui.form import POLL_SECONDS, shortened
from ui.gpu import Works
from ui.runs import Run, Runs, visitor_now
from ui.timing_tab import submit as submit_timing

PATIENCE = 10  # seconds for which what is said to a caller may lie there unread
KINDS = {int: "a whole number", float: "a number", str: "a text", list[int]: "a list of whole numbers"}


def add_endpoints(pipeline, works: Works, runs: Runs) -> None:
    """Adds /compare, /probe, /attention, /laboratory and /timing to the app that is being built."""

    def checked(prompt: str, seed: int, steps: int, num_frames: int, pixels: int, at: str) -> tuple[Request, set[int]]:
        """The request, and the steps to look at, from 0."""
        request = Request(prompt, "", seed, steps, num_frames, pixels, pixels)
        request.check(pipeline)
        runs.limits.check(pipeline, request)
        wanted = read_steps(at, steps)
        runs.limits.check_captured(pipeline, request, len(wanted))
        return request, wanted

    def compare(
        prompt: str,
        methods: str = "dense,token:0.75",
        seed: int = 0,
        steps: int = 20,
        num_frames: int = 33,
        pixels: int = 192,
    ) -> Iterator[tuple[dict, str | None]]:
        """Compares methods on one prompt and seed; yields progress, at last the report and the side-by-side video."""
        request = Request(prompt, "", seed, steps, num_frames, pixels, pixels)
        texts = methods.split(",")
        runs.limits.check_number(len(texts))
        run = submit(pipeline, works, runs, request, [parse_method(text) for text in texts])
        for _ in until_finished(runs, run):
            yield {"state": run.state, **{name: event.step for name, event in run.progress.items()}}, None
        yield finite(result_of(run)), str(run.folder / "side_by_side.mp4")

    def probe(
        prompt: str, at: str = "10", seed: int = 0, steps: int = 20, num_frames: int = 17, pixels: int = 128
    ) -> dict:
        """How much the channels of Q and K repeat themselves in a dense run, and what its heads attend to."""
        request, wanted = checked(prompt, seed, steps, num_frames, pixels, at)
        return awaited(runs, runs.submit(lambda run: works.probe_report(run, request, wanted)))

    def attention(
        prompt: str,
        token: str = "1,1,1",
        at: int = 10,
        layer: int = 0,
        head: int = 0,
        method: str = "token:0.7",
        seed: int = 0,
        steps: int = 20,
        num_frames: int = 17,
        pixels: int = 128,
    ) -> dict:
        """What a token at t,y,x, counted from 1, attends to in a dense run, and would with reuse; the head's map."""
        request, (step,) = checked(prompt, seed, steps, num_frames, pixels, str(at))
        place, config = read_place(token), parse_reuse(method)
        check_place(pipeline, request, layer, head, place)
        return awaited(
            runs, runs.submit(lambda run: works.attention_report(run, request, step, layer, head, place, config))
        )

    def laboratory(
        prompt: str,
        method: str = "token:0.7",
        at: str = "10",
        seed: int = 0,
        steps: int = 20,
        num_frames: int = 17,
        pixels: int = 128,
    ) -> dict:
        """What reuse saves and costs in every head of a dense run, against skipping and zeroing at the same saving."""
        request, wanted = checked(prompt, seed, steps, num_frames, pixels, at)
        config = parse_reuse(method)
        return awaited(runs, runs.submit(lambda run: works.laboratory_report(run, request, wanted, config)))

    def timing(tokens: list[int], saving: float = 0.7) -> dict:
        """Milliseconds of dense, token and tile attention at each number of tokens, measured where the app runs."""
        return awaited(runs, submit_timing(pipeline, works, runs, tokens, saving))

    most = runs.limits.max_queue + 2  # as many as can wait for runs, and some to be refused
    for endpoint in (compare, probe, attention, laboratory, timing):
        gr.api(said(endpoint), api_name=endpoint.__name__, concurrency_id="api", concurrency_limit=most)


def said(endpoint: Callable) -> Callable:
    """The endpoint with every argument checked to be of its type, and with its ValueErrors as what the caller reads."""
    parameters = signature(endpoint).parameters

    @contextmanager
    def checked(given: tuple) -> Iterator[None]:
        try:
            for (name, parameter), value in zip(parameters.items(), given, strict=False):
                if not fits(value, parameter.annotation):
                    raise ValueError(f"{name} is {str(value)[:40]!r}; give {KINDS[parameter.annotation]}.")
            yield
        except ValueError as error:
            raise gr.Error(shortened(str(error)), print_exception=False) from None

    @wraps(endpoint)
    def streamed(*given):
        with checked(given):
            yield from endpoint(*given)

    @wraps(endpoint)
    def answered(*given):
        with checked(given):
            return endpoint(*given)

    return streamed if isgeneratorfunction(endpoint) else answered


def fits(value: Any, kind: Any) -> bool:
    """Whether what came as JSON is of one of `KINDS`."""
    if kind == list[int]:
        return isinstance(value, list) and all(fits(each, int) for each in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and not isinstance(value, bool)


def read_place(text: str) -> tuple[int, int, int]:
    """ "3,1,2" -> (2, 0, 1). Raises ValueError, one sentence."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(
        part.isascii() and part.isdecimal() and len(part) < 10 and int(part) for part in parts
    ):
        raise ValueError(f"The token is {text[:40]!r}; give its t,y,x counted from 1, such as 1,1,1.")
    return tuple(int(part[:9]) - 1 for part in parts)


def until_finished(runs: Runs, run: Run) -> Iterator[None]:
    """Waits for a run that a program asked for; it ends with the call, and when nobody reads what is said to it."""
    heard = time.monotonic()
    try:
        while not runs.wait(run, POLL_SECONDS):
            heard = time.monotonic() if is_listening() else heard
            if time.monotonic() - heard > PATIENCE:
                raise ValueError("Nobody reads the answer, so the run is stopped.")
            yield
    finally:
        runs.cancel(run.id)


def is_listening() -> bool:
    """Whether the caller has read all that was said to it so far, in Gradio's stream of its session."""
    app = LocalContext.blocks.get(None)
    if app is None:
        return True
    messages = app._queue.pending_messages_per_session.get(visitor_now())
    return messages is not None and messages.empty()


def awaited(runs: Runs, run: Run) -> Any:
    for _ in until_finished(runs, run):
        pass
    return finite(result_of(run))


def result_of(run: Run) -> Any:
    """Raises ValueError, one sentence, where there is none."""
    if run.state != "done":
        raise ValueError(run.error or "The run was cancelled.")
    return run.result


def finite(value: Any) -> Any:
    """The value with None for numbers that JSON cannot say."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
