"""The player in headless Chromium: on clips that say by their grey which frame is shown, and on a run of the app."""

import re
import time
from itertools import pairwise
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from gradio.utils import get_upload_folder
from PIL import Image
from playwright.sync_api import expect

from tests.ui.forms import PATIENCE
from timeripple.clips.quality import judge
from timeripple.clips.video import player_frames, write_mp4
from ui.player import played, player

pytestmark = pytest.mark.browser

FRAMES, AMPLIFICATION, SPOT = 12, 8, 235
LEVEL_A = [40 + 10 * i for i in range(FRAMES)]
LEVEL_B = [a + 4 + i for i, a in enumerate(LEVEL_A)]
LEVEL_C = [a - 6 for a in LEVEL_A]
PIXEL = """(canvas, [x, y]) => [...canvas.getContext('2d')
  .getImageData(Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data].slice(0, 3)"""


FRAMES_SEEN = """player => {
  window.seen = [];
  const video = player.querySelector('video');
  new MutationObserver(() => {
    const frame = +player.dataset.frame;
    if (window.seen.at(-1)?.[0] !== frame) window.seen.push([frame, video.paused]);
  }).observe(player, {attributes: true});
}"""


def grey(levels: list[int]) -> np.ndarray:
    """Frames of one grey each, with a bright spot of 8x8 pixels in the middle."""
    frames = np.broadcast_to(np.array(levels, np.uint8).reshape(-1, 1, 1, 1), (len(levels), 64, 64, 3)).copy()
    frames[:, 28:36, 28:36] = SPOT
    return frames


@pytest.fixture(scope="module")
def player_url():
    """A page with nothing but the player, its value planted: a reference and two renditions."""
    a, b, c = grey(LEVEL_A), grey(LEVEL_B), grey(LEVEL_C)
    folder = Path(get_upload_folder()) / "planted"
    folder.mkdir(parents=True, exist_ok=True)
    write_mp4(folder / "player.mp4", player_frames([a, b, c], AMPLIFICATION))
    (folder / "broken.mp4").write_bytes(b"no video")
    rows = [{"per_frame": each and each.per_frame} for each in (None, judge(b, a), judge(c, a))]
    size = {"num_frames": FRAMES, "width": 64, "height": 64}
    report = {"methods": rows, "player_amplification": AMPLIFICATION} | size
    names = ["dense", "<b>reuse</b>", "third"]
    with gr.Blocks() as app:
        shown = player(value=played(folder / "player.mp4", names, report))
        gr.Button("Break").click(lambda: played(folder / "broken.mp4", names, report), None, shown)
    _, url, _ = app.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False, _frontend=False
    )
    yield url
    app.close()


@pytest.fixture
def open_player(browser, player_url):
    contexts, errors = [], []

    def open_player(reduced_motion="reduce"):
        contexts.append(browser.new_context(viewport={"width": 1200, "height": 900}, reduced_motion=reduced_motion))
        contexts[-1].set_default_timeout(1000 * PATIENCE)
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
    deadline = time.monotonic() + PATIENCE
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
        shows(page, 0.25, LEVEL_A[number - 1])
        shows(page, 0.75, LEVEL_B[number - 1])


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
        shows(page, 0.25, LEVEL_A[number - 1])


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
    caption = page.locator("[data-show=caption]")
    expect(caption).to_contain_text(f"|A − B| × {AMPLIFICATION}; black: equal, from the frames before coding")
    shows(page, 0.2, AMPLIFICATION * (LEVEL_B[-1] - LEVEL_A[-1]))
    shows(page, 0.5, 0, y=0.5)  # the spot is the same in both
    press(page, "m")
    expect(caption).to_contain_text(f"(B − A) × {AMPLIFICATION}; grey: equal")
    shows(page, 0.2, 128 + AMPLIFICATION * (LEVEL_B[-1] - LEVEL_A[-1]) / 2)
    press(page, "s")  # swapped, the difference has the other sign
    shows(page, 0.2, 128 - AMPLIFICATION * (LEVEL_B[-1] - LEVEL_A[-1]) / 2)
    press(page, "s")
    press(page, "m")
    expect(caption).to_contain_text("brightness")
    page.get_by_label("Gain").select_option("2")
    shows(page, 0.2, 2 * (LEVEL_B[-1] - LEVEL_A[-1]))
    page.get_by_label("Clip on side A").select_option("third")  # two renditions against each other
    shows(page, 0.2, 2 * (LEVEL_B[-1] - LEVEL_C[-1]))
    page.get_by_label("Clip on side A").select_option("dense")
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


def test_renditions_change_in_place_and_sides_are_hidden(open_player):
    page = open_player()
    canvas = page.locator(".tr-player canvas")
    both = canvas.evaluate("canvas => canvas.width")
    page.keyboard.press("3")  # without a click first
    expect(page.get_by_label("Clip on side B")).to_have_value("2")
    shows(page, 0.75, LEVEL_C[0])
    page.keyboard.press("2")
    shows(page, 0.75, LEVEL_B[0])
    page.keyboard.press("s")
    shows(page, 0.25, LEVEL_B[0])
    shows(page, 0.75, LEVEL_A[0])
    for alone, level in (("A alone", LEVEL_B[0]), ("B alone", LEVEL_A[0])):
        page.get_by_role("button", name="Show one side alone").click()
        shows(page, 0.25, level)
        assert canvas.evaluate("canvas => canvas.width") < both / 2, alone
    page.get_by_role("button", name="Show one side alone").click()
    assert canvas.evaluate("canvas => canvas.width") == both


def test_zoom_pan_values_and_saving(open_player):
    page = open_player()
    width = page.locator(".tr-player canvas").evaluate("canvas => canvas.width")
    box = page.locator(".tr-player canvas").bounding_box()
    middle = box["x"] + 128 / width * box["width"], box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    expect(page.locator("[data-show=value]")).to_contain_text(
        re.compile(r"x 3[12], y 3[12] · A 23\d 23\d 23\d · B 23\d")
    )
    for _ in range(2):
        page.get_by_role("button", name="Zoom in").click()
    expect(page.locator("[data-show=zoom]")).to_have_text("4×")
    page.mouse.move(*middle)
    beside = (128 + 40) / width, (width - 128 + 40) / width  # at 1× outside the spot
    for x in beside:
        shows(page, x, SPOT, y=0.5, tolerance=10)
    page.mouse.down()
    page.mouse.move(middle[0] - 100, middle[1], steps=4)
    page.mouse.up()
    shows(page, beside[0], LEVEL_A[0], y=0.5)
    shows(page, beside[1], LEVEL_B[0], y=0.5)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save what is shown").click()
    saved = np.array(Image.open(download.value.path()).convert("RGB"))
    assert saved.shape[1] == width and saved[saved.shape[0] // 2, int(beside[0] * width)].tolist() == near(LEVEL_A[0])
    page.keyboard.press("0")
    shows(page, beside[0], LEVEL_A[0], y=0.5)
    expect(page.locator("[data-show=zoom]")).to_have_text("1×")


def test_ping_pong_goes_backward_from_the_end(open_player):
    page = open_player(reduced_motion="no-preference")
    player = player_of(page)
    player.evaluate(FRAMES_SEEN)
    page.get_by_label("At the end").select_option("Ping-pong")
    after_the_end = f"window.seen.slice(window.seen.findLastIndex(([frame]) => frame === {FRAMES}) >>> 0)"
    page.wait_for_function(f"{after_the_end}.some(([frame]) => frame < 7)")
    seen = page.evaluate(after_the_end)
    seen = seen[: 1 + next(at for at, (frame, _) in enumerate(seen) if frame < 7)]
    assert all(one > next_ for (one, _), (next_, _) in pairwise(seen))  # a busy machine leaves some out
    assert all(paused for _, paused in seen[1:])  # backward, frame by frame
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    at = player.get_attribute("data-frame")
    page.wait_for_timeout(500)
    assert abs(int(player.get_attribute("data-frame")) - int(at)) <= 1


def test_a_click_on_a_chart_seeks(open_player):
    page = open_player()
    page.get_by_text("Quality of every frame").click()
    charts = page.locator(".tr-player-charts figure")
    expect(charts).to_have_count(3)
    for chart, number in zip(charts.all(), (8, 3, 12), strict=True):
        box = chart.locator("svg").bounding_box()
        chart.locator("svg").click(position={"x": (number - 1) / (FRAMES - 1) * (box["width"] - 1), "y": 20})
        shows_frame(page, number)
        shows(page, 0.25, LEVEL_A[number - 1])
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
    page.get_by_label("At the end").select_option("Stop")
    page.get_by_label("Frame", exact=True).fill("2")
    shows_frame(page, 2)
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    expect(page.get_by_role("button", name="Play")).to_be_visible()  # at the end
    shows_frame(page, FRAMES)
    shows(page, 0.25, LEVEL_A[-1])


def test_help_lists_the_keys_and_names_are_escaped(open_player):
    page = open_player()
    assert page.get_by_label("Clip on side B").locator("option").all_inner_texts() == ["dense", "<b>reuse</b>", "third"]
    press(page, "?")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    for key in ["space", "←", "→", "p", "w", "d", "m", "g", "s", "h", "1", "4", "+", "−", "0", "l", "x", "f", "?"]:
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


def test_where_there_is_no_fullscreen_the_player_fills_the_page(open_player):
    page = open_player()
    player_of(page).evaluate("player => { player.requestFullscreen = undefined; }")
    page.get_by_role("button", name="Fullscreen").click()
    box = player_of(page).bounding_box()
    assert (box["x"], box["y"], box["width"], box["height"]) == (0, 0, 1200, 900)
    page.get_by_role("button", name="Fullscreen").click()
    assert player_of(page).bounding_box()["height"] != 900


def test_a_video_that_cannot_be_played_is_one_sentence(open_player):
    page = open_player()
    page.get_by_role("button", name="Break").click()
    expect(page.get_by_text("This browser cannot play the video; the files can still be downloaded")).to_be_visible()
    expect(page.locator(".tr-player canvas")).to_be_hidden()


@pytest.mark.parametrize(("width", "theme"), [(1440, "dark"), (390, "light")])
def test_the_player_of_the_first_screen(open_page, look, width, theme):
    page = open_page(width, theme, moving=True)
    press(page, " ")
    expect(page.locator(".tr-player video")).to_have_js_property("paused", True)
    canvas, drawn = page.locator(".tr-player canvas"), {}
    for frame in ("1", "5"):
        page.get_by_label("Frame", exact=True).filter(visible=True).fill(frame)
        expect(player_of(page)).to_have_attribute("data-frame", frame)
        drawn[frame] = canvas.evaluate("canvas => canvas.toDataURL()")
    for key, mode in (("w", "wipe"), ("d", "difference")):
        press(page, key)
        expect(player_of(page)).to_have_attribute("data-mode", mode)
        look(page, f"player-{key}")
        drawn[key] = canvas.evaluate("canvas => canvas.toDataURL()")
    assert len(set(drawn.values())) == 4
