"""The tabs Timing and Method in headless Chromium."""

import json
import re

import pytest
from playwright.sync_api import expect

from ui.timing_tab import kernel_table, recorded_table, rows_table

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


@pytest.mark.browser
@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_timing(open_page, open_tab, look, width, theme):
    page = open_page(width, theme)
    open_tab(page, "Timing")
    for count in ("1,024", "2,304", "4,096"):
        page.get_by_label(count, exact=True).uncheck()
    page.get_by_role("button", name="Measure here").click()
    table = page.get_by_role("region", name="Attention of one layer, one pass (measured here)")
    expect(table.locator("tbody tr")).to_have_count(3, timeout=60_000)
    expect(page.locator(".js-plotly-plot").filter(visible=True)).to_have_count(2)
    with page.expect_download() as download:
        page.get_by_text("Download attention.json").click()
    assert json.loads(download.value.path().read_text())["kind"] == "measured here"
    expect(page.get_by_role("region", name="Recorded on")).to_be_visible()
    look(page, "timing")


@pytest.mark.browser
@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_method(open_page, open_tab, look, settle, width, theme):
    page = open_page(width, theme)
    open_tab(page, "Method")
    figures = page.locator(".tr-step svg")
    expect(figures).to_have_count(7)
    settle(page)
    assert all(box["width"] > 150 for box in (figure.bounding_box() for figure in figures.all()))
    expect(page.get_by_role("region", name="(paper)")).to_be_visible()
    expect(page.get_by_role("region", name="What Pond measures")).to_contain_text("token:0.75")
    look(page, "method")
