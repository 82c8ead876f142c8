"""What the server keeps of every open page: the values of its `gr.State`s, and how its components were changed, without
what they show: Gradio needs all of that to answer rightly, as whether something is to be seen.

Gradio also keeps a copy of the whole page with all that was shown on it, a megabyte each, so that a deep link can be
made of it (`gr.DeepLinkButton`), of which there is none here. Written for Gradio 6.31's `state_holder`; a test counts
what is kept.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy

from gradio.state_holder import SessionState, StateHolder


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
    """The lifespan of an app whose sessions are lean."""
    app.state_holder = LeanStates()
    app.state_holder.set_blocks(app.get_blocks())
    yield
