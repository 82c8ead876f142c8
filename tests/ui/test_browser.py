"""The page in headless Chromium: a visitor generates, cancels, reloads and mistypes."""

import re
import time

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

LOOKS = [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")]


def prompt_box(page):
    return page.get_by_role("textbox", name=re.compile("^Prompt"))


def settings(page, size, steps, prompt="a red ball rolling left across the ocean"):
    prompt_box(page).fill(prompt)
    page.get_by_label("Size").click()
    page.get_by_role("option", name=size).click()
    number = page.get_by_label("number input for Denoising steps")
    number.fill(str(steps))
    number.press("Tab")


def generate(page):
    page.get_by_role("button", name="Generate").click()


def start_long_run(page):
    """A run of many steps, seen through its first step."""
    settings(page, "Large", 40)
    generate(page)
    expect(page.locator(".tr-side.tr-a .tr-detail")).to_contain_text("of 40", timeout=60_000)


@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_a_video_is_generated_through_the_page(open_page, look, width, theme):
    page = open_page(width, theme)
    expect(page.locator(".tr-welcome")).to_be_visible()
    look(page, "compare-idle")

    settings(page, "Tiny", 4)
    generate(page)
    expect(page.locator(".tr-metric")).to_have_count(6, timeout=60_000)
    video = page.locator("#player video")
    page.wait_for_function("video => video.readyState >= 3 && !video.error", arg=video.element_handle())
    assert video.evaluate("video => video.loop && video.videoWidth >= 3 * 64 && Math.abs(video.duration - 1) < .2")
    expect(video).to_have_js_property("paused", False)
    text = page.locator(".tr-metrics").inner_text()
    assert re.search(r"Speed-up\s+\d+\.\d\d×\s+measured here", text)
    assert re.search(r"PSNR\s+\d+\.\d dB\s+measured here", text)
    assert re.search(r"VMAF\s+\d+\.\d\s+measured here", text)
    assert re.search(r"Attention saved\s+\d+%\s+realised", text)
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible()
    expect(page.locator(".tr-plot .js-plotly-plot").filter(visible=True)).to_have_count(3)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download report.json").or_(
            page.get_by_text("Download report.json")
        ).first.click()
    assert download.value.suggested_filename == "report.json"
    look(page, "compare-done")


def test_channel_reuse_is_labelled_theoretical(open_page):
    page = open_page()
    settings(page, "Tiny", 4)
    page.get_by_label("Method B").click()
    page.get_by_role("option", name="Channel").click()
    generate(page)
    saved = page.locator(".tr-metric").filter(has_text="Attention saved")
    expect(saved.locator(".tr-kind")).to_have_text("theoretical", timeout=60_000)


def test_cancel_stops_within_a_step_and_the_page_stays_usable(open_page, look):
    page = open_page(390, "dark")
    start_long_run(page)
    look(page, "compare-running", running=True)
    page.get_by_role("button", name="Cancel").click()
    start = time.monotonic()
    expect(page.get_by_role("heading", name="Cancelled")).to_be_visible(timeout=30_000)
    assert time.monotonic() - start < 15  # of a run of minutes: 80 steps at 9,216 tokens
    settings(page, "Tiny", 4)
    generate(page)
    expect(page.locator(".tr-metric")).to_have_count(6, timeout=60_000)


def test_a_reload_in_mid_run_keeps_the_run_and_the_form(open_page, look):
    page = open_page()
    start_long_run(page)
    look(page, "compare-running", running=True)
    page.reload()
    expect(page.locator(".tr-side.tr-a .tr-detail")).to_contain_text("of 40", timeout=20_000)
    expect(prompt_box(page)).to_have_value("a red ball rolling left across the ocean")
    stranger = open_page()
    expect(stranger.locator(".tr-welcome")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading", name="Cancelled")).to_be_visible(timeout=30_000)


def test_a_result_is_still_there_after_a_reload(open_page):
    page = open_page()
    settings(page, "Tiny", 4)
    generate(page)
    expect(page.locator(".tr-metric")).to_have_count(6, timeout=60_000)
    page.reload()
    expect(page.locator(".tr-metric")).to_have_count(6, timeout=20_000)
    expect(page.locator(".tr-heading")).to_contain_text("a red ball rolling left across the ocean")


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("", "The prompt is empty"),
        ("a red zebra", 'Pond does not know the word "zebra"'),
        ("<img src=x onerror=alert(1)> ball", "does not know the word"),
        ("a red ball " * 500, "shorten it to at most 400"),
    ],
)
def test_bad_input_shows_one_sentence(open_page, prompt, sentence):
    page = open_page()
    settings(page, "Tiny", 4, prompt)
    generate(page)
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text(sentence)
    expect(toast).not_to_contain_text("Traceback")
    expect(page.locator(".tr-welcome")).to_be_visible()
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


def test_every_control_is_reached_by_keyboard_and_has_a_name(open_page):
    page = open_page()
    name = "at => at.getAttribute('aria-label') || at.labels?.[0]?.innerText || at.innerText || at.tagName"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(f"({name})(document.activeElement)").strip())
    for name in (
        "Prompt",
        "Ball at sunset",
        "Generate",
        "Method A",
        "Method B",
        "Budget B",
        "Size",
        "Seed",
        "Schedule",
    ):
        assert name in " | ".join(reached)


def test_a_peer_and_a_stack_are_compared(open_page, look, settle):
    page = open_page()
    settings(page, "Tiny", 6)
    for side, name in (("A", "TaylorSeer"), ("B", "Token reuse")):
        page.get_by_label(f"Method {side}").click()
        page.get_by_role("option", name=name).last.click()  # the list of the other side may still be closing
    page.get_by_role("button", name="Axes and schedule of A").click()
    expect(page.get_by_label("Budget A")).to_have_count(0)
    page.get_by_label("Other settings, A").fill("2:start=2")
    page.get_by_role("button", name="Axes and schedule of B").click()
    page.get_by_label("Stacked with, B").click()
    page.get_by_role("option", name="First-block cache, 0.1").click()
    settle(page)  # what is typed reaches the app before the button does
    generate(page)
    expect(page.locator(".tr-metric")).to_have_count(6, timeout=60_000)
    expect(page.locator("#player")).to_be_visible()
    look(page, "compare-peers")
    text = page.locator("body").inner_text()
    assert "TaylorSeer · 2" in text and "Token reuse · 75% + First-block cache · 0.1" in text
