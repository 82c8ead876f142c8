"""axe-core finds nothing serious on any tab, light and dark, nor on a result."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

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
def test_every_tab(open_page, settle, theme):
    page = open_page(theme=theme)
    found = {}
    for tab in page.get_by_role("tab").all():
        tab.click()
        expect(tab).to_have_attribute("aria-selected", "true")
        found[tab.inner_text()] = serious(page, settle)
    assert len(found) >= 2 and not any(found.values()), found


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_result(open_page, settle, theme):
    page = open_page(theme=theme)
    page.get_by_label("Size").click()
    page.get_by_role("option", name="Tiny").click()
    page.get_by_label("number input for Denoising steps").fill("4")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".tr-player")).to_have_attribute("data-frame", re.compile("."), timeout=60_000)
    page.locator(".tr-player").press("w")
    assert serious(page, settle) == []
