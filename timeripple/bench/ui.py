"""How fast the page is: its first picture, and the answer to every pick and drag, in headless Chromium on the app."""

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
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
START_SECONDS, RUN_SECONDS = 120, 900
GOALS = {"first_picture": 1.5, "open": 1.0, "pick": 0.3, "drag": 0.1}
"""Seconds that each may take at its worst."""
SIZE = "Standard"
"""Of the run that is picked from: 5184 tokens."""
TIMED = """async ({act, shown}) => {
  const [doing, done] = [new Function(act), new Function('return ' + shown)];
  const start = performance.now();
  doing();
  while (!done()) {
    await new Promise(requestAnimationFrame);
    if (performance.now() - start > 60000) throw new Error('not shown within a minute: ' + shown);
  }
  return (performance.now() - start) / 1000;
}"""
"""Seconds from what a visitor does to what the page then shows, to the frame, as the page itself sees it."""
SEEN = """window.seen = {};
new MutationObserver(() => {
  const now = performance.now() / 1000, is = at => document.querySelector(`${at}[data-frame]`);
  if (is('.tr-player')) seen.player ??= now;
  if (is('.tr-poster') || seen.player) seen.picture ??= now;
}).observe(document, {subtree: true, childList: true, attributeFilter: ['data-frame']});"""
"""When a page has its first frames, in seconds from when it was asked for."""


def page_speed(repeats: int = 20, on_run: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Seconds, each from what a visitor does to what the page shows: first_picture, from the address to the first frame
    of a recorded comparison, and player, to that in the player, each the worst of five visits; tabs, opening each that
    looks inside; picks, and drags, so many of each kind on a run that is made first: rows of what, median, worst and
    goal; drag_worst, of all drags; tokens, of that run. Raises ValueError, one sentence, where no browser is at hand.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise ValueError("The page is driven with playwright; install requirements-dev.txt first.") from None
    executable = chromium()
    visits, done = 5, 0

    def count() -> None:
        nonlocal done
        done += 1
        if on_run is not None:
            on_run(done, visits + repeats)

    with server() as (url, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        browser.new_page().close()  # a visitor's browser is open already
        first = []
        for _ in range(visits):
            first.append(_first_pictures(browser, url))
            count()
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        tabs = {what: [seconds] for what, seconds in _tabs(page, url)}
        tokens = _look_inside(page)
        picks: dict[str, list[float]] = {}
        drags: dict[str, list[float]] = {}
        for run in range(repeats):
            for what, seconds in _picks(page, run):
                picks.setdefault(what, []).append(seconds)
            for what, seconds in _drags(page, run):
                drags.setdefault(what, []).append(seconds)
            count()
        browser.close()
    return {
        "first_picture": max(picture for picture, _ in first),
        "player": max(player for _, player in first),
        "tabs": _rows(tabs, GOALS["open"]),
        "picks": _rows(picks, GOALS["pick"]),
        "drags": _rows(drags, GOALS["drag"]),
        "drag_worst": max(max(seconds) for seconds in drags.values()),
        "tokens": tokens,
        "kind": "measured here",
        "environment": environment(None),
    }


def _rows(times: dict[str, list[float]], goal: float) -> list[dict[str, Any]]:
    return [
        {"what": what, "median": statistics.median(seconds), "worst": max(seconds), "goal": goal}
        for what, seconds in times.items()
    ]


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


def _first_pictures(browser: Browser, url: str) -> tuple[float, float]:
    """Of a fresh visit: seconds to the first frame that is seen, and to the player's."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.add_init_script(SEEN)
    page = context.new_page()
    page.goto(url, wait_until="commit")
    page.locator(".tr-player[data-frame]").wait_for()
    seen = page.evaluate("seen")
    context.close()
    return seen["picture"], seen["player"]


def _timed(page: Page, act: str, shown: str) -> float:
    return float(page.evaluate(TIMED, {"act": act, "shown": shown}))


def _tabs(page: Page, url: str) -> Iterator[tuple[str, float]]:
    """Every tab that looks inside, opened for the first time on the recorded run."""
    page.goto(url)
    page.locator(".tr-player[data-frame]").wait_for()
    for names, seen in (
        (("Look inside",), "#correlation-table table"),
        (("Attention",), "#attention-sheet .tr-large"),
        (("Laboratory",), "#laboratory-curve svg"),
    ):
        act = f"[...document.querySelectorAll('[role=tab]')].find(tab => tab.innerText.trim() === '{names[0]}').click()"
        yield f"open {names[0]}", _timed(page, act, f"document.querySelector('{seen}')")


def _look_inside(page: Page) -> int:
    """Makes the run whose heads, channels and tokens are picked; its number of tokens."""
    page.get_by_label("Look into").click()
    page.get_by_role("option", name="A new prompt").click()
    page.get_by_label("Size", exact=True).locator("visible=true").click()
    page.get_by_role("option", name=SIZE).click()
    steps = page.get_by_label("Denoising steps", exact=True).locator("visible=true")
    steps.fill("4")
    steps.press("Tab")
    page.get_by_role("button", name="Look inside").click()
    note = page.locator("#source-note li", has_text="seed")
    note.wait_for(timeout=RUN_SECONDS * 1000)
    page.wait_for_timeout(3000)
    return int(note.inner_text().split(": ")[1].split(" tokens")[0].replace(",", ""))


def _open(page: Page, name: str, seen: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()
    page.locator(seen).first.wait_for()
    page.wait_for_timeout(800)  # what the tab asks for must not come after what is timed


def _picks(page: Page, run: int) -> Iterator[tuple[str, float]]:
    """Picks that differ from run to run."""
    channel, layer, head = 1 + run % 40, run % 6, (run // 6 + 1) % 4
    _open(page, "Correlations", "#correlation-table table")
    button = f"document.querySelector('#correlation-table [data-channel=\"{channel}\"]')"
    yield (
        "pick a channel",
        _timed(page, f"{button}.click()", f"document.body.innerText.includes('Channel {channel} turns with')"),
    )
    for tab, place, name in (
        ("Correlations", "#correlation-heads", "pick a head (correlations)"),
        ("Attention", "#attention-heads", "pick a head (attention)"),
    ):
        _open(page, tab, f"{place} button")
        button = f'document.querySelector(\'{place} [data-layer="{layer}"][data-head="{head}"]\')'
        shown = f"{button}?.getAttribute('aria-pressed') === 'true'"
        if tab == "Attention":
            shown += f" && document.querySelector('#attention-map').innerText.includes('layer {layer}, head {head} (')"
        yield name, _timed(page, f"{button}.click()", shown)
        head = (head + 1) % 4
    token = run % 4, 1 + run % 5
    act = (
        "const at = document.querySelector('#attention-sheet .tr-large'), box = at.getBoundingClientRect();"
        f"const [x, y] = [{token[0]} / 12, {token[1]} / 12];"
        "const place = {clientX: box.left + box.width * x + 3, clientY: box.top + box.height * y + 3};"
        "at.dispatchEvent(new MouseEvent('click', {bubbles: true, ...place}))"
    )
    before = page.locator("#attention-sheet .tr-sheet").get_attribute("data-place")
    shown = f"document.querySelector('#attention-sheet .tr-sheet').dataset.place !== '{before}'"
    yield "pick a token", _timed(page, act, shown)


def _drags(page: Page, run: int) -> Iterator[tuple[str, float]]:
    """Sliders that follow the pointer: what they drag is shown."""
    _open(page, "Laboratory", "#laboratory-curve svg")
    share = 0.2 + 0.03 * (run % 20)
    act = (
        "const svg = document.querySelector('#laboratory-curve svg'), box = svg.getBoundingClientRect();"
        "window.before = document.querySelector('#laboratory-curve output').innerText;"
        "for (const type of ['pointermove', 'pointerup']) svg.dispatchEvent(new PointerEvent(type, {bubbles: true,"
        f"pointerId: 1, clientX: box.left + box.width * {share:.2f}, clientY: box.top + 50}}))"
    )
    press = act.replace("'pointermove', 'pointerup'", "'pointerdown', 'pointerup'")
    shown = "document.querySelector('#laboratory-curve output').innerText !== window.before"
    yield "drag the star", _timed(page, press, shown)
    page.wait_for_timeout(500)
    frame = 1 + run % 7
    act = (
        "const range = document.querySelector('#laboratory-sheet [data-frame]');"
        f"range.value = range.value == {frame} ? {frame + 1} : {frame}; window.wanted = 'frame ' + range.value + ' of';"
        "range.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    shown = "document.querySelector('#laboratory-sheet [data-at]').innerText.startsWith(window.wanted)"
    yield "scrub the frames", _timed(page, act, shown)
