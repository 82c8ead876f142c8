import random

import cv2
import numpy as np
import pytest
import torch

from timeripple.pond.backgrounds import MAX_BACKGROUND_SATURATION
from timeripple.pond.clips import held_out_clips
from timeripple.pond.drawing import Chance
from timeripple.pond.evaluate import shapes, shares
from timeripple.pond.judge import judge
from timeripple.pond.prompts import SLOTS, Description, random_description
from timeripple.pond.scenes import pose, progress, render, render_background, render_clips
from timeripple.pond.shape import largest_piece, measure_shape

SCENE = Description("red", "ball", "medium", "left", "ocean", "sunset", "static")


def test_a_clip_follows_from_its_description_and_seed():
    first = render(SCENE, 3, 4, 64, 48)
    assert first.shape == (4, 64, 48, 3) and first.dtype == np.uint8
    assert np.array_equal(first, render(SCENE, 3, 4, 64, 48))
    assert not np.array_equal(first, render(SCENE, 4, 4, 64, 48))


@pytest.mark.parametrize("background", SLOTS["background"])
@pytest.mark.parametrize("light", SLOTS["light"])
def test_backgrounds_move_and_stay_pale(background, light):
    scene = Description(background=background, light=light, camera="pan left")
    frames = render_background(scene, 1, 3, 64, 64).astype(float)
    high, low = frames.max(-1), frames.min(-1)
    assert ((high - low) <= MAX_BACKGROUND_SATURATION * high + 1.5).all()
    assert np.abs(np.diff(frames, axis=0)).mean() > 0.3


def test_the_ball_is_where_its_motion_says():
    frames = render(SCENE, 0, 9, 96, 96)
    centres = [np.nonzero(largest_piece(frame))[1].mean() / 96 for frame in frames]
    half = 0.26 * Chance.draw(0).speed
    np.testing.assert_allclose(centres, np.linspace(0.5 + half, 0.5 - half, 9), atol=0.02)


@pytest.mark.parametrize(("num_frames", "size"), [(16, 128), (8, 64)])
def test_the_judge_reads_rendered_clips(num_frames, size):
    clips = held_out_clips(100, num_frames, size)
    result = shares([(asked, judge(clip)) for asked, clip in clips])
    assert min(result.values()) >= 0.99, result


def test_the_judge_sees_nothing_where_there_is_nothing():
    scene = Description(background="city", light="night", camera="static")
    seen = judge(render_background(scene, 0, 4, 64, 64))
    assert (seen.colour, seen.subject, seen.motion) == (None, None, None)
    assert seen.background == "city"


def test_shapes_of_rendered_clips():
    """Rendered subjects are whole, steady, of their outline, and the renderer softens borders over 2.4 pixels."""
    clips = held_out_clips(40, 9, 128)
    found = shapes([(asked, measure_shape(clip, asked.subject)) for asked, clip in clips])
    assert found["outline"] > 0.93 and found["one_piece"] > 0.99 and found["steady"] < 0.015
    assert 1.2 < found["edge"] < 2.6


def test_faults_of_shape_are_measured():
    """A disc of radius 20, then one cut in two, one that changes its area by a tenth, one blurred, and a square."""
    y, x = np.mgrid[0:96, 0:96]

    def clip(*masks, blur=0):
        frames = np.stack([np.where(mask[..., None], (230, 30, 30), (120, 130, 140)) for mask in masks])
        frames = frames.astype(np.uint8)
        return np.stack([cv2.GaussianBlur(frame, (0, 0), blur) for frame in frames]) if blur else frames

    disc = np.hypot(x - 48, y - 48) < 20
    sound = measure_shape(clip(disc, disc), "ball")
    assert sound.outline > 0.95 and sound.one_piece == 1 and sound.steady == 0 and sound.edge < 1.3
    cut = measure_shape(clip(disc & (abs(x - 50) > 3), disc), "ball")
    assert cut.one_piece == 0.5 and cut.outline < 0.9
    areas = [np.hypot(x - 48, y - 48) < 20 * np.sqrt(scale) for scale in (0.9, 1.1)]
    assert measure_shape(clip(*areas), "ball").steady == pytest.approx(0.1, abs=0.01)
    soft = measure_shape(clip(disc, blur=2), "ball")
    assert soft.edge == pytest.approx(2 * 2 * 0.8416, abs=0.5)  # between the fifths of a Gaussian's integral
    square = measure_shape(clip((abs(x - 48) < 20) & (abs(y - 48) < 20)), "ball")
    assert square.outline < 0.93
    nothing = measure_shape(clip(disc & False), "ball")
    assert (nothing.outline, nothing.one_piece, nothing.steady, nothing.edge) == (None, 0, None, None)


def test_a_subject_turns_once_and_its_outline_with_it():
    """At a quarter of a turn the fish stands upright; light stays, so its colour is that of the fish at the start."""
    chance = Chance.draw(5)
    turn = pose("spinning", torch.tensor([0.0, 0.25]), chance).turn
    assert turn[1] == pytest.approx(chance.sense * 2 * np.pi * chance.speed / 4, rel=1e-5)
    description = Description("yellow", "fish", "large", "spinning", "sky", "day", "static")
    frames = render(description, 5, 5, 96, 96)
    wide = [
        np.ptp(np.nonzero(largest_piece(frame))[1]) > np.ptp(np.nonzero(largest_piece(frame))[0]) for frame in frames
    ]
    assert wide[0] and not wide[1]


def test_a_window_is_what_the_whole_clip_shows_there():
    description = random_description(random.Random(1))
    at = progress(9)[None]
    whole, covers = render_clips([description], [7], at, 64, 80)
    window, cover = render_clips([description], [7], at[:, 3:6], 64, 80, window=32, corners=torch.tensor([[20, 41]]))
    assert torch.equal(window, whole[:, :, 3:6, 20:52, 41:73]) and torch.equal(cover, covers[:, 3:6, 20:52, 41:73])


def test_clips_rendered_together_are_clips_rendered_alone():
    rng = random.Random(2)
    descriptions = [random_description(rng) for _ in range(5)]
    together, _ = render_clips(descriptions, range(5), progress(3).expand(5, -1), 48, 48)
    for index, description in enumerate(descriptions):
        np.testing.assert_array_equal(
            together[index].permute(1, 2, 3, 0).numpy(), render(description, index, 3, 48, 48)
        )
