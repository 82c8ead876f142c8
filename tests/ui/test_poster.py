"""The first recorded comparison is there before Gradio is, and makes way for it."""

import io
import json
import re
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from ui.result import EXAMPLES

pytestmark = pytest.mark.browser
GRADIO = "**/assets/*.js"


@pytest.fixture
def bare_page(browser, url):
    """bare_page(query): the page as it is while Gradio's own scripts do not arrive."""
    contexts = []

    def bare_page(query="", **options):
        contexts.append(browser.new_context(viewport={"width": 390, "height": 844}, **options))
        page = contexts[-1].new_page()
        page.route(GRADIO, lambda route: route.abort())
        page.goto(f"{url}?{query}", wait_until="commit")
        return page

    yield bare_page
    for context in contexts:
        context.close()


def first_report() -> dict:
    return json.loads(sorted(EXAMPLES.glob("*/report.json"))[0].read_text(encoding="utf-8"))


def test_says_and_plays_what_was_recorded_before_gradio_has_loaded(bare_page):
    page = bare_page()
    page.locator(".tr-poster[data-frame]").wait_for()
    video = page.locator(".tr-poster video")
    above = {"x": 0, "y": 0, "width": 390, "height": video.bounding_box()["y"]}
    words = np.array(Image.open(io.BytesIO(page.screenshot(clip=above))).convert("L"))
    assert above["height"] > 150 and (words < 100).mean() > 0.01  # header and headline, dark on light
    page.wait_for_function("video => video.currentTime > 0", arg=video.element_handle())
    assert video.evaluate("video => [video.videoWidth > video.videoHeight, video.muted]") == [True, True]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(("theme", "query", "dark"), [("dark", "", True), ("dark", "__theme=light", False)])
def test_is_in_the_theme_of_the_page(bare_page, theme, query, dark):
    poster = bare_page(query, color_scheme=theme).locator(".tr-poster[data-frame]")
    poster.wait_for()
    brightness = (
        sum(map(int, re.findall(r"\d+", poster.evaluate("at => getComputedStyle(at).backgroundColor"))[:3])) / 3
    )
    assert (brightness < 60) is dark and (brightness > 200) is not dark


@pytest.mark.parametrize("query", ["run=gone", "prompt=a+ball", "view=api"])
def test_a_page_that_shows_something_else_has_none(bare_page, query):
    page = bare_page(query)
    page.wait_for_load_state("domcontentloaded")
    expect(page.locator(".tr-poster")).to_have_count(0)


def test_makes_way_for_the_page(open_page):
    page = open_page()
    page.locator(".tr-player[data-frame]").wait_for()
    expect(page.locator(".tr-poster")).to_have_count(0)


@pytest.mark.parametrize("what", ["tr-run", "tr-notice"])
def test_makes_way_for_a_run_without_a_picture(bare_page, what):
    page = bare_page()
    page.locator(".tr-poster[data-frame]").wait_for()
    stage = f'<div id="stage"><section class="{what}"></section></div>'
    page.evaluate("stage => document.body.insertAdjacentHTML('beforeend', stage)", stage)
    expect(page.locator(".tr-poster")).to_have_count(0)


def test_nothing_of_the_page_is_there_twice(bare_page):
    page = bare_page()
    page.locator(".tr-poster[data-frame]").wait_for()
    assert page.locator("h1, h2, .tr-headline, .tr-kind").count() == 0
    assert page.get_by_text("Same noise").count() == 0


def test_only_the_page_is_added_to(url):
    with urlopen(url) as answer:
        page = answer.read()
        before, after = (row["seconds"]["total"] for row in first_report()["methods"])
        assert f"{before:.1f} → {after:.1f} s".encode() in page.split(b"<gradio-app")[0]
        assert int(answer.headers["content-length"]) == len(page) and page.count(b'<div class="tr-poster"') == 1
    with urlopen(f"{url}config") as answer:
        assert b'<div class="tr-poster"' not in answer.read()
    named = re.search(rb'src="gradio_api/file=([^"]+)"', page)
    with urlopen(f"{url}gradio_api/file={named[1].decode()}") as answer:
        recorded = sorted(path.parent for path in EXAMPLES.glob("*/report.json"))[0]
        assert answer.read() == Path(recorded, "side_by_side.mp4").read_bytes()
