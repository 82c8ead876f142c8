import numpy as np

from timeripple.inspection import figures


def test_colours_are_dark_to_light_or_two_sided():
    colours = figures.colours(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), 1.0, signed=True).astype(int)
    assert (colours[0] == colours[1]).all() and (colours[3] == colours[4]).all()
    assert colours[1][2] > colours[1][0] and colours[3][0] > colours[3][2]  # blue below, red above
    assert colours[2].min() > 200  # and white between
    rising = figures.colours(np.linspace(0, 5, 6), 5.0, signed=False).astype(int).sum(-1)
    assert (np.diff(rising) > 0).all()


def test_drift_curve_has_a_line_a_layer_and_one_at_1():
    figure = figures.drift_curve([5, 10], {"layer 0": [0.0, 0.4], "layer 1": [0.0, 1.2]}, "Since step 5")
    assert [(line.name, list(line.x), list(line.y)) for line in figure.data] == [
        ("layer 0", [5, 10], [0, 0.4]),
        ("layer 1", [5, 10], [0, 1.2]),
    ]
    assert [shape.y0 for shape in figure.layout.shapes] == [1]


def test_frames_under_colours_the_token_and_frames_the_picked_one():
    frames = np.full((4, 32, 48, 3), 100, np.uint8)
    values = np.zeros((2, 4, 6), np.float32)
    values[1, 2, 3] = 0.5
    first, second = figures.frames_under(frames, values, 0.5, False, (0, 0, 5))
    assert first.shape == second.shape == (32, 48, 3)
    bright = figures.colours(np.array([0.5]), 0.5, False)[0]
    assert (second[16:24, 24:32] == bright).all() and (second[:16] == second[0, 0]).all()
    assert (first[0, 40:48] == figures.PICKED).all() and (first[3, 43] == second[0, 0]).all()


def test_a_strip_has_every_frame_beside_the_other():
    values = np.arange(3 * 2 * 4, dtype=float).reshape(3, 2, 4)
    picture = figures.strip(np.zeros((3, 8, 16, 3), np.uint8), values, 23, False, over=False, side=2)
    assert picture.shape == (4, 3 * 8, 3)
    for t, y, x in np.ndindex(values.shape):
        block = picture[2 * y : 2 * y + 2, 2 * (4 * t + x) : 2 * (4 * t + x) + 2]
        assert (block == figures.colours(values[t, y, x], 23, False)).all()
    under = figures.strip(np.zeros((3, 8, 16, 3), np.uint8), values, 23, False, side=2)
    assert under.shape == picture.shape and (under[-1, -1] == picture[-1, -1]).all()
    clip = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(3, 2).repeat(3, 3)
    assert (figures.clip_strip(clip, 3)[0, ::3, 0] == [0, 2, 4]).all()


def test_a_map_is_the_brighter_the_more_attention():
    picture = figures.map_picture(np.array([[1e-6, 1e-4], [1e-3, 1e-1]])).astype(int).sum(-1)
    assert picture[0, 0] < picture[0, 1] < picture[1, 0] < picture[1, 1]
