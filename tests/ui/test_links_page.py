"""Links to results, settings from a video, and data under every plot, in headless Chromium."""

import csv
import json
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
from playwright.sync_api import expect

from timeripple.clips.video import write_mp4

pytestmark = pytest.mark.browser

FORM = {
    "prompt": "a small green star rising in the sky", "seed": 11, "num_frames": 8, "height": 64, "width": 64,
    "steps": 4, "guidance_scale": 2.0, "compared": "dense,tile:0.4",
}  # fmt: skip


def prompt_of(page):
    return page.get_by_role("textbox", name="Prompt A subject")


@pytest.fixture
def result(open_page):
    """The page with a finished comparison, and the query of the link to it."""
    page = open_page()
    prompt_of(page).fill("a red ball rolling left")
    page.get_by_label("Size", exact=True).click()
    page.get_by_role("option", name="Tiny").click()
    number = page.get_by_label("number input for Denoising steps")
    number.fill("4")
    number.press("Tab")
    page.get_by_role("button", name="Generate").click()
    link = page.get_by_role("link", name="Link to this result")
    expect(link).to_be_visible(timeout=60_000)
    return page, link.get_attribute("href").removeprefix("?")


def test_a_link_shows_the_result_to_another_visitor(open_page, result):
    stranger = open_page(query=result[1])
    expect(stranger.locator(".tr-heading")).to_contain_text("a red ball rolling left", timeout=20_000)
    expect(prompt_of(stranger)).to_have_value("a red ball rolling left")


def test_a_link_to_a_result_that_is_gone_fills_the_form(open_page, result):
    _, link = result
    query = parse_qs(link)
    assert query["compared"] == ["dense,token:0.75"] and query["steps"] == ["4"]
    stranger = open_page(query=link.replace(query["run"][0], "gone").replace("seed=0", "seed=31"))
    expect(stranger.get_by_label("Seed", exact=True)).to_have_value("31")
    expect(stranger.locator(".tr-welcome")).to_be_visible()


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
    page = open_page(query=query, settled=False)  # the sentence goes after a while
    expect(page.get_by_test_id("toast-body")).to_contain_text(sentence)


def upload(page, path):
    page.get_by_text("Settings from a video").click()
    page.locator("input[type=file]").first.set_input_files(path)


def test_a_video_brings_its_settings_back(open_page, tmp_path):
    write_mp4(tmp_path / "clip.mp4", np.zeros((2, 64, 64, 3), np.uint8), metadata=FORM)
    page = open_page()
    upload(page, tmp_path / "clip.mp4")
    expect(prompt_of(page)).to_have_value(FORM["prompt"])
    expect(page.get_by_label("Seed", exact=True)).to_have_value("11")
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
    expect(page.get_by_test_id("toast-body")).to_contain_text(sentence)


def test_data_under_every_plot(result, settle):
    page, _ = result
    settle(page)
    plot = page.locator(".tr-plot").filter(has_text="Attention saved at each", visible=True)
    files = {}
    for kind in ("CSV", "JSON", "PNG"):
        with page.expect_download() as download:
            plot.get_by_role("button", name=f"Download this plot as {kind}").click()
        files[kind] = Path(download.value.path()).read_bytes()
    rows = list(csv.DictReader(files["CSV"].decode().splitlines()))
    points = json.loads(files["JSON"])["points"]
    assert len(rows) == len(points) == 2 * 4 and rows[0]["x"] == "1"
    assert [float(row["y"]) for row in rows] == [point["y"] for point in points]
    assert files["PNG"].startswith(b"\x89PNG")


def test_a_recorded_example_is_there_at_once(open_page, settle):
    page = open_page()
    page.locator("[data-example]").first.click()
    expect(page.locator(".tr-heading")).to_be_visible(timeout=10_000)
    expect(page.locator(".tr-metric").first).to_contain_text("recorded on")
    expect(page.locator(".tr-player canvas")).to_be_visible()
    settle(page)
    assert "measured here" not in page.locator(".tr-stage").filter(visible=True).first.inner_text()
