import numpy as np

from timeripple.inspection import figures


def test_colours_are_dark_to_light_or_two_sided():
    colours = figures.colours(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), 1.0, signed=True).astype(int)
    assert (colours[0] == colours[1]).all() and (colours[3] == colours[4]).all()
    assert colours[1][2] > colours[1][0] and colours[3][0] > colours[3][2]  # blue below, red above
    assert colours[2].min() > 200  # and white between
    rising = figures.colours(np.linspace(0, 5, 6), 5.0, signed=False).astype(int).sum(-1)
    assert (np.diff(rising) > 0).all()


def test_a_token_strip_shows_every_value_once():
    values = np.arange(10 * 2 * 3, dtype=float).reshape(10, 2, 3)
    figure = figures.token_strip(values, "Channel 3")
    cells = np.array(figure.data[0].z, dtype=float)
    assert cells.shape == (3 * 4 - 2, 4 * 4 - 1)  # four frames, four and two, apart by gaps
    assert (cells[8:10, 4:7] == values[9]).all()
    assert sorted(cells[~np.isnan(cells)]) == sorted(values.flatten())
    assert [note.text for note in figure.layout.annotations] == [str(n) for n in range(1, 11)]


def test_drift_curve_has_a_line_a_layer_and_one_at_1():
    figure = figures.drift_curve([5, 10], {"layer 0": [0.0, 0.4], "layer 1": [0.0, 1.2]}, "Since step 5")
    assert [(line.name, list(line.x), list(line.y)) for line in figure.data] == [
        ("layer 0", [5, 10], [0, 0.4]),
        ("layer 1", [5, 10], [0, 1.2]),
    ]
    assert [shape.y0 for shape in figure.layout.shapes] == [1]


def test_error_bars_name_their_values():
    figure = figures.error_bars([("reuse (realised)", 0.05), ("zero (theoretical)", 0.5)], "Errors")
    assert list(figure.data[0].x) == [0.05, 0.5] and list(figure.data[0].y) == [
        "reuse (realised)",
        "zero (theoretical)",
    ]
    assert list(figure.layout.yaxis.ticktext) == ["reuse (realised)<br>0.050", "zero (theoretical)<br>0.500"]


def test_frames_under_colours_the_token_and_frames_the_picked_one():
    frames = np.full((4, 32, 48, 3), 100, np.uint8)
    values = np.zeros((2, 4, 6), np.float32)
    values[1, 2, 3] = 0.5
    first, second = figures.frames_under(frames, values, 0.5, False, (0, 0, 5))
    assert first.shape == second.shape == (32, 48, 3)
    bright = figures.colours(np.array([0.5]), 0.5, False)[0]
    assert (second[16:24, 24:32] == bright).all() and (second[:16] == second[0, 0]).all()
    assert (first[0, 40:48] == figures.PICKED).all() and (first[3, 43] == second[0, 0]).all()


def test_attention_map_has_its_values_and_lines_between_frames():
    values = np.arange(1, 25).reshape(4, 6) / 100
    figure = figures.attention_map(values, 2, 3, "planted")
    assert np.allclose(figure.data[0].z, np.log10(values), atol=1e-3)
    assert sorted((shape.x0, shape.y0) for shape in figure.layout.shapes) == [(0, 1.5), (2.5, 0)]
    assert not figures.attention_map(values, None, None, "one frame").layout.shapes
