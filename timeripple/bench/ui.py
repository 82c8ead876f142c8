"""How fast the page is: first paint, and the answer to every pick, in headless Chromium on the real app."""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from timeripple.attention.timing import environment

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
START_SECONDS, RUN_SECONDS = 120, 600


def page_speed(repeats: int = 5, on_run: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Rows: what, ms (median), worst_ms, goal_ms. Raises ValueError, one sentence, where no browser is at hand.

    First paint is the browser's first contentful paint of a fresh visit, ready is when the prompt can be typed. A pick
    is timed from the click to the change of what it draws, on a run of 2304 tokens that is made first.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise ValueError("The page is driven with playwright; install requirements-dev.txt first.") from None
    executable = chromium()
    with server() as (url, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        times: dict[str, list[float]] = {}
        for run in range(repeats):
            for what, seconds in _first_paint(browser, url).items():
                times.setdefault(what, []).append(seconds)
            if on_run is not None:
                on_run(run + 1, 2 * repeats)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        _look_inside(page, url)
        for run in range(repeats):
            for what, seconds in _picks(page, run):
                times.setdefault(what, []).append(seconds)
            if on_run is not None:
                on_run(repeats + run + 1, 2 * repeats)
        browser.close()
    rows = [
        {
            "what": what,
            "ms": round(1000 * statistics.median(seconds)),
            "worst_ms": round(1000 * max(seconds)),
            "goal_ms": 300 if what.startswith("pick") else 3000,
        }
        for what, seconds in times.items()
    ]
    return {"rows": rows, "kind": "measured here", "environment": environment(None)}


def chromium() -> str:
    """Path of the browser. Raises ValueError, one sentence, where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        raise ValueError("The page is driven in Chromium; install the package 'chromium' first.")
    return path


@contextmanager
def server(
    folder: str | None = None, arguments: Sequence[str] = (), port: int | None = None
) -> Iterator[tuple[str, int]]:
    """The app as a process of its own: its address, and the number of the process. folder: of its results, or None for
    the usual one; port: None for a free one. Raises ValueError, one sentence, where it does not start."""
    if not (ROOT / "app.py").exists():
        raise ValueError("The demo is in the repository, not in the installed package; run this in a checkout.")
    port = port or free_port()
    url = f"http://127.0.0.1:{port}/"
    settings = os.environ | {"GRADIO_SERVER_PORT": str(port)} | ({"GRADIO_TEMP_DIR": folder} if folder else {})
    process = subprocess.Popen(
        [sys.executable, "app.py", *arguments], cwd=ROOT, env=settings, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                urlopen(url).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ValueError("The app did not start; try python app.py.") from None
                time.sleep(0.2)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_paint(browser: Browser, url: str) -> dict[str, float]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    start = time.perf_counter()
    page.goto(url)
    page.get_by_role("button", name="Generate").wait_for()
    ready = time.perf_counter() - start
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
    context.close()
    return {"first paint": paint, "page ready": ready}


def _look_inside(page: Page, url: str) -> None:
    """Makes the run whose heads and channels are picked."""
    page.goto(url)
    page.get_by_role("tab", name="Correlations").click()
    page.get_by_role("button", name="Look inside").locator("visible=true").click()
    page.locator("#correlation-table table").wait_for(timeout=RUN_SECONDS * 1000)


def _picks(page: Page, run: int) -> Iterator[tuple[str, float]]:
    """Picks that differ from run to run, each with the seconds until the page shows it."""
    channel, layer, head = 3 + run, 1 + run % 4, run % 3 + 1
    table = page.locator("#correlation-table")
    button = table.get_by_role("button", name=str(channel), exact=True)
    yield "pick a channel", _until(button, page.locator(f"text=Channel {channel} turns with"))
    button = page.locator(f"#correlation-heads button[data-layer='{layer}'][data-head='{head}']")
    yield "pick a head", _until(button, table.locator(f"caption:has-text('layer {layer}, head {head}')"))
    page.get_by_role("tab", name="Attention").click()
    frame = page.locator("#attention-sheet img").nth(1 + run % 4)  # a token of the first frame is picked already
    frame.wait_for()
    yield "pick a token", _until(frame, page.locator(f"text=/^Token \\({2 + run % 4}, /"))
    page.get_by_role("tab", name="Correlations").click()
    table.locator("table").wait_for()


def _until(button: Locator, shown: Locator) -> float:
    start = time.perf_counter()
    button.click()
    shown.wait_for()
    return time.perf_counter() - start
