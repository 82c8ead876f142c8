"""What page tests do with the form of the tab Compare."""

import re
from contextlib import suppress

from playwright.sync_api import TimeoutError, expect

PATIENCE = 180  # seconds that a page on a busy machine may take to settle, and every single thing that is waited for


def prompt_box(page):
    return page.get_by_role("textbox", name=re.compile("^Prompt")).filter(visible=True)


def choose(page, label, option):
    """Picks from a dropdown that is seen."""
    page.get_by_label(label, exact=True).filter(visible=True).click()
    page.get_by_role("option", name=option).last.click()  # the list of another may still be closing


def open_advanced(page):
    if not page.get_by_label("number input for Denoising steps").filter(visible=True).count():
        open_fold(page, "Advanced")


def open_fold(page, name):
    page.get_by_role("button", name=name).click()
    page.wait_for_timeout(500)  # the page writes into fields once more after it has made them


def unfold(page, name, inside):
    """Opens a fold, and once more where the page made it anew, and closed, after its tab had been opened."""
    for _ in range(10):
        open_fold(page, name)
        with suppress(TimeoutError):
            return inside.wait_for(timeout=10_000)
    raise AssertionError(f"{name} does not open.")


def settings(page, size, steps, prompt="a red ball rolling left across the ocean"):
    prompt_box(page).fill(prompt)
    choose(page, "Size", size)
    open_advanced(page)
    number = page.get_by_label("number input for Denoising steps")
    number.fill(str(steps))
    number.press("Tab")
    page.wait_for_timeout(500)  # what is typed reaches the app before a button does
    page.get_by_role("button", name="Advanced").click()


def generate(page):
    page.get_by_role("button", name="Generate", exact=True).click()


def start_long_run(page):
    """A run of many steps, seen through its first step."""
    settings(page, "Large", 40)
    generate(page)
    expect(page.locator(".tr-side.tr-a .tr-detail")).to_contain_text("of 40")


def ask_inside(page):
    """Has a tiny run of five steps looked into, of what the form says."""
    choose(page, "Size", "Tiny")
    number = page.get_by_label("Denoising steps", exact=True).filter(visible=True)
    number.fill("5")
    number.press("Tab")
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Look inside").filter(visible=True).click()


def expect_said(page, sentence):
    """The page has said, in a message that may be gone again, what holds this sentence, and no traceback."""
    page.wait_for_function("sentence => (window.toasts ?? []).some(toast => toast.includes(sentence))", arg=sentence)
    assert not page.evaluate("window.toasts.some(toast => toast.includes('Traceback'))")
