"""Makes the pictures of the README: every tab on Pond, at 1440 px light and 390 px dark, and the Pareto front.

`make pictures`; looked at by people, not by tests.
"""

from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from timeripple.bench.ui import FLAGS, chromium
from timeripple.clips.models import load_pipeline
from ui.build import build_app, launch_options
from ui.runs import Limits

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "assets" / "pictures"
RUN_SECONDS = 240
LOOKING_INSIDE = {"Correlations": "correlations", "Attention": "attention", "Reuse laboratory": "reuse"}
LOOKS = [(1440, "light"), (390, "dark")]


def open_tab(page: Page, name: str) -> None:
    """Opens a tab; on a narrow page the last ones are behind a button."""
    tab = page.get_by_role("tab", name=name).filter(visible=True)
    if not tab.count():
        page.locator(".overflow-menu > button").click()
        tab = page.locator(".overflow-dropdown button").filter(has_text=name)
    tab.click()


def compare(page: Page) -> None:
    page.locator("#stage button").first.click()  # a recorded example
    page.locator(".tr-metric").first.wait_for(timeout=RUN_SECONDS * 1000)


def look_inside(page: Page, name: str) -> None:
    """Every tab that looks inside shows the run that the first of them makes."""
    open_tab(page, name)
    stage = page.locator(".tr-stage").filter(visible=True)
    page.wait_for_timeout(1500)
    if not stage.count():
        page.get_by_role("button", name="Look inside").filter(visible=True).click()
    stage.wait_for(timeout=RUN_SECONDS * 1000)


def measure(page: Page) -> None:
    open_tab(page, "Timing")
    for count in ("2,304", "4,096"):
        box = page.get_by_label(count, exact=True)
        if box.is_checked():
            box.uncheck()
    page.get_by_role("button", name="Measure here").click()
    page.get_by_text("Download attention.csv").wait_for(timeout=RUN_SECONDS * 1000)


def main() -> None:
    limits = Limits()
    app = build_app(load_pipeline("pond"), limits)
    _, url, _ = app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options(limits))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        for width, theme in LOOKS:
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
            page = context.new_page()
            page.goto(f"{url}?__theme={theme}")
            page.get_by_role("button", name="Generate").wait_for()

            def keep(name: str, page=page, width=width) -> None:
                page.wait_for_timeout(3000)  # plots draw after the data are there
                page.screenshot(path=PICTURES / f"{name}-{width}.png", full_page=True)

            compare(page)
            keep("compare")
            for name, file in (
                ("Correlations", "correlations"),
                ("Attention", "attention"),
                ("Reuse laboratory", "reuse"),
            ):
                look_inside(page, name)
                keep(file)
            measure(page)
            keep("timing")
            open_tab(page, "Method")
            keep("method")
            context.close()
        for path in (ROOT / "assets" / "benchmarks").glob("work*.json"):
            work_pictures(browser, path)
        browser.close()
    app.close()


def work_pictures(browser, path: Path) -> None:
    """Quality over seconds at every number of tokens on white, as it stands in the README."""
    import json

    from timeripple.bench import figures

    result = json.loads(path.read_text())
    where = result["environment"]
    for tokens in dict.fromkeys(row["tokens"] for row in result["rows"]):
        title = f"{tokens} tokens (recorded on {where['cpu']}, {where['threads']} threads, {where['dtype']})"
        page = browser.new_page(viewport={"width": 1100, "height": 640})
        figure = figures.quality_over_seconds([row for row in result["rows"] if row["tokens"] == tokens], title)
        page.set_content(figure.to_html(include_plotlyjs=True, default_height=620))
        page.wait_for_timeout(2000)
        page.screenshot(path=PICTURES / f"{path.stem}-{tokens}.png")
        page.close()


if __name__ == "__main__":
    main()
