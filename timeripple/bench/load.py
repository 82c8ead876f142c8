"""Many visitors at once on the real app: how long pages and picks take while runs go on, and that nothing is lost."""

from __future__ import annotations

import random
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from timeripple.attention.timing import environment
from timeripple.bench.ui import server
from timeripple.bench.visitor import Said, Visitor
from timeripple.clips.video import write_mp4

SIZE, STEPS = "9x64x64", 4
PATIENCE = 600  # seconds until a run of a visitor must have come to something
SETTLING = 15  # seconds, after which memory is given back
RESTING, REST = 0.2, 60  # of a core, below which the server is at rest; seconds that it is waited for
THINKING = 4  # seconds, at most, between what a visitor does
REFUSALS = ("waiting already", "uploads here", "Queue is full")
"""What a server says that has enough to do, and may say."""


@dataclass
class Tally:
    """What the visitors saw. seconds: of every page, pick, upload and cancellation; lost: answers and results that did
    not come; mixed: what came and was another's; refused: sentences that a server with enough to do may say."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    finished: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)

    def timed(self, what: str, work: Callable[[], Any]) -> Any:
        """What the work gives, its seconds noted."""
        start = time.perf_counter()
        result = work()
        self.seconds.setdefault(what, []).append(time.perf_counter() - start)
        return result

    def row(self, what: str) -> dict[str, Any]:
        seconds = self.seconds.get(what) or [0.0]
        p95 = float(np.percentile(seconds, 95))
        return {
            "what": what,
            "count": len(seconds),
            "p50": statistics.median(seconds),
            "p95": p95,
            "worst": max(seconds),
        }


def load(visitors: int = 50, seconds: int = 120, on_run: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """`visitors` that open the page, pick, upload, generate and cancel for so many seconds; runs are always under way.

    visitors, seconds; page_p95, pick_p95 in seconds; lost, mixed, refused: how many, see `Tally`; growth_mb: of the
    server's resident memory since three visitors had done everything once, both times at rest; rows: what, count, p50,
    p95, worst in seconds. Raises ValueError, one sentence, where the app does not start.
    """
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="timeripple-load-") as folder, server(folder) as (url, process):
        clip = Path(folder) / "own.mp4"
        write_mp4(clip, np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8))
        for number in range(3):
            stay(url, clip, Tally(), random.Random(number), end=0)
        before = at_rest(process)
        end = time.monotonic() + seconds
        threads = [
            threading.Thread(target=visit, args=(url, clip, tally, random.Random(number), end), daemon=True)
            for number in range(visitors)
        ]
        for thread in threads:
            thread.start()
        while (left := end - time.monotonic()) > 0:
            if on_run is not None:
                on_run(round(seconds - left), seconds)
            time.sleep(min(1, left))
        for thread in threads:
            thread.join(PATIENCE)
        growth = (at_rest(process) - before) / 1e6
    rows = [tally.row(what) for what in ("page", "pick", "generate", "cancel", "upload")]
    return {
        "visitors": visitors,
        "seconds": seconds,
        "page_p95": rows[0]["p95"],
        "pick_p95": rows[1]["p95"],
        "lost": len(tally.lost),
        "mixed": len(tally.mixed),
        "refused": tally.refused,
        "growth_mb": growth,
        "finished": tally.finished,
        "troubles": sorted({*tally.lost, *tally.mixed})[:20],
        "rows": rows,
        "kind": "measured here",
        "environment": environment(None),
    }


def at_rest(process: int) -> int:
    """Bytes of a process's resident memory, once it has done little for some seconds."""
    server, end = psutil.Process(process), time.monotonic() + REST
    while server.cpu_percent(SETTLING) > 100 * RESTING and time.monotonic() < end:
        pass
    return int(server.memory_info().rss)


def visit(url: str, clip: Path, tally: Tally, chance: random.Random, end: float) -> None:
    """One visitor, who comes in the first third of the time and stays; now and then the page is opened anew."""
    time.sleep(chance.random() * max(0, end - time.monotonic()) / 3)
    while time.monotonic() < end:
        stay(url, clip, tally, chance, end)


def stay(url: str, clip: Path, tally: Tally, chance: random.Random, end: float) -> None:
    """Opens the page and uses it for about five rounds."""
    try:
        visitor = tally.timed("page", lambda: Visitor(url))
        look_inside(visitor)
        while True:
            use(visitor, clip, tally, chance)
            if chance.random() < 0.2 or time.monotonic() > end:
                break
        visitor.close()
    except (Said, httpx.HTTPError, TimeoutError) as error:
        tally.lost.append(f"{type(error).__name__}: {str(error)[:200]}")


def use(visitor: Visitor, clip: Path, tally: Tally, chance: random.Random) -> None:
    """Picks channels, uploads a clip, generates, and waits for the result or cancels it."""
    for channel in chance.sample(range(24), 3):
        answer = tally.timed("pick", partial(pick_channel, visitor, channel))
        if f"Channel {channel} turns with" not in answer:
            tally.mixed.append("a pick showed another channel")
        time.sleep(THINKING * chance.random())
    sent = tally.timed("upload", lambda: visitor.upload(clip))
    if visitor.file(sent["path"]).content != clip.read_bytes():
        tally.mixed.append("an upload came back as another")
    seed = chance.randrange(10**6)
    try:
        tally.timed("generate", lambda: generate(visitor, "a red ball", seed, SIZE, STEPS))
    except Said as error:
        if not any(refusal in str(error) for refusal in REFUSALS):
            raise
        tally.refused += 1
        return
    if chance.random() < 0.5:
        time.sleep(THINKING * chance.random())
        tally.timed("cancel", lambda: cancel(visitor))
        stage, is_done, _ = shown(visitor)
        if "Cancelled" not in stage and not is_done:
            tally.lost.append("a cancelled run does not say so")
    else:
        heading = result_of(visitor)
        tally.finished += 1
        if f"seed {seed} " not in heading + " ":
            tally.mixed.append("a result showed another seed")


def generate(visitor: Visitor, prompt: str, seed: int, size: str, steps: int) -> str:
    """Presses Generate on Compare; the run's id. Raises Said."""
    press = visitor.event(visitor.component("button", value="Generate"), "click")
    wanted = {"Prompt": prompt, "Seed": seed, "Size": size, "Denoising steps": steps}
    for number in visitor.events[press]["inputs"]:
        label = visitor.components[number]["props"].get("label")
        visitor.values[number] = wanted.get(label, visitor.values[number])
    return str(visitor.fire(press)[0])


def shown(visitor: Visitor) -> tuple[str, bool, str]:
    """What Compare shows at the next tick: its stage, whether there is a result, and the result's heading."""
    tick = visitor.event(visitor.component("timer"), "tick")
    outputs = visitor.fire(tick)
    is_done = isinstance(outputs[1], dict) and outputs[1].get("visible") is True
    stage, _, heading = (visitor.values[number] for number in visitor.events[tick]["outputs"][:3])
    return str(stage), is_done, str(heading)


def result_of(visitor: Visitor) -> str:
    """The heading of the result, once it is there. Raises Said where the run ends otherwise."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        stage, is_done, heading = shown(visitor)
        if is_done:
            return heading
        for title in ("This run did not finish", "Cancelled", "This run is gone"):
            if title in stage:
                raise Said(re.sub(r"<[^>]*>", " ", stage))
        time.sleep(0.5)
    raise TimeoutError("a run came to nothing")


def cancel(visitor: Visitor) -> None:
    visitor.fire(visitor.event(visitor.component("button", value="Cancel"), "click"))


def look_inside(visitor: Visitor) -> None:
    """Opens Look inside, on the run that comes with the app."""
    visitor.fire(visitor.event(visitor.component("tabitem", label="Look inside"), "select"))


def pick_channel(visitor: Visitor, channel: int) -> str:
    """What Correlations says of a channel of the run that is open."""
    table = visitor.component("html", elem_id="correlation-table")
    return str(visitor.fire(visitor.event(table, "select"), {"channel": str(channel)}))
