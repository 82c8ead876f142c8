"""The page in headless Chromium: what is seen first, and a visitor who generates, cancels, reloads and mistypes."""

import re

import pytest
from playwright.sync_api import expect

from tests.ui.forms import choose, expect_said, generate, open_fold, prompt_box, settings, start_long_run

pytestmark = pytest.mark.browser

LOOKS = [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")]


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_the_first_screen_says_what_it_is_about(open_page, look, width, height):
    """Two clips that play, the seconds of both and one sentence why, without a click and without scrolling."""
    page = open_page(width, moving=True)
    page.set_viewport_size({"width": width, "height": height})
    for what in (
        page.get_by_role("heading", name=re.compile(r"^Same noise, same video: \d+\.\d → \d+\.\d s$")),
        page.get_by_text(re.compile("Attention is .* of the time of the dense run, and neighbours")),
        page.locator(".tr-player canvas"),
    ):
        expect(what).to_be_in_viewport()
    box = page.locator(".tr-player canvas").bounding_box()
    assert box["y"] + box["height"] <= 700
    expect(page.locator(".tr-player video")).to_have_js_property("paused", False)
    assert page.locator(".tr-bars .tr-attention").count() == 2
    assert page.locator(".tr-numbers .tr-number").count() == 4
    expect(page.locator(".tr-headline .tr-kind")).to_contain_text("recorded on")
    assert "measured here" not in page.locator("#result").inner_text()
    look(page, "compare-first")


@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_a_video_is_generated_through_the_page(open_page, look, settle, width, theme):
    page = open_page(width, theme, moving=True)
    settings(page, "Tiny", 4)
    generate(page)
    headline = page.locator(".tr-headline")
    expect(headline.locator(".tr-kind")).to_have_text("measured here")
    video = page.locator("#player video")
    page.wait_for_function("video => video.readyState >= 3 && !video.error", arg=video.element_handle())
    assert video.evaluate("video => video.loop && video.videoWidth >= 3 * 64 && Math.abs(video.duration - 9 / 16) < .1")
    text = page.locator(".tr-numbers").inner_text()
    for pattern in (r"Speed-up\s+\d+\.\d\d×", r"PSNR\s+\d+\.\d dB", r"VMAF\s+\d+ of 100", r"saved realised\s+\d+%"):
        assert re.search(pattern, text), text
    steps = page.locator(".tr-steps")
    steps.locator("summary").click()
    pictures = steps.locator("[data-side='B'] img")
    assert pictures.count() == 4
    steps.get_by_role("slider").fill("2")
    expect(pictures.nth(1)).to_be_visible()
    expect(pictures.nth(3)).to_be_hidden()
    open_fold(page, "More about this run")
    expect(page.locator(".tr-plot .js-plotly-plot").filter(visible=True)).to_have_count(3)
    settle(page)
    with page.expect_download() as download:
        page.get_by_text("Download report.json").click()
    assert download.value.suggested_filename == "report.json"
    look(page, "compare-done")
    prompt_box(page).fill("a blue star")  # and the result is no longer what the form asks for
    expect(page.get_by_text("The form has changed since")).to_be_visible()


def test_neither_side_dense_is_judged_against_dense_that_is_computed_once(open_page, look):
    page = open_page()
    settings(page, "Tiny", 4)
    open_fold(page, "Advanced")
    for side, name in (("A", "Tile reuse"), ("B", "Channel")):
        choose(page, f"Method {side}", name)
    generate(page)
    numbers = page.locator(".tr-numbers")
    expect(numbers).to_have_count(2)
    for side in numbers.all():
        expect(side).to_contain_text("against dense")
    expect(numbers.nth(0).locator(".tr-kind")).to_have_text("realised")
    expect(numbers.nth(1).locator(".tr-kind")).to_have_text("theoretical")
    assert page.get_by_label("Clip on side A").locator("option").count() == 3
    assert page.locator(".tr-bars-row").count() == 3
    look(page, "compare-two-methods")
    choose(page, "Method B", "TaylorSeer")
    open_fold(page, "Axes and schedule of A")
    page.get_by_label("Stacked with, A").click()
    page.get_by_role("option", name="First-block cache, 0.1").click()
    page.wait_for_timeout(500)  # what is picked reaches the app before the button does
    generate(page)
    expect(page.get_by_text("The dense clip and its seconds are those of an earlier run")).to_be_visible()
    expect(page.get_by_label("Clip on side B")).to_contain_text("TaylorSeer")
    expect(page.get_by_label("Clip on side A")).to_contain_text("First-block cache · 0.1")


def test_strengths_are_the_settings_that_were_tuned(open_page):
    page = open_page()
    open_fold(page, "Advanced")
    target = page.get_by_label("Quality target B", exact=True)
    for strength, level in (("Fast", "34 dB"), ("Faithful", "40 dB")):
        page.get_by_label(strength).check()
        expect(target).to_have_value(level)
    page.get_by_label("Budget", exact=True).check()  # of its own, B is no strength
    expect(page.get_by_label("Faithful")).not_to_be_checked()


def test_cancel_is_answered_at_once_and_the_page_stays_usable(open_page, look):
    page = open_page(390, "dark")
    start_long_run(page)
    look(page, "compare-running", running=True)
    page.get_by_role("button", name="Cancel").first.click()
    expect(page.get_by_role("heading", name="Cancelled")).to_be_visible()
    settings(page, "Tiny", 4)
    generate(page)
    expect(page.locator(".tr-headline .tr-kind")).to_have_text("measured here")


def test_results_belong_to_the_tab_and_survive_a_reload(open_page, look):
    page = open_page()
    settings(page, "Tiny", 4)
    generate(page)
    mine = page.locator(".tr-headline .tr-detail")
    expect(mine).to_contain_text("a red ball rolling left across the ocean")
    expect(page).to_have_url(re.compile("run="))
    other = page.context.new_page()  # another tab of the same browser
    other.goto(page.url.split("&run=")[0].split("run=")[0])
    expect(other.locator(".tr-headline .tr-kind")).to_have_text("measured here")  # it begins with the latest result
    other.wait_for_timeout(1000)
    settings(other, "Tiny", 5, "a blue star rising")
    generate(other)
    expect(other.locator(".tr-headline .tr-detail")).to_contain_text("a blue star rising")
    page.reload()
    expect(mine).to_contain_text("a red ball rolling left across the ocean")
    expect(prompt_box(page)).to_have_value("a red ball rolling left across the ocean")
    stranger = open_page()
    expect(stranger.locator(".tr-headline .tr-kind")).to_contain_text("recorded on")


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("", "The prompt is empty"),
        ("<img src=x onerror=alert(1)> ball", "does not know the word"),
        ("a red ball " * 500, "shorten it to at most 400"),
    ],
)
def test_bad_input_shows_one_sentence(open_page, prompt, sentence):
    page = open_page()
    settings(page, "Tiny", 4, prompt)
    generate(page)
    expect_said(page, sentence)
    expect(page.locator(".tr-player")).to_be_visible()
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_enabled()


def test_every_control_is_reached_by_keyboard_and_has_a_name(open_page):
    page = open_page()
    open_fold(page, "Advanced")
    page.locator("body").press("Home")
    page.evaluate("document.activeElement.blur()")
    name = "at => at.getAttribute('aria-label') || at.labels?.[0]?.innerText || at.innerText || at.tagName"
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(f"({name})(document.activeElement)").strip())
    for name in ("Prompt", "Ball at sunset", "Size", "Generate", "Advanced", "Method A", "Method B", "Seed"):
        assert name in " | ".join(reached), name
