import numpy as np
import pytest

from timeripple.pond.evaluate import held_out_clips, shares
from timeripple.pond.judge import judge, subject_mask
from timeripple.pond.prompts import SLOTS, Description
from timeripple.pond.scenes import MAX_BACKGROUND_SATURATION, render, render_background

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
    centres = [np.nonzero(subject_mask(frame))[1].mean() / 96 for frame in frames]
    np.testing.assert_allclose(centres, np.linspace(0.77, 0.23, 9), atol=0.02)


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
