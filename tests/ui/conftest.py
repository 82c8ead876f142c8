"""The app on the tiny pipeline, served on a free port, and a browser to visit it, for the tests of this folder."""

import time
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.ui.forms import PATIENCE, ask_inside, choose
from timeripple.bench.ui import FLAGS, chromium
from timeripple.bench.visitor import Visitor
from ui.build import build_app, launch_options
from ui.limits import Limits

PICTURES = Path(__file__).parents[2] / "test-artifacts"
expect.set_options(timeout=1000 * PATIENCE)
TOASTS = """new MutationObserver(() => {
  for (const toast of document.querySelectorAll('[data-testid=toast-body]')) {
    if (!(window.toasts ??= []).includes(toast.innerText)) window.toasts.push(toast.innerText);
  }
}).observe(document, {childList: true, subtree: true});"""
"""Keeps what the page has said, as it goes after a while, which a busy machine may miss."""
WAITED_FOR = """() => {
  const shown = at => at.getClientRects().length > 0;
  const moving = at => at.playState === 'running' && isFinite(at.effect.getComputedTiming().endTime);
  return Object.entries({
    'plots that are not drawn': [...document.querySelectorAll('.tr-plot')].filter(shown)
      .filter(plot => !plot.querySelector('.main-svg')),
    'pictures that are not loaded': [...document.images].filter(image => shown(image) && !image.complete),
    'animations that are not over': document.getAnimations().filter(moving),
    'fonts that are not loaded': document.fonts.status === 'loading' ? [document] : [],
  }).filter(([, found]) => found.length).map(([what]) => what);
}"""


@pytest.fixture(scope="session")
def url(tiny_pipeline):
    limits = Limits(max_tokens=14_000, max_steps=40)
    app = build_app(tiny_pipeline, limits)
    _, url, _ = app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options(app))
    yield url
    app.runs.close()
    app.close()


@pytest.fixture(scope="module")
def app(request, tiny_pipeline, tmp_path_factory):
    """An app with LIMITS of the module, a folder of its own and its address as `.url`, for hostile visitors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("hostile")))
        limits = request.module.LIMITS
        app = build_app(tiny_pipeline, limits)
        options = launch_options(app)
        _, app.url, _ = app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **options)
        yield app
        app.runs.close()
        app.close()


@pytest.fixture(scope="module")
def visitor(app):
    visitor = Visitor(app.url)
    yield visitor
    visitor.close()


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def unanswered():
    """{page: what it has asked the server for and not got yet}, of pages that `open_page` opens."""
    return {}


@pytest.fixture
def settle(unanswered):
    """settle(page): waits until everything asked for has come and is drawn; for whatever judges a page as a whole."""

    def waited_for(page) -> list[str]:
        page.wait_for_timeout(100)  # in which requests may begin and end
        return [*{request.url.split("?")[0] for request in unanswered[page]}, *page.evaluate(WAITED_FOR)]

    def settle(page):
        deadline, quiet = time.monotonic() + PATIENCE, 0
        while quiet < 3:
            left = waited_for(page)
            quiet = 0 if left else quiet + 1
            assert time.monotonic() < deadline, f"after {PATIENCE} s the page still waits for: {', '.join(left)}"

    return settle


@pytest.fixture
def open_page(browser, url, unanswered, settle):
    """Opens the page as a new visitor; at the end there must be no error in any page's console.

    moving: whether the visitor lets clips play by themselves, which keeps the machine busy while others are waited for.
    """
    contexts, errors = [], []

    def watch(page):
        unanswered[page] = asked = set()
        page.on("request", lambda request: asks(request) and asked.add(request))
        page.on("requestfinished", lambda request: asked.discard(request))
        page.on("requestfailed", lambda request: asked.discard(request))

    def open_page(width=1440, theme="light", query="", moving=False):
        motion = "no-preference" if moving else "reduce"
        size = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=size, color_scheme=theme, reduced_motion=motion))
        contexts[-1].set_default_timeout(1000 * PATIENCE)
        contexts[-1].add_init_script(TOASTS)
        page = contexts[-1].new_page()
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        watch(page)
        page.goto(f"{url}?__theme={theme}&{query}")
        page.get_by_role("button", name="Generate", exact=True).wait_for()
        settle(page)  # what the page asks for when it is opened must not come after what the visitor does
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def asks(request) -> bool:
    """Whether a request is for an answer of the app; the heartbeat never ends, and videos load as they play."""
    return request.resource_type in ("fetch", "xhr", "eventsource") and "/heartbeat/" not in request.url


@pytest.fixture
def look(settle):
    """look(page, name): the page must not scroll sideways; a picture of all of it is kept. A page that shows a run is
    never settled."""
    PICTURES.mkdir(exist_ok=True)

    def look(page, name, running=False):
        if not running:
            settle(page)
        dark = page.evaluate("document.body.classList.contains('dark')")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        path = PICTURES / f"{name}-{page.viewport_size['width']}-{'dark' if dark else 'light'}.png"
        page.screenshot(path=path, full_page=True)

    return look


@pytest.fixture
def open_tab():
    """open_tab(page, name): also one of those that look inside. None is behind a button, on a phone neither."""

    def open_tab(page, name):
        page.get_by_role("tab").first.wait_for()
        tab = page.get_by_role("tab", name=name, exact=True)
        if not tab.filter(visible=True).count():
            page.get_by_role("tab", name="Look inside").click()
        tab.filter(visible=True).click()

    return open_tab


@pytest.fixture
def look_inside(open_tab):
    """look_inside(page, tab): opens the tab and has a tiny run looked into, five steps of 8×8×8 tokens."""

    def look_inside(page, tab):
        open_tab(page, tab)
        choose(page, "Look into", "A new prompt")
        ask_inside(page)
        note = page.locator(".tr-facts").filter(has_text="192 tokens in 3×8×8", visible=True)
        expect(note).to_be_visible()

    return look_inside
