"""The app on the tiny pipeline, served on a free port, and a browser to visit it, for the tests of this folder."""

from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from timeripple.bench.ui import FLAGS, chromium
from ui.build import build_app, launch_options
from ui.runs import Limits

PICTURES = Path(__file__).parents[2] / "test-artifacts"


@pytest.fixture(scope="session")
def url(tiny_pipeline):
    limits = Limits(max_tokens=10_000, max_steps=40)
    app = build_app(tiny_pipeline, limits)
    _, url, _ = app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options(limits))
    yield url
    app.close()


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, url):
    """Opens the page as a new visitor; at the end there must be no error in any page's console."""
    contexts, errors = [], []

    def open_page(width=1440, theme="light", query=""):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme))
        contexts[-1].set_default_timeout(10_000)
        page = contexts[-1].new_page()
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}?__theme={theme}&{query}")
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


@pytest.fixture
def open_tab():
    """open_tab(page, name): on a narrow page the last tabs are behind a button."""

    def open_tab(page, name):
        page.get_by_role("tab").first.wait_for()
        tab = page.get_by_role("tab", name=name).filter(visible=True)
        if not tab.count():
            page.locator(".overflow-menu > button").click()
            tab = page.locator(".overflow-dropdown button").filter(has_text=name)
        tab.click()

    return open_tab


@pytest.fixture
def look_inside(open_tab):
    """look_inside(page, tab): opens the tab and has a tiny run looked into, five steps of 8×8×8 tokens."""

    def look_inside(page, tab):
        open_tab(page, tab)
        page.get_by_label("Clip size").filter(visible=True).click()
        page.get_by_role("option", name="Tiny").click()
        number = page.get_by_label("number input for Steps in all").filter(visible=True)
        number.fill("5")
        number.press("Tab")
        page.get_by_role("button", name="Look inside").filter(visible=True).click()
        note = page.locator(".tr-facts").filter(has_text="512 tokens in 8×8×8", visible=True)
        expect(note).to_be_visible(timeout=60_000)

    return look_inside
