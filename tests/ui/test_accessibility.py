"""axe-core finds nothing serious on any tab, light and dark, nor on a result."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.ui.forms import generate, open_fold, settings

pytestmark = pytest.mark.browser

AXE = Path(__file__).parents[2] / ".venv/axe/node_modules/axe-core/axe.min.js"
RUN = "() => axe.run(document, {resultTypes: ['violations'], runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']})"


def serious(page, settle) -> list[str]:
    """What axe-core calls serious or critical, one line each with the first element it concerns."""
    settle(page)
    page.add_script_tag(content=AXE.read_text())
    return [
        f"{violation['id']}: {violation['help']} ({violation['nodes'][0]['html'][:150]})"
        for violation in page.evaluate(RUN)["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_tab(open_page, open_tab, settle, theme):
    page = open_page(theme=theme)
    found = {"Compare": serious(page, settle)}
    open_fold(page, "Advanced")
    open_fold(page, "More about this run")
    found["Compare, unfolded"] = serious(page, settle)
    for tab, seen in (
        ("Method", ".tr-walk"),
        ("Correlations", "#correlation-table table"),
        ("Attention", "#attention-map img"),
        ("Laboratory", "#laboratory-curve svg"),
        ("Timing", ".tr-scatter >> nth=-1"),
    ):
        open_tab(page, tab)
        expect(page.locator(seen)).to_be_visible()
        folds = page.locator(".label-wrap:not(.open)").filter(visible=True)
        while folds.count():
            folds.first.click()
        found[tab] = serious(page, settle)
    assert not any(found.values()), found


def test_a_result_and_a_message(open_page, settle):
    page = open_page()
    settings(page, "Tiny", 4)
    generate(page)
    expect(page.locator(".tr-headline .tr-kind")).to_have_text("measured here")
    page.locator(".tr-player").press("d")
    assert serious(page, settle) == []
    settings(page, "Tiny", 4, "a zebra")
    generate(page)
    expect(page.get_by_test_id("toast-body")).to_be_visible()
    assert serious(page, settle) == []
