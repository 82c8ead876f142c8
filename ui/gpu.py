"""What needs the model, on a GPU that is lent for each piece of work (Hugging Face ZeroGPU) or where the app runs.

On ZeroGPU a function that `spaces.GPU` decorates runs in a process of its own, which sees a GPU for as many seconds as
were asked for. Arguments and what it yields are copied between the processes; callbacks are not, so steps are yielded.
Files are shared.
"""

import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from html import unescape
from typing import Any, NamedTuple

import gradio as gr

from timeripple.bench.attention import request_for
from timeripple.bench.roofline import attention_scaling
from timeripple.clips.compare import compare
from timeripple.clips.generate import Cancelled, Request
from timeripple.clips.methods import Method
from timeripple.inspection.laboratory import laboratory_report
from timeripple.inspection.probe import inspect_clip, inspect_request
from timeripple.inspection.reports import attention_report, probe_report
from ui.limits import gpu_is_lent, seconds_needed


class Works(NamedTuple):
    """Functions of the library on one pipeline, each called with a `ui.runs.Run` in front of its other arguments.

    Steps are reported to the run, and Cancelled is raised soon after it is to stop.
    """

    compare: Callable
    inspect_request: Callable
    inspect_clip: Callable
    probe_report: Callable
    attention_report: Callable
    laboratory_report: Callable
    attention_scaling: Callable


def works(pipeline) -> Works:
    def of_methods(request: Request, methods: Sequence[Method], *_) -> int:
        return seconds_needed(pipeline, request, sum(method.evaluations(request.steps) for method in methods))

    def of_one(request: Request, *_) -> int:
        return seconds_needed(pipeline, request)

    def of_clip(clip, *_) -> int:
        frames, height, width = clip.shape[:3]
        return seconds_needed(pipeline, Request("a clip", num_frames=frames, height=height, width=width))

    def of_lengths(tokens: Sequence[int], *_) -> int:
        return sum(seconds_needed(pipeline, request_for(count)) for count in tokens)

    return Works(
        lent(partial(compare, pipeline), of_methods),
        lent(partial(inspect_request, pipeline), of_one),
        lent(partial(inspect_clip, pipeline), of_clip),
        lent(partial(probe_report, pipeline), of_one),
        lent(partial(attention_report, pipeline), of_one),
        lent(partial(laboratory_report, pipeline), of_one),
        lent(partial(attention_scaling, pipeline), of_lengths),
    )


def lent(work: Callable, seconds: Callable[..., int]) -> Callable:
    """`work(*arguments, on_step=, should_stop=)` as a function of a run and the arguments.

    seconds(*arguments): for how long a GPU is asked for.
    """
    if not gpu_is_lent():
        return lambda run, *arguments: work(*arguments, on_step=run.report, should_stop=run.stop.is_set)
    import spaces

    @spaces.GPU(duration=seconds)
    def on_gpu(*arguments) -> Iterator[tuple[bool, Any]]:
        yield from stream(lambda report, should_stop: work(*arguments, on_step=report, should_stop=should_stop))

    def follow(run, *arguments) -> Any:
        try:
            with closing(on_gpu(*arguments)) as events:
                for finished, value in events:
                    if finished:
                        return value
                    run.report(*value)
                    if run.stop.is_set():
                        raise Cancelled
        except gr.Error as error:  # no GPU is free, or the visitor's quota is used up
            raise ValueError(f"No GPU was lent: {plain(error.message)}") from None
        raise ValueError("The GPU was taken back before the work was finished; ask for fewer steps or a smaller size.")

    return follow


def plain(message: str) -> str:
    """A message in HTML, as Gradio's are, as a sentence in plain text."""
    text = " ".join(unescape(re.sub(r"<[^>]*>", " ", str(message))).split()).strip("'\" ")
    return text if text.endswith((".", "!", "?")) else f"{text}."


def stream(work: Callable[[Callable, Callable], Any]) -> Iterator[tuple[bool, Any]]:
    """(False, what `work` reports) while it runs in a thread, then (True, what it returns); its errors are raised.

    work(report, should_stop): is told to stop, and waited for, when this is closed before its end.
    """
    events, stop = queue.Queue(), threading.Event()

    def run() -> None:
        try:
            events.put((True, work(lambda *event: events.put((False, event)), stop.is_set)))
        except BaseException as error:
            events.put((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            finished, value = events.get()
            if finished is None:
                raise value
            yield finished, value
            if finished:
                return
    finally:
        stop.set()
        thread.join()
