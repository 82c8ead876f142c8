"""Endpoints for programs (`gradio_client`), by stable names: what the tabs show, without the page.

Sizes are `num_frames` frames of `pixels` x `pixels`; steps to look at are counted from 1, as texts such as "5,10".
"""

from collections.abc import Callable, Iterator

import gradio as gr

from timeripple.clips.generate import Request, read_steps
from timeripple.clips.methods import parse_method
from timeripple.inspection.laboratory import parse_reuse
from ui.comparison import submit
from ui.form import POLL_SECONDS, one_sentence
from ui.gpu import Works
from ui.runs import Run, Runs
from ui.timing_tab import submit as submit_timing


def add_endpoints(pipeline, works: Works, runs: Runs) -> None:
    """Adds /compare, /probe, /attention, /laboratory and /timing to the app that is being built."""

    def checked(prompt: str, seed: int, steps: int, num_frames: int, pixels: int) -> Request:
        request = Request(prompt, "", seed, steps, num_frames, pixels, pixels)
        request.check(pipeline)
        runs.limits.check(pipeline, request)
        return request

    def compare(
        prompt: str,
        methods: str = "dense,token:0.75",
        seed: int = 0,
        steps: int = 20,
        num_frames: int = 16,
        pixels: int = 128,
    ) -> Iterator[tuple[dict, str | None]]:
        """Compares methods on one prompt and seed; yields progress, at last the report and the side-by-side video."""
        with one_sentence():
            request = Request(prompt, "", seed, steps, num_frames, pixels, pixels)
            run = submit(pipeline, works, runs, request, [parse_method(text) for text in methods.split(",")])
        try:
            while not runs.wait(run, POLL_SECONDS):
                yield {"state": run.state, **{name: event.step for name, event in run.progress.items()}}, None
        finally:
            runs.cancel(run.id)
        yield result_of(runs, run), str(run.folder / "side_by_side.mp4")

    def probe(
        prompt: str, at: str = "10", seed: int = 0, steps: int = 20, num_frames: int = 16, pixels: int = 96
    ) -> dict:
        """How much the channels of Q and K repeat themselves in a dense run, and what its heads attend to."""
        with one_sentence():
            request, wanted = checked(prompt, seed, steps, num_frames, pixels), read_steps(at, steps)
            return result_of(runs, runs.submit(lambda run: works.probe_report(run, request, wanted)))

    def attention(
        prompt: str,
        token: str = "1,1,1",
        at: int = 10,
        layer: int = 0,
        head: int = 0,
        method: str = "token:0.7",
        seed: int = 0,
        steps: int = 20,
        num_frames: int = 16,
        pixels: int = 96,
    ) -> dict:
        """What a token at t,y,x, counted from 1, attends to in a dense run, and would with reuse; the head's map."""
        with one_sentence():
            request, wanted = checked(prompt, seed, steps, num_frames, pixels), read_steps(str(at), steps)
            place, config = read_place(token), parse_reuse(method)
            return result_of(
                runs,
                runs.submit(lambda run: works.attention_report(run, request, wanted.pop(), layer, head, place, config)),
            )

    def laboratory(
        prompt: str,
        method: str = "token:0.7",
        at: str = "10",
        seed: int = 0,
        steps: int = 20,
        num_frames: int = 16,
        pixels: int = 96,
    ) -> dict:
        """What reuse saves and costs in every head of a dense run, against skipping and zeroing at the same saving."""
        with one_sentence():
            request, wanted = checked(prompt, seed, steps, num_frames, pixels), read_steps(at, steps)
            config = parse_reuse(method)
            return result_of(runs, runs.submit(lambda run: works.laboratory_report(run, request, wanted, config)))

    def timing(tokens: list[int], saving: float = 0.7) -> dict:
        """Milliseconds of dense, token and tile attention at each number of tokens, measured where the app runs."""
        with one_sentence():
            return result_of(runs, submit_timing(works, runs, tokens, saving))

    endpoints: list[Callable] = [compare, probe, attention, laboratory, timing]
    for endpoint in endpoints:
        gr.api(endpoint, api_name=endpoint.__name__, concurrency_limit=None)


def read_place(text: str) -> tuple[int, int, int]:
    """ "3,1,2" -> (2, 0, 1). Raises ValueError, one sentence."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"The token is {text!r}; give its t,y,x counted from 1, such as 1,1,1.")
    return tuple(int(part) - 1 for part in parts)


def result_of(runs: Runs, run: Run):
    """Waits for a run that a program asked for; it is cancelled with the call. Raises gr.Error, one sentence."""
    try:
        runs.wait(run)
    finally:
        runs.cancel(run.id)
    if run.state != "done":
        raise gr.Error(run.error or "The run was cancelled.", print_exception=False)
    return run.result
