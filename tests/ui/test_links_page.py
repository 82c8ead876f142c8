"""Links to results, settings from a video, and data under every plot, in headless Chromium."""

import csv
import json
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.ui.forms import expect_said, generate, open_advanced, open_fold, prompt_box, settings
from timeripple.clips.video import write_mp4

pytestmark = pytest.mark.browser

FORM = {
    "prompt": "a small green star rising in the sky", "seed": 11, "num_frames": 9, "height": 64, "width": 64,
    "steps": 4, "guidance_scale": 2.0, "compared": "dense,tile:0.4",
}  # fmt: skip


@pytest.fixture
def result(open_page):
    """The page with a finished comparison, and the query of the link to it."""
    page = open_page()
    settings(page, "Tiny", 4, "a red ball rolling left")
    generate(page)
    expect(page.locator(".tr-headline .tr-kind")).to_have_text("measured here")
    link = page.get_by_role("link", name="Link to this result")
    expect(link).to_be_visible()
    return page, link.get_attribute("href").removeprefix("?")


def test_a_link_shows_the_result_to_another_visitor(open_page, result):
    stranger = open_page(query=result[1])
    expect(stranger.locator(".tr-headline .tr-detail")).to_contain_text("“a red ball rolling left”")
    expect(prompt_box(stranger)).to_have_value("a red ball rolling left")


def test_a_link_to_a_result_that_is_gone_fills_the_form(open_page, result):
    _, link = result
    query = parse_qs(link)
    assert query["compared"][0].startswith("dense,token:") and query["steps"] == ["4"]
    stranger = open_page(query=link.replace(query["run"][0], "gone").replace("seed=0", "seed=31"))
    open_advanced(stranger)
    expect(stranger.get_by_label("Seed", exact=True).filter(visible=True)).to_have_value("31")
    expect(stranger.get_by_text("This result is no longer kept; the form has its settings")).to_be_visible()
    expect(stranger.locator(".tr-headline .tr-kind")).to_contain_text("recorded on")


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("prompt=a+ball&seed=<script>alert(1)</script>", "give a number"),
        ("prompt=a+ball&compared=dense,magic", "'magic' is unknown"),
        ("prompt=a+ball&num_frames=9", "which the form does not offer"),
        ("prompt=a+ball&compared=dense", "compare 1 methods"),
    ],
)
def test_a_broken_link_is_one_sentence(open_page, query, sentence):
    page = open_page(query=query)
    expect_said(page, sentence)


def upload(page, path):
    open_advanced(page)
    page.locator("input[type=file]").first.set_input_files(path)


def test_a_video_brings_its_settings_back(open_page, tmp_path):
    write_mp4(tmp_path / "clip.mp4", np.zeros((2, 64, 64, 3), np.uint8), metadata=FORM)
    page = open_page()
    upload(page, tmp_path / "clip.mp4")
    expect(prompt_box(page)).to_have_value(FORM["prompt"])
    expect(page.get_by_label("Seed", exact=True).filter(visible=True)).to_have_value("11")
    expect(page.get_by_label("Method B", exact=True)).to_have_value("Tile reuse")
    expect(page.get_by_label("number input for Budget B")).to_have_value("0.4")


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        (None, "holds no settings"),
        ({"prompt": ["nested"], "seed": {"a": 1}}, "give a number"),
        ({"title": "a foreign payload"}, "name no prompt"),
    ],
)
def test_a_foreign_video_is_one_sentence(open_page, tmp_path, metadata, sentence):
    write_mp4(tmp_path / "clip.mp4", np.zeros((2, 64, 64, 3), np.uint8), metadata=metadata)
    page = open_page()
    upload(page, tmp_path / "clip.mp4")
    expect_said(page, sentence)


def test_data_under_every_plot(result, settle):
    page, _ = result
    open_fold(page, "More about this run")
    expect(page.locator(".tr-exports").first).to_be_visible()
    settle(page)
    plot = page.locator(".tr-plot").filter(has_text="Attention saved at each", visible=True)
    files = {}
    for kind in ("CSV", "JSON", "PNG"):
        with page.expect_download() as download:
            plot.get_by_role("button", name=f"Download this plot as {kind}").click()
        files[kind] = Path(download.value.path()).read_bytes()
    rows = list(csv.DictReader(files["CSV"].decode().splitlines()))
    points = json.loads(files["JSON"])["points"]
    assert len(rows) == len(points) == 4 and rows[0]["x"] == "1"
    assert [float(row["y"]) for row in rows] == [point["y"] for point in points]
    assert files["PNG"].startswith(b"\x89PNG")


def test_a_recorded_comparison_is_there_at_once(open_page, settle):
    page = open_page()
    card = page.locator("[data-recorded]").nth(1)
    prompt = card.locator("b").inner_text()
    card.click()
    expect(page.locator(".tr-headline .tr-detail")).to_contain_text(prompt)
    expect(prompt_box(page)).to_have_value(prompt)
    settle(page)
    assert "measured here" not in page.locator("#result").inner_text()


def test_a_restart_under_an_open_page_is_said_and_keeps_the_form(open_page, settle):
    page = open_page()
    prompt_box(page).fill("a purple fish swimming")
    page.wait_for_timeout(500)
    settle(page)  # the form is kept as it changes
    kept = page.evaluate("localStorage.getItem('timeripple-form')")
    assert kept
    page.reload()
    settle(page)
    assert not page.get_by_text("The app was started anew").is_visible()
