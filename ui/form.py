"""What the forms of the tabs share: clip sizes, the request they make, and how their events are wired."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import Context, copy_context
from functools import wraps
from html import escape

import gradio as gr
import torch

from timeripple.clips.generate import Request
from timeripple.clips.pipelines import made
from timeripple.pond.pipeline import PondPipeline

SIZES = {"Tiny": (9, 64, 64), "Small": (17, 128, 128), "Standard": (33, 192, 192), "Large": (49, 256, 256)}
"""Pond's: frames, height and width."""
POLL_SECONDS = 0.5
QUOTED = 150  # characters of each end of a long sentence
QUIET = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
"""Keyword arguments of events that answer at once."""
LATEST = QUIET | {"trigger_mode": "always_last"}
"""Keyword arguments of events of which the last answer counts; controls that draw the same share one `gr.on`, as
answers of two events may come in the wrong order."""
QUEUED = QUIET | {"queue": True, "concurrency_limit": None}
"""Keyword arguments of events that may fail with a message or take as long as a run."""

PICK = """element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button) trigger('select', {...button.dataset});
});"""
"""A click on a button of an HTML component tells Python its data attributes."""


class _Here(threading.local):
    drawing = False


def _compute_alone() -> None:
    """Has this thread compute without helpers: what is drawn is small, and would wait longer for a core to help than
    the help saves where a clip is in the making."""
    torch.get_num_threads()  # a thread takes PyTorch's number when it first asks, and then keeps its own
    torch.set_num_threads(1)


def _drawing_threads() -> ThreadPoolExecutor:
    """All of them, started before any other thread could take their number."""
    count, threads = 2 * (os.cpu_count() or 1), torch.get_num_threads()
    pool, together = ThreadPoolExecutor(count, "timeripple-drawing", _compute_alone), threading.Barrier(count)
    wait([pool.submit(together.wait) for _ in range(count)])
    torch.set_num_threads(threads)  # new threads take the number that was set last
    return pool


_pool = _drawing_threads()
_here = _Here()


def in_turn(draw: Callable) -> Callable:
    """`draw` in one of a few threads, which all visitors and tabs share: PyTorch keeps megabytes for every thread that
    it computes in, and more at once would come no sooner. One may call another."""

    def begin(context: Context, *given):
        _here.drawing = True
        return context.run(draw, *given)

    @wraps(draw)
    def drawn(*given):
        return draw(*given) if _here.drawing else _pool.submit(begin, copy_context(), *given).result()

    return drawn


def remember(name: str) -> str:
    """JavaScript that writes an id into the page's address, so that a reload shows it again: to this tab of the browser
    and no other."""
    return f"""id => {{
      const url = new URL(location);
      for (const old of [...url.searchParams.keys()])
        if (old !== '__theme' && (old === '{name}' || !['run', 'look'].includes(old))) url.searchParams.delete(old);
      if (id) url.searchParams.set('{name}', id);
      history.replaceState(history.state, '', url);
    }}"""


def queue_note(ahead: int) -> str:
    """What a run says that waits for its turn."""
    return f"Waiting: {ahead} {'run comes' if ahead == 1 else 'runs come'} first."


def sizes_of(pipeline) -> dict[str, tuple[int, int, int]]:
    """The sizes the forms offer: Pond's, or another pipeline's own and half of it each way."""
    if isinstance(pipeline, PondPipeline):
        return SIZES
    own = Request.for_pipeline(pipeline, "any")
    return {"Small": made(pipeline, (own.num_frames, own.height // 2, own.width // 2)), "Standard": own.size}


def size_choices(sizes: dict[str, tuple[int, int, int]]) -> list[tuple[str, str]]:
    """Choices of a dropdown: what is shown, and the size as `size_text`."""
    return [(f"{name} · {size[0]} frames of {size[2]} × {size[1]}", size_text(size)) for name, size in sizes.items()]


def size_text(size: tuple[int, int, int]) -> str:
    """Frames, height and width as a form holds them, such as "33x192x192"."""
    return "x".join(map(str, size))


def read_request(
    prompt: str, seed: int | None, size: str, steps: float, negative_prompt: str = "", guidance_scale: float = 3.0
) -> Request:
    """Raises ValueError, one sentence, for values that are missing."""
    if seed is None:
        raise ValueError("The seed is missing; give a whole number, such as 7.")
    parts = str(size).split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"The size is {size!r}; choose one of those offered.")
    return Request(prompt, negative_prompt, seed, int(steps), *map(int, parts), guidance_scale)


def size_of(request: Request, sizes: dict[str, tuple[int, int, int]]) -> str:
    """A request's size as the form holds it. Raises ValueError, one sentence, for one that the form does not offer."""
    size = request.num_frames, request.height, request.width
    if size in sizes.values():
        return size_text(size)
    text = f"{request.num_frames} frames of {request.width} × {request.height}"
    raise ValueError(f"These settings are for {text}, which the form does not offer; use the command line for them.")


@contextmanager
def one_sentence() -> Iterator[None]:
    """A ValueError inside the block becomes the message that the page shows."""
    try:
        yield
    except ValueError as error:
        raise failure(str(error)) from None


def failure(sentence: str) -> gr.Error:
    """The message that the page shows: as text, whatever a visitor has put into it, since Gradio takes it as HTML."""
    return gr.Error(escape(shortened(sentence), quote=False), print_exception=False)


def shortened(sentence: str) -> str:
    """A sentence that quotes much of what was sent without its middle."""
    if len(sentence) <= 2 * QUOTED:
        return sentence
    return f"{sentence[:QUOTED]} … {sentence[-QUOTED:]}"
