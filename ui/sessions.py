"""What the server keeps of every open page: the values of its `gr.State`s, and how its components were changed, without
what they show: Gradio needs all of that to answer rightly, as whether something is to be seen.

Gradio also keeps a copy of the whole page with all that was shown on it, a megabyte each, so that a deep link can be
made of it (`gr.DeepLinkButton`), of which there is none here. Written for Gradio 6.31's `state_holder`; a test counts
what is kept.
"""

import asyncio
import ctypes
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy

from gradio.state_holder import SessionState, StateHolder

TRIM_SECONDS = 10


class Nothing(dict):
    """A dictionary that stays empty."""

    def __setitem__(self, key, value) -> None:
        """Nothing is kept."""

    def __missing__(self, key) -> dict:
        return {}


class LeanState(SessionState):
    def __init__(self, blocks):  # in place of the original's, which makes the copy
        self.blocks_config = copy(blocks.default_config)
        self.config_values = Nothing()
        self.state_data, self._state_ttl = {}, {}
        self.is_closed = False
        self.STATE_TTL_WHEN_CLOSED = 3600  # seconds


class LeanStates(StateHolder):
    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = LeanState(self.blocks)
        return super().__getitem__(session_id)


@asynccontextmanager
async def lean_sessions(app) -> AsyncIterator[None]:
    """The lifespan of an app whose sessions are lean, and which gives memory back."""
    app.state_holder = LeanStates()
    app.state_holder.set_blocks(app.get_blocks())
    giving = asyncio.create_task(give_memory_back())
    yield
    giving.cancel()


async def give_memory_back() -> None:
    """From time to time, what was freed goes back to the system. Left to itself, glibc keeps pages in which anything
    small is left, which after many visitors is most of what their pictures took."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    while trim:
        await asyncio.sleep(TRIM_SECONDS)
        await asyncio.to_thread(trim, 0)
