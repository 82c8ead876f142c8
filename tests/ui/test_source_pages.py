"""The tabs that look inside a run, in headless Chromium: what is picked is what is shown."""

import re

import numpy as np
import pytest
from playwright.sync_api import expect

from timeripple.clips.video import write_mp4

pytestmark = pytest.mark.browser

LOOKS = [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")]


@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_correlations(open_page, open_tab, look, look_inside, width, theme):
    page = open_page(width, theme)
    look_inside(page, "Correlations")
    table = page.locator(".tr-channels")
    expect(table.locator("tbody tr")).to_have_count(24)  # channels of a head of the tiny model
    channel = table.get_by_role("button", name="9", exact=True)
    channel.click()
    expect(channel).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_text("Channel 9 turns with")).to_be_visible()
    head = page.get_by_role("button", name="Layer 1, head 1")
    head.click()
    expect(head).to_have_attribute("aria-pressed", "true")
    expect(table.locator("caption")).to_contain_text("Correlation of Q, layer 1, head 1, measured here")
    page.get_by_label("Keys").click()
    page.get_by_label("Deviation Δ (Eq. 3)").click()
    expect(table.locator("caption")).to_contain_text("Deviation Δ (Eq. 3) of K, layer 1, head 1")
    look(page, "correlations")
    page.reload()
    open_tab(page, "Correlations")
    expect(table).to_be_visible(timeout=10_000)


@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_attention(open_page, open_tab, look, look_inside, settle, width, theme):
    page = open_page(width, theme)
    look_inside(page, "Attention")
    sheet, facts = page.locator(".tr-sheet"), page.locator(".tr-facts").filter(has_text="of its attention to its own")
    expect(sheet.locator("img")).to_have_count(8)
    expect(facts).to_contain_text("Token (1, 1, 1)")
    settle(page)
    box = sheet.locator("img").nth(2).bounding_box()
    sheet.locator("img").nth(2).click(position={"x": box["width"] * 5.5 / 8, "y": box["height"] * 3.5 / 8})
    expect(facts).to_contain_text("Token (3, 4, 6)")
    settle(page)
    dense = sheet.locator("img").nth(2).get_attribute("src")
    for key, token in (("ArrowLeft", "3, 4, 5"), ("ArrowDown", "3, 5, 5"), ("PageUp", "2, 5, 5")):
        page.keyboard.press(key)
        expect(facts).to_contain_text(f"Token ({token})")
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "PageDown"):  # faster than they are answered
        page.keyboard.press(key)
    expect(facts).to_contain_text("Token (3, 4, 7)")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("PageUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    expect(facts).to_contain_text("Token (2, 5, 5)")
    for mode in ("With reuse", "Difference", "Keys computed"):
        page.get_by_label(mode, exact=True).check()
        expect(sheet).to_have_attribute("aria-label", re.compile(f"^{mode}"))
        assert sheet.locator("img").nth(2).get_attribute("src") != dense
    expect(page.get_by_role("table").filter(has_text="own place", visible=True).locator("tbody tr")).to_have_count(4)
    plot = page.locator(".js-plotly-plot").filter(has_text="Layer 0, mean of heads", visible=True)
    expect(plot).to_be_visible()
    page.get_by_label("Keys of").click()
    page.get_by_role("option", name="Frame 3").click()
    expect(plot).to_be_visible()
    look(page, "attention")
    open_tab(page, "Correlations")  # the run is there, too
    expect(page.locator("#correlation-table table")).to_be_visible(timeout=10_000)


@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_reuse_laboratory(open_page, look, look_inside, width, theme):
    page = open_page(width, theme)
    look_inside(page, "Reuse laboratory")
    cards = page.locator(".tr-metrics").filter(visible=True)
    expect(cards).to_contain_text("Attention saved70.")
    expect(cards).to_contain_text("realised")
    gallery = page.locator(".tr-gallery").filter(visible=True)
    expect(gallery.locator("img")).to_have_count(8)
    expect(page.locator(".js-plotly-plot").filter(has_text="Output error at", visible=True)).to_be_visible()
    page.get_by_label("channel", exact=True).check()
    expect(cards).to_contain_text("theoretical")
    page.get_by_label("Threshold θ", exact=True).filter(visible=True).check()
    number = page.get_by_label("θ", exact=True).filter(visible=True)
    number.fill("0")
    number.press("Tab")
    expect(cards).to_contain_text("Attention saved0.0%")
    page.get_by_label("token", exact=True).filter(visible=True).check()
    page.get_by_label("Saving", exact=True).filter(visible=True).check()
    page.get_by_text("Why feedback works").click()
    page.get_by_role("button", name="Measure the drift").click()
    expect(page.get_by_text("Giving back the error of step")).to_be_visible(timeout=30_000)
    look(page, "reuse")
    for axis in ("time", "height", "width"):
        page.get_by_label(axis, exact=True).filter(visible=True).uncheck()
    expect(page.get_by_test_id("toast-body").first).to_contain_text("are not distinct axes")


def test_wrong_pairings_as_video(open_page, open_tab):
    page = open_page()
    open_tab(page, "Reuse laboratory")
    page.get_by_text("Reuse along the wrong axis").click()
    page.get_by_role("button", name="Generate all pairings").click()
    expect(page.get_by_text("Channels of group t reused along x")).to_be_visible(timeout=90_000)
    page.wait_for_function("[...document.querySelectorAll('video')].some(v => v.readyState >= 2 && v.videoWidth > 600)")


def look_into(page, open_tab, path):
    open_tab(page, "Correlations")
    page.get_by_label("My own clip").check()
    page.get_by_label("Clip size").click()
    page.get_by_role("option", name="Tiny").click()
    page.locator("input[type=file]").filter(visible=False).last.set_input_files(path)
    page.locator("video").filter(visible=True).first.wait_for()
    page.get_by_role("button", name="Look inside").click()


def test_a_clip_of_the_visitor(open_page, open_tab, tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (12, 64, 80, 3), np.uint8)
    write_mp4(tmp_path / "own.mp4", clip)
    page = open_page()
    look_into(page, open_tab, tmp_path / "own.mp4")
    expect(page.get_by_text("Your own clip: 512 tokens in 8×8×8")).to_be_visible(timeout=60_000)
    expect(page.locator("#correlation-table table")).to_be_visible()


def test_a_file_that_is_no_clip_is_one_sentence(open_page, open_tab, tmp_path):
    write_mp4(tmp_path / "own.mp4", np.zeros((1, 64, 64, 3), np.uint8))
    page = open_page()
    look_into(page, open_tab, tmp_path / "own.mp4")
    expect(page.get_by_test_id("toast-body")).to_contain_text("holds no moving picture")
