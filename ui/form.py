"""What the forms of the tabs share: clip sizes, the request they make, and how their events are wired."""

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from timeripple.generate import Request

SIZES = {"Tiny": (8, 64), "Small": (16, 96), "Standard": (16, 128), "Large": (16, 192)}  # frames, pixels
POLL_SECONDS = 0.5
QUIET = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
"""Keyword arguments of events that answer at once."""
QUEUED = QUIET | {"queue": True, "concurrency_limit": None}
"""Keyword arguments of events that may fail with a message or take as long as a run."""

PICK = """element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button) trigger('select', {...button.dataset});
});"""
"""A click on a button of an HTML component tells Python its data attributes."""


def size_choices(*names: str) -> list[tuple[str, str]]:
    """Choices of a dropdown: what is shown, and the name in SIZES."""
    return [(f"{name} · {SIZES[name][0]} frames of {SIZES[name][1]} × {SIZES[name][1]}", name) for name in names]


def read_request(
    prompt: str, seed: int | None, size: str, steps: float, negative_prompt: str = "", guidance_scale: float = 3.0
) -> Request:
    """Raises ValueError, one sentence, for values that are missing."""
    if seed is None or size not in SIZES:
        raise ValueError("The seed is missing; give a whole number, such as 7.")
    frames, pixels = SIZES[size]
    return Request(prompt, negative_prompt, seed, int(steps), frames, pixels, pixels, guidance_scale)


def size_of(request: Request) -> str:
    """The name of a request's size. Raises ValueError, one sentence, for one that the forms do not offer."""
    for name, (frames, pixels) in SIZES.items():
        if (request.num_frames, request.height, request.width) == (frames, pixels, pixels):
            return name
    size = f"{request.num_frames} frames of {request.width} × {request.height}"
    raise ValueError(f"These settings are for {size}, which the form does not offer; use the command line for them.")


@contextmanager
def one_sentence() -> Iterator[None]:
    """A ValueError inside the block becomes the message that the page shows."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from None
