"""The app on a model that is not Pond: a tiny Wan pipeline loaded from disk."""

import pytest
from gradio_client import Client
from playwright.sync_api import expect

from tests.ui.forms import open_fold
from timeripple.clips.generate import Request
from timeripple.clips.models import load_pipeline
from ui.build import build_app, launch_options
from ui.form import sizes_of
from ui.gpu import seconds_needed
from ui.runs import Limits

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def wan(tiny_wan):
    return load_pipeline(str(tiny_wan), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def wan_url(wan):
    limits = Limits(max_tokens=40_000)
    app = build_app(wan, limits)
    _, url, _ = app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options(app))
    yield url
    app.close()


def test_sizes_are_the_pipelines_own(wan):
    assert sizes_of(wan) == {"Small": (81, 240, 416), "Standard": (81, 480, 832)}
    request = Request("a cat", num_frames=81, height=480, width=832)
    assert request.tokens(wan) == 21 * 30 * 52 and seconds_needed(wan, request) > 20
    with pytest.raises(ValueError, match="32,760 tokens; the limit here is 16,384"):
        Limits().check(wan, request)


def test_it_compares_and_looks_inside_over_the_api(wan_url):
    client = Client(wan_url, verbose=False)
    small = {"num_frames": 9, "pixels": 64, "steps": 4}
    report, _ = client.submit("a cat", "dense,token:0.5", **small, api_name="/compare").result(timeout=120)
    assert report["grid"] == [3, 4, 4] and report["methods"][1]["saving"]["all_steps"] > 0
    assert client.predict("a cat", "2", **small, api_name="/probe")["heads"]


def test_its_page_offers_what_it_can_do(browser, wan_url):
    errors = []
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.goto(wan_url)
    expect(page.get_by_label("Size", exact=True).filter(visible=True)).to_have_value(
        "Standard · 81 frames of 832 × 480"
    )
    open_fold(page, "Advanced")
    expect(page.get_by_label("number input for Denoising steps")).to_have_value("50")
    expect(page.get_by_role("heading", name="Same noise, same video")).to_be_visible()  # recorded with Pond
    page.get_by_role("tab", name="Look inside").click()
    expect(page.locator("#correlation-table table")).to_be_visible()
    page.get_by_label("Look into", exact=True).click()
    expect(page.get_by_role("option", name="A new prompt")).to_be_visible()
    expect(page.get_by_role("option", name="My own clip")).to_have_count(0)
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Timing").click()
    expect(page.get_by_role("button", name="Measure here").first).not_to_be_visible()
    page.close()
    assert errors == []
