"""The app on the tiny pipeline, served on a free port, and a browser to visit it, for the tests of this folder."""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from ui.build import build_app, launch_options
from ui.runs import Limits

PICTURES = Path(__file__).parents[2] / "test-artifacts"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def url(tiny_pipeline):
    limits = Limits(max_tokens=10_000, max_steps=40)
    app = build_app(tiny_pipeline, limits)
    _, url, _ = app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options(limits))
    yield url
    app.close()


@pytest.fixture(scope="session")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("The page tests need Chromium: install the package 'chromium'.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, url):
    """Opens the page as a new visitor; at the end there must be no error in any page's console."""
    contexts, errors = [], []

    def open_page(width=1440, theme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme))
        contexts[-1].set_default_timeout(10_000)
        page = contexts[-1].new_page()
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}?__theme={theme}")
        page.get_by_role("button", name="Generate").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def look():
    """look(page, name): the page must not scroll sideways; a picture of all of it is kept."""
    PICTURES.mkdir(exist_ok=True)

    def look(page, name):
        dark = page.evaluate("document.body.classList.contains('dark')")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        path = PICTURES / f"{name}-{page.viewport_size['width']}-{'dark' if dark else 'light'}.png"
        page.screenshot(path=path, full_page=True)

    return look
