"""What the app keeps of every open page: a bounded number of them, and little of each."""

import gc
import tracemalloc

from timeripple.bench.load import look_inside, pick_channel
from timeripple.bench.visitor import Visitor
from ui.limits import Limits

LIMITS = Limits(max_sessions=30)
VISITORS = 20
BYTES = 100_000
"""That a session may keep: 500 of them in 50 MB."""


def stay(url: str) -> None:
    visitor = Visitor(url)
    look_inside(visitor)
    for channel in (3, 8, 13):
        pick_channel(visitor, channel)
    visitor.close()


def test_a_session_keeps_little_and_the_oldest_are_forgotten(app):
    for _ in range(3):  # what the first visits leave is kept once
        stay(app.url)
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(VISITORS):
            stay(app.url)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    sessions = app.state_holder.session_data
    assert len(sessions) >= VISITORS and grown < VISITORS * BYTES
    for _ in range(LIMITS.max_sessions):
        Visitor(app.url).close()
    assert len(sessions) <= LIMITS.max_sessions
