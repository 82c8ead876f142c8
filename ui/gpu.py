"""Comparisons on a GPU that is lent for each of them (Hugging Face ZeroGPU); elsewhere they run as they are.

On ZeroGPU a function that `spaces.GPU` decorates runs in a process of its own, which sees a GPU for as many seconds as
were asked for. Arguments and what it yields are copied between the processes; callbacks are not, so steps are yielded.
"""

import importlib.util
import queue
import threading
from collections.abc import Callable, Iterator

from timeripple.compare import Comparison, compare
from timeripple.generate import Cancelled, Request, StepEvent
from timeripple.methods import Method
from ui.runs import Run

SECONDS_PER_TERAFLOP = 0.1  # generous: a few times what a lent GPU needs
FIXED_SECONDS = 20

Comparer = Callable[[Run, Request, list[Method]], Comparison]


def comparer(pipeline) -> Comparer:
    """What compares in a run: reports steps to it, and raises Cancelled once it is to stop."""
    if importlib.util.find_spec("spaces") is None:
        return lambda run, request, methods: compare(
            pipeline, request, methods, on_step=run.report, should_stop=run.stop.is_set
        )
    import spaces

    @spaces.GPU(duration=lambda request, methods: seconds_needed(pipeline, request, methods))
    def on_gpu(request: Request, methods: list[Method]) -> Iterator[StepEvent | Comparison]:
        yield from stream(lambda report: compare(pipeline, request, methods, on_step=report))

    def follow(run: Run, request: Request, methods: list[Method]) -> Comparison:
        for event in on_gpu(request, methods):
            if isinstance(event, Comparison):
                return event
            run.report(event)
            if run.stop.is_set():
                raise Cancelled
        raise RuntimeError("the GPU was taken back before the comparison was finished")

    return follow


def seconds_needed(pipeline, request: Request, methods: list[Method]) -> int:
    """Estimate of the time on a GPU: two guidance passes of dense attention and linear layers, 4 N^2 d and 24 N d^2
    floating-point operations a layer, at every step of every method."""
    config = pipeline.transformer.config
    tokens, width = request.tokens, config.num_attention_heads * config.attention_head_dim
    layer = 4 * tokens**2 * width + 24 * tokens * width**2
    total = 2 * config.num_layers * layer * request.steps * len(methods)
    return round(FIXED_SECONDS + SECONDS_PER_TERAFLOP * total / 1e12)


def stream(work: Callable[[Callable], Comparison]) -> Iterator[StepEvent | Comparison]:
    """What `work` reports while it runs in a thread, then what it returns; its errors are raised here."""
    events: queue.Queue = queue.Queue()

    def run() -> None:
        try:
            events.put(work(events.put))
        except BaseException as error:
            events.put(error)

    threading.Thread(target=run, daemon=True).start()
    while isinstance(event := events.get(), StepEvent):
        yield event
    if isinstance(event, BaseException):
        raise event
    yield event
