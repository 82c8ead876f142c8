"""The tabs Timing and Method in headless Chromium."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.ui.forms import open_advanced, open_fold
from ui.timing_tab import RECORDED, kernel_table, recorded_files, recorded_table, rows_table

LOOKS = [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")]
ENVIRONMENT = {"cpu": "A chip", "device": "cpu", "threads": 2, "dtype": "float32", "date": "2026-01-02T03:04:05"}


def test_a_table_has_the_columns_its_rows_have():
    rows = [{"method": "dense", "tokens": 4096, "ms": 1.234}, {"method": "<b>", "tokens": 4096, "ms": None}]
    table = rows_table(rows, "measured here")
    assert re.findall(r'<th scope="col">(.*?)</th>', table) == ["method", "tokens", "ms"]
    assert re.findall(r"<td>(.*?)</td>", table) == ["4,096", "1.23", "4,096", "–"] and "&lt;b&gt;" in table


def test_theoretical_savings_are_not_put_into_a_column_of_realised_ones():
    rows = [{"method": name, "ms": 1.0, "saving": 0.75, "saving_kind": kind}
            for name, kind in (("token", "realised"), ("channel", "theoretical"))]  # fmt: skip
    table = recorded_table({"rows": rows, "environment": ENVIRONMENT})
    assert table.count("75%") == 1 and "Recorded on A chip, 2 threads, float32, 2026-01-02" in table


def test_kernels_of_a_target_only():
    row = {
        "kernel": "attend",
        "config": "bf16 d64 128x64",
        "registers": 128,
        "spills": 0,
        "shared_bytes": 1,
        "occupancy": 0.5,
    }
    kernels = {
        "rows": [row | {"target": "sm_80"}, row | {"target": "sm_90", "registers": 7}],
        "environment": ENVIRONMENT,
    }
    table = kernel_table(kernels, "sm_90")
    assert "<td>7</td>" in table and "<td>128</td>" not in table and "bf16 d64 128x64" in table and "50%" in table


def test_the_compile_report_is_searched_by_words():
    kernels = json.loads((RECORDED / "kernels.json").read_text())
    target = kernels["rows"][0]["target"]
    found = kernel_table(kernels, target, "BF16 d128")
    rows = [
        row
        for row in kernels["rows"]
        if row["target"] == target and "bf16" in row["config"] and "d128" in row["config"]
    ]
    assert found.count('<th scope="row">') == len(rows) > 0 and f"{len(rows)} kernels" in found
    assert kernel_table(kernels, target, "no such kernel").count('<th scope="row">') == 0


def test_every_recorded_result_that_is_offered_is_a_table():
    recorded = recorded_files()
    assert "ui" not in recorded and {"attention-5184", "end-to-end", "h200-attention"} <= recorded.keys()
    assert all(recorded_table(result).count('<th scope="row">') == len(result["rows"]) for result in recorded.values())


@pytest.mark.browser
@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_timing(open_page, open_tab, look, settle, width, theme):
    page = open_page(width, theme)
    open_tab(page, "Timing")
    recorded = page.locator(".js-plotly-plot").filter(visible=True)
    expect(recorded).to_have_count(2)
    settle(page)
    for plot in recorded.all():  # titles lie inside, nothing over them
        box, title = plot.bounding_box(), plot.locator(".gtitle").bounding_box()
        assert title["y"] >= box["y"] and title["x"] + title["width"] <= box["x"] + box["width"] + 1
        assert not plot.locator(".modebar-container").is_visible()
        legend, axis = plot.locator(".legend").bounding_box(), plot.locator(".xtitle").bounding_box()
        assert axis["y"] + axis["height"] <= legend["y"] + 2
        for tick in plot.locator(".ytick text").all_text_contents():
            assert float(tick.replace(",", "")) not in (3, 4, 6, 7, 8, 9)
    look(page, "timing-recorded")
    for count in ("1,296", "2,304", "5,184"):
        page.get_by_label(count, exact=True).uncheck()
    page.get_by_role("button", name="Measure here").last.click()
    table = page.get_by_role("region", name="Attention of one layer, one pass (measured here)")
    expect(table.locator("tbody tr")).to_have_count(4)
    expect(recorded).to_have_count(4)
    with page.expect_download() as download:
        page.get_by_text("Download attention.json").click()
    assert json.loads(download.value.path().read_text())["kind"] == "measured here"
    page.get_by_role("button", name="All recorded results as tables").click()
    expect(page.get_by_role("region", name="Recorded on")).to_be_visible()
    open_fold(page, "What the compiler says")
    page.get_by_label("Search").fill("d128")
    expect(page.get_by_role("region", name="Compiled for").locator("tbody tr").first).to_contain_text("d128")
    look(page, "timing")
    if width == 1440 and theme == "light":
        page.locator(".tr-scatter a.tr-ours").first.click()  # opens the form with this method
        open_advanced(page)
        expect(page.get_by_label("Method B", exact=True)).to_have_value("Token reuse")


@pytest.mark.browser
@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_method(open_page, open_tab, look, settle, width, theme):
    page = open_page(width, theme)
    open_tab(page, "Method")
    walk = page.locator(".tr-walk img")
    expect(walk).to_have_count(4)
    figures = page.locator(".tr-step svg")
    expect(figures).to_have_count(7)
    settle(page)
    assert all(box["width"] > 150 for box in (figure.bounding_box() for figure in figures.all()))
    assert all(picture.evaluate("at => at.naturalWidth > 90") for picture in walk.all())
    beside = page.get_by_role("region", name="The paper on HunyuanVideo and an H100, beside Pond here")
    assert len(beside.locator("tbody tr").all()) == 2 and "2.10×" in beside.inner_text()
    page.get_by_text("θ", exact=True).first.click()
    expect(page.get_by_text("The threshold: what deviates less")).to_be_visible()
    look(page, "method")
