"""Makes the pictures of the README: every tab on Pond, at 1440 px light and 390 px dark, and the Pareto front.

`make pictures`, and `make pictures LOOKS=all` for 1440, 820 and 390 px, light and dark, into test-artifacts; looked at
by people, not by tests.
"""

import sys
from itertools import product
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from timeripple.bench.ui import FLAGS, chromium
from timeripple.clips.models import load_pipeline
from ui.build import build_app, launch_options
from ui.limits import Limits

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "assets" / "pictures"
LOOKS = [(1440, "light"), (390, "dark")]
EVERY_LOOK = list(product((1440, 820, 390), ("light", "dark")))
TABS = [  # path to a tab, what is waited for there, and the name of its picture
    ((), ".tr-player[data-frame]", "compare"),
    (("Method",), ".tr-walk img", "method"),
    (("Look inside", "Correlations"), "#correlation-table table", "correlations"),
    (("Attention",), "#attention-map img", "attention"),
    (("Laboratory",), "#laboratory-curve svg", "laboratory"),
    (("Timing",), ".tr-scatter", "timing"),
]


def keep_tabs(page: Page, path) -> None:
    """A picture of all of every tab; path(name): where it goes."""
    for names, seen, name in TABS:
        for tab in names:
            page.get_by_role("tab", name=tab, exact=True).filter(visible=True).click()
        page.locator(seen).first.wait_for(timeout=120_000)
        page.wait_for_timeout(4000)  # plots draw after the data are there
        page.screenshot(path=path(name), full_page=True)


def main(everything: bool) -> None:
    limits = Limits()
    app = build_app(load_pipeline("pond"), limits)
    _, url, _ = app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options(app))
    folder = ROOT / "test-artifacts" if everything else PICTURES
    folder.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        for width, theme in EVERY_LOOK if everything else LOOKS:
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
            page = context.new_page()
            page.goto(f"{url}?__theme={theme}")
            look = f"{width}-{theme}" if everything else str(width)
            keep_tabs(page, lambda name, look=look: folder / f"{name}-{look}.png")
            context.close()
        if not everything:
            for path in (ROOT / "assets" / "benchmarks").glob("work*.json"):
                work_pictures(browser, path)
        browser.close()
    app.runs.close()
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
    main("all" in sys.argv[1:])
