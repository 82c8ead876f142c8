"""The tabs that look inside a run, in headless Chromium: what is picked is what is shown."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.ui.forms import ask_inside, choose, expect_said, unfold
from timeripple.clips.video import write_mp4

pytestmark = pytest.mark.browser

LOOKS = [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")]


@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_every_tab_shows_the_recorded_run_and_what_is_picked_is_picked_in_all(open_page, open_tab, look, width, theme):
    page = open_page(width, theme)
    open_tab(page, "Correlations")
    table = page.locator("#correlation-table .tr-channels")
    expect(table).to_be_visible()
    expect(page.locator("#source-note")).to_contain_text("The effect is strongest in layer")
    expect(page.get_by_text(re.compile("^The t channels of this head"))).to_be_visible()
    expect(table.get_by_role("columnheader", name="1 frame later")).to_be_attached()
    channel = table.get_by_role("button", name="9", exact=True)
    channel.click()
    expect(channel).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_text("Channel 9 turns with")).to_be_visible()
    head = page.locator("#correlation-heads").get_by_role("button", name="Layer 1, head 1")
    head.click()
    expect(head).to_have_attribute("aria-pressed", "true")
    expect(table.locator("caption")).to_contain_text("Correlation of Q, layer 1, head 1, measured here")
    page.get_by_label("Keys", exact=True).filter(visible=True).check()
    page.get_by_label("Deviation Δ (Eq. 3)").check()
    expect(table.locator("caption")).to_contain_text("Deviation Δ (Eq. 3) of K, layer 1, head 1")
    sheet = page.locator("#correlation-sheet .tr-sheet")
    sheet.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "PageDown"):  # faster than they are answered
        page.keyboard.press(key)
    tip = page.locator("#correlation-sheet [data-tip]")
    page.locator("#correlation-sheet .tr-large").last.hover()
    expect(tip).to_contain_text(re.compile(r"Frame \d+, row \d+, column \d+: Channel 9 of K -?\d"))
    page.locator("#correlation-sheet").get_by_role("button", name="Play").click()
    page.locator("#correlation-sheet").get_by_role("button", name="Pause").click()
    look(page, "correlations")

    open_tab(page, "Attention")
    sheet = page.locator("#attention-sheet .tr-sheet")
    expect(sheet.locator(".tr-large")).to_have_count(4)
    expect(page.locator("#attention-heads [aria-pressed=true]")).to_have_attribute("aria-label", "Layer 1, head 1")
    place = [number + 1 for number in json.loads(sheet.get_attribute("data-place"))]
    facts = page.locator(".tr-facts").filter(has_text="of its attention to its own")
    expect(facts).to_contain_text(f"Token ({', '.join(map(str, place))})")
    large = sheet.locator(".tr-large").first
    box = large.bounding_box()
    large.click(position={"x": box["width"] * 5.5 / 16, "y": box["height"] * 3.5 / 16})
    expect(facts).to_contain_text(f"Token ({place[0]}, 4, 6)")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    expect(facts).to_contain_text(f"Token ({place[0]}, 5, 5)")
    map_view = page.locator("#attention-map .tr-map-view")
    map_view.hover(position={"x": 5, "y": 6})
    expect(page.locator("#attention-map [data-tip]")).to_contain_text("gives frame 1")
    box = map_view.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 120, box["y"] + 120, steps=4)
    page.mouse.up()
    inner = page.locator("#attention-map .tr-map-inner")
    assert inner.evaluate("at => at.offsetWidth") > 2 * box["width"]
    map_view.dblclick()
    assert inner.evaluate("at => at.offsetWidth") == pytest.approx(box["width"], abs=2)
    page.get_by_label("Mean of heads").check()
    expect(page.locator("#attention-map figcaption")).to_contain_text("mean of heads")
    look(page, "attention")

    open_tab(page, "Laboratory")
    cards = page.locator(".tr-metrics").filter(visible=True)
    expect(cards).to_contain_text("Attention saved70.")
    expect(page.locator("#laboratory-sheet .tr-sheet")).to_have_attribute(
        "data-place", re.compile(rf"\[{place[0] - 1}, 4, 4\]")
    )
    expect(page.get_by_text("does not contradict the paper")).to_be_visible()
    expect(page.get_by_label("Window", exact=True).filter(visible=True)).to_have_count(0)  # it does not apply
    star = page.get_by_role("slider", name="Attention saved")
    star.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(cards).to_contain_text("Attention saved60.")
    page.get_by_label("channel", exact=True).filter(visible=True).check()
    expect(cards).to_contain_text("theoretical")
    expect(page.get_by_label("Window", exact=True).filter(visible=True)).to_have_count(1)
    page.get_by_label("Threshold θ", exact=True).filter(visible=True).check()
    number = page.get_by_label("θ", exact=True).filter(visible=True)
    number.fill("0")
    number.press("Tab")
    expect(cards).to_contain_text("Attention saved0.0%")
    look(page, "laboratory")
    for axis in ("time", "height", "width"):
        page.get_by_label(axis, exact=True).filter(visible=True).uncheck()
    expect_said(page, "are not distinct axes")


def test_a_new_prompt_is_looked_into_and_survives_a_reload(open_page, open_tab, look_inside):
    page = open_page()
    look_inside(page, "Correlations")
    expect(page.locator("#correlation-table tbody tr")).to_have_count(24)  # channels of a head of the tiny model
    expect(page).to_have_url(re.compile("look="))
    open_tab(page, "Laboratory")
    measure = page.get_by_role("button", name="Measure the drift")
    unfold(page, "Why feedback works", measure)
    measure.click()
    expect(page.get_by_text("Giving back the error of step")).to_be_visible()
    page.reload()
    open_tab(page, "Correlations")
    expect(page.locator(".tr-facts").filter(has_text="192 tokens in 3×8×8", visible=True)).to_be_visible()
    expect(page.get_by_label("Look into", exact=True)).to_have_value("A new prompt")
    choose(page, "Look into", "Red ball (recorded)")
    expect(page.locator("#source-note")).to_contain_text("Red ball (recorded)")


def test_a_size_is_the_same_everywhere(open_page, open_tab):
    page = open_page()
    choose(page, "Size", "Small")
    open_tab(page, "Correlations")
    choose(page, "Look into", "A new prompt")
    size = page.get_by_label("Size", exact=True).filter(visible=True)
    expect(size).to_have_value(re.compile("^Small"))
    choose(page, "Size", "Tiny")
    page.get_by_role("tab", name="Compare").click()
    expect(size).to_have_value(re.compile("^Tiny"))


def test_wrong_pairings_as_a_table(open_page, open_tab):
    page = open_page()
    open_tab(page, "Laboratory")
    pair = page.get_by_role("button", name="Generate all nine pairings")
    unfold(page, "Reuse along the wrong axis", pair)
    pair.click()
    table = page.get_by_role("table").filter(has_text="own axis")
    expect(table.locator("td img")).to_have_count(9)
    assert len(re.findall(r"\d+\.\d dB", table.inner_text())) == 9 and "×" not in table.inner_text()


def look_into(page, open_tab, path):
    open_tab(page, "Correlations")
    choose(page, "Look into", "My own clip")
    page.locator("input[type=file]").last.set_input_files(path)
    expect(page.get_by_text(path.name).first).to_be_visible()
    ask_inside(page)


@pytest.mark.parametrize("name", ["own.mp4", "own.gif"])
def test_a_clip_of_the_visitor(open_page, open_tab, tmp_path, name):
    clip = np.random.default_rng(0).integers(0, 256, (6, 64, 80, 3), np.uint8)
    if name.endswith("gif"):
        first, *others = map(Image.fromarray, clip)
        first.save(tmp_path / name, save_all=True, append_images=others, duration=60, loop=0)
    else:
        write_mp4(tmp_path / name, clip)
    page = open_page()
    look_into(page, open_tab, tmp_path / name)
    note = page.get_by_text(re.compile(r"Your own clip: \d+ tokens in \d×8×8"))
    expect(note).to_be_visible()
    expect(note).to_contain_text("where 9 were asked for")  # never a longer clip than there is
    expect(page.locator("#correlation-table table")).to_be_visible()


def test_a_file_that_is_no_clip_is_one_sentence(open_page, open_tab, tmp_path):
    write_mp4(tmp_path / "own.mp4", np.zeros((1, 64, 64, 3), np.uint8))
    page = open_page()
    look_into(page, open_tab, tmp_path / "own.mp4")
    expect_said(page, "holds no moving picture")
