"""The player in headless Chromium: on clips that say by their grey which frame is shown, and on a run of the app."""

import re
import time
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from gradio.utils import get_upload_folder
from playwright.sync_api import expect

from timeripple.clips.quality import judge
from timeripple.clips.video import player_frames, write_mp4
from ui.player import played, player

pytestmark = pytest.mark.browser

FRAMES, AMPLIFICATION, SPOT = 12, 8, 235
LEVEL_A = [40 + 10 * i for i in range(FRAMES)]
LEVEL_B = [a + 4 + i for i, a in enumerate(LEVEL_A)]
PIXEL = """(canvas, [x, y]) => [...canvas.getContext('2d')
  .getImageData(Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data].slice(0, 3)"""


def grey(levels: list[int]) -> np.ndarray:
    """Frames of one grey each, with a bright spot of 8x8 pixels in the middle."""
    frames = np.broadcast_to(np.array(levels, np.uint8).reshape(-1, 1, 1, 1), (len(levels), 64, 64, 3)).copy()
    frames[:, 28:36, 28:36] = SPOT
    return frames


@pytest.fixture(scope="module")
def player_url():
    """A page with nothing but the player, its value planted."""
    a, b = grey(LEVEL_A), grey(LEVEL_B)
    folder = Path(get_upload_folder()) / "planted"
    folder.mkdir(parents=True, exist_ok=True)
    write_mp4(folder / "player.mp4", player_frames(a, b, AMPLIFICATION))
    (folder / "broken.mp4").write_bytes(b"no video")
    row = {"per_frame": judge(b, a).per_frame, "amplification": AMPLIFICATION}
    names = ["dense", "<b>reuse</b>"]
    with gr.Blocks() as app:
        shown = player(value=played(folder / "player.mp4", names, row))
        gr.Button("Break").click(lambda: played(folder / "broken.mp4", names, row), None, shown)
    _, url, _ = app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False)
    yield url
    app.close()


@pytest.fixture
def open_player(browser, player_url):
    contexts, errors = [], []

    def open_player(reduced_motion="reduce"):
        contexts.append(browser.new_context(viewport={"width": 1200, "height": 900}, reduced_motion=reduced_motion))
        contexts[-1].set_default_timeout(30_000)
        page = contexts[-1].new_page()
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(player_url)
        expect(player_of(page)).to_have_attribute("data-frame", re.compile(r"\d+"))
        return page

    yield open_player
    for context in contexts:
        context.close()
    assert errors == []


def player_of(page):
    return page.locator(".tr-player")


def shows_frame(page, number):
    expect(player_of(page)).to_have_attribute("data-frame", str(number))
    expect(page.get_by_text(f"{number} of {FRAMES}")).to_be_visible()


def pixel(page, x, y=0.25):
    return page.locator(".tr-player canvas").evaluate(PIXEL, [x, y])


def near(level, tolerance=3):
    return pytest.approx([level] * 3, abs=tolerance)


def shows(page, x, level, y=0.25, tolerance=3):
    """Waits until a pixel of the canvas has this grey, as the page hears of the pointer a little later."""
    deadline = time.monotonic() + 30
    while (seen := pixel(page, x, y)) != near(level, tolerance):
        assert time.monotonic() < deadline, f"at {x}, {y} the canvas shows {seen} instead of {level}"
        page.wait_for_timeout(50)


def press(page, key):
    player_of(page).focus()
    page.keyboard.press(key)


def test_every_frame_asked_for_is_the_frame_drawn(open_player):
    page = open_player()
    shows_frame(page, 1)
    expect(page.locator(".tr-player video")).to_have_js_property("paused", True)
    scrubber = page.get_by_label("Frame", exact=True)
    for number in (12, 1, 8, 7, 3, 9, 2):
        scrubber.fill(str(number))
        shows_frame(page, number)
        assert pixel(page, 0.25) == near(LEVEL_A[number - 1]) and pixel(page, 0.75) == near(LEVEL_B[number - 1])


def test_keys_and_buttons_step_by_one_frame(open_player):
    page = open_player()
    for step, number in [
        (lambda: press(page, "ArrowRight"), 2),
        (lambda: press(page, "ArrowRight"), 3),
        (page.get_by_role("button", name="Forward one frame").click, 4),
        (lambda: press(page, "ArrowLeft"), 3),
        (page.get_by_role("button", name="Back one frame").click, 2),
    ]:
        step()
        shows_frame(page, number)
        assert pixel(page, 0.25) == near(LEVEL_A[number - 1])


def test_wipe_and_difference(open_player):
    page = open_player()
    press(page, "End")  # no key of the player
    page.get_by_label("Frame", exact=True).fill("12")
    shows_frame(page, 12)
    press(page, "w")
    wipe, divider = page.get_by_role("button", name="Wipe"), page.get_by_role("slider", name="Divider")
    expect(wipe).to_have_attribute("aria-pressed", "true")
    shows(page, 0.4, LEVEL_A[-1])
    shows(page, 0.6, LEVEL_B[-1])
    box = page.locator(".tr-player canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 20, steps=3)
    page.mouse.up()
    shows(page, 0.6, LEVEL_A[-1])
    shows(page, 0.8, LEVEL_B[-1])
    divider.fill("100")
    shows(page, 0.2, LEVEL_B[-1])
    divider.press("ArrowRight")
    expect(divider).to_have_value("101")
    shows_frame(page, 12)

    press(page, "d")
    expect(page.get_by_text(f"× {AMPLIFICATION}, from the frames before coding")).to_be_visible()
    shows(page, 0.2, AMPLIFICATION * (LEVEL_B[-1] - LEVEL_A[-1]))
    shows(page, 0.5, 0, y=0.5)  # the spot is the same in both
    press(page, "d")
    expect(page.get_by_role("button", name="Side by side")).to_have_attribute("aria-pressed", "true")
    shows(page, 0.25, LEVEL_A[-1])


def test_the_loupe_enlarges_both_sides_at_the_pointer(open_player):
    page = open_player()
    width = page.locator(".tr-player canvas").evaluate("canvas => canvas.width")
    beside = [(128 + 40) / width, (width - 128 + 40) / width]  # 40 of 256 pixels right of the middle of each picture
    for x, level in zip(beside, (LEVEL_A[0], LEVEL_B[0]), strict=True):
        shows(page, x, level, y=0.5)
    press(page, "l")
    box = page.locator(".tr-player canvas").bounding_box()
    page.mouse.move(box["x"] + 128 / width * box["width"], box["y"] + box["height"] / 2)
    expect(page.get_by_role("button", name="Loupe")).to_have_attribute("aria-pressed", "true")
    for x in beside:
        shows(page, x, SPOT, y=0.5, tolerance=10)


def test_a_click_on_a_chart_seeks(open_player):
    page = open_player()
    charts = page.locator(".tr-player-charts figure")
    expect(charts).to_have_count(3)
    for chart, number in zip(charts.all(), (8, 3, 12), strict=True):
        box = chart.locator("svg").bounding_box()
        chart.locator("svg").click(position={"x": (number - 1) / (FRAMES - 1) * (box["width"] - 1), "y": 20})
        shows_frame(page, number)
        assert pixel(page, 0.25) == near(LEVEL_A[number - 1])
    error = LEVEL_B[-1] - LEVEL_A[-1]
    share = 1 - 8**2 / 64**2  # all but the spot
    expect(charts.first).to_contain_text(f"PSNR {10 * np.log10(255**2 / (share * error**2)):.1f} dB measured here")
    labels = [chart.get_attribute("aria-label") for chart in page.locator(".tr-player-charts svg").all()]
    assert [label.split()[0] for label in labels] == ["PSNR", "SSIM", "VMAF"]


def test_playing_speed_and_loop(open_player):
    page = open_player(reduced_motion="no-preference")
    video = page.locator(".tr-player video")
    expect(video).to_have_js_property("paused", False)
    press(page, " ")
    expect(video).to_have_js_property("paused", True)
    page.get_by_label("Speed").select_option("0.5")
    expect(video).to_have_js_property("playbackRate", 0.5)
    page.get_by_label("Speed").select_option("1")
    page.get_by_role("button", name="Loop").click()
    page.get_by_label("Frame", exact=True).fill("6")
    shows_frame(page, 6)
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    expect(page.get_by_role("button", name="Play")).to_be_visible()  # at the end
    shows_frame(page, FRAMES)
    assert pixel(page, 0.25) == near(LEVEL_A[-1])


def test_help_lists_the_keys_and_names_are_escaped(open_player):
    page = open_player()
    expect(page.get_by_text("<b>reuse</b>")).to_be_visible()
    press(page, "?")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    for key in ("space", "←", "→", "w", "d", "l", "f", "?"):
        expect(dialog.locator("kbd", has_text=re.compile(f"^{re.escape(key)}$"))).to_have_count(1)
    page.keyboard.press("ArrowRight")
    shows_frame(page, 1)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_fullscreen(open_player):
    page = open_player()
    press(page, "f")
    page.wait_for_function("document.fullscreenElement?.classList.contains('tr-player')")
    press(page, "f")
    page.wait_for_function("!document.fullscreenElement")


def test_a_video_that_cannot_be_played_is_one_sentence(open_player):
    page = open_player()
    page.get_by_role("button", name="Break").click()
    expect(page.get_by_text("This browser cannot play the video; the files can still be downloaded")).to_be_visible()
    expect(page.locator(".tr-player canvas")).to_be_hidden()


@pytest.mark.parametrize(("width", "theme"), [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")])
def test_the_player_of_a_run(open_page, look, width, theme):
    page = open_page(width, theme)
    page.get_by_label("Size").click()
    page.get_by_role("option", name="Tiny").click()
    number = page.get_by_label("number input for Denoising steps")
    number.fill("4")
    number.press("Tab")
    page.get_by_role("button", name="Generate").click()
    expect(player_of(page)).to_be_visible(timeout=60_000)
    expect(player_of(page)).to_have_attribute("data-frame", re.compile(r"\d+"))
    press(page, " ")
    expect(page.locator(".tr-player video")).to_have_js_property("paused", True)
    canvas, drawn = page.locator(".tr-player canvas"), {}
    for frame in ("1", "5"):
        page.get_by_label("Frame", exact=True).fill(frame)
        expect(player_of(page)).to_have_attribute("data-frame", frame)
        drawn[frame] = canvas.evaluate("canvas => canvas.toDataURL()")
    for key, mode in (("w", "wipe"), ("d", "difference")):
        press(page, key)
        expect(player_of(page)).to_have_attribute("data-mode", mode)
        look(page, f"player-{key}")
        drawn[key] = canvas.evaluate("canvas => canvas.toDataURL()")
    assert len(set(drawn.values())) == 4
    for name in ("dense.mp4", "token-0.75.mp4"):
        with page.expect_download() as download:
            page.get_by_text(f"Download {name}").click()
        assert download.value.suggested_filename == name
