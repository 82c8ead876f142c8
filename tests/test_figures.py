import json

import numpy as np
import pytest

from timeripple import figures
from timeripple.attention.config import ReuseConfig

SECONDS = {"total": 10.5, "text": 0.5, "denoise": 9.0, "attention": 6.0, "plan": 1.0, "decode": 1.0}


def test_saving_per_step():
    figure = figures.saving_per_step(
        [("token-0.75", [0.0, 0.5, -0.25]), ("channel-0.75 (theoretical)", [0.0, 1.0, 0.0])]
    )
    first, second = figure.data
    assert list(first.x) == [1, 2, 3] and list(first.y) == [0, 50, -25]
    assert second.name == "channel-0.75 (theoretical)" and list(second.y) == [0, 100, 0]
    assert first.line.color != second.line.color and first.line.dash != second.line.dash
    assert "%" in figure.layout.yaxis.title.text and "step" in figure.layout.xaxis.title.text


def test_seconds_by_stage_adds_up_to_the_total():
    figure = figures.seconds_by_stage([("dense", SECONDS), ("token-0.75", SECONDS | {"plan": 2.0})])
    bars = {bar.name: list(bar.x) for bar in figure.data}
    assert bars["attention"] == [5.0, 4.0] and bars["planning"] == [1.0, 2.0]
    assert bars["rest of denoising"] == [3.0, 3.0]
    assert [sum(parts) for parts in zip(*bars.values(), strict=True)] == [10.5, 10.5]
    assert all(list(bar.y) == ["dense", "token-0.75"] for bar in figure.data)
    assert figure.layout.barmode == "stack" and "measured" in figure.layout.title.text


@pytest.mark.parametrize("figure", [figures.saving_per_step([]), figures.seconds_by_stage([("dense", SECONDS)])])
def test_figures_serialise_and_are_transparent(figure):
    layout = json.loads(figure.to_json())["layout"]
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"


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


def test_saving_heatmap_puts_layers_and_heads_in_their_cells():
    by_head = {"blocks.0.attn1": [0.1, 0.2, -0.3], "blocks.1.attn1": [0.4, 0.5, 0.9]}
    figure = figures.saving_heatmap(by_head, "token", "realised")
    (heatmap,) = figure.data
    assert np.allclose(heatmap.z, [[10, 20, -30], [40, 50, 90]]) and (heatmap.zmin, heatmap.zmax) == (-30, 100)
    assert heatmap.y[1] == "layer 1" and heatmap.x[2] == "head 2" and "(realised)" in figure.layout.title.text


def test_schedule_curve_shows_budgets_and_thresholds_on_axes_of_their_own():
    budget, theta = ReuseConfig(budget=0.5, refresh=2), ReuseConfig("channel", theta=0.3, ramp=0)
    figure = figures.schedule_curve([("A", budget.schedule(6)), ("B", theta.schedule(6))])
    first, second = figure.data
    assert list(first.customdata) == ["refresh", "reuse", "refresh", "reuse", "refresh", "reuse"]
    assert np.mean(first.y[1:]) == pytest.approx(50) and first.y[2] == pytest.approx(first.y[1] - 100)
    assert list(second.y) == [0, 0.3, 0.3, 0.3, 0.3, 0] and (first.yaxis, second.yaxis) == ("y", "y2")


def test_fragments_bring_plotly_once():
    parts = figures.fragments([figures.saving_per_step([("token", [0.5])])] * 3)
    assert ["plotly.js v" in part for part in parts] == [True, False, False]


ROWS = [
    {"method": method, "tokens": tokens, "ms": ms, "intensity": 100.0 * tokens, "gflops": 50.0}
    for method, tokens, ms in [("dense", 256, 1.0), ("token:0.7", 256, 0.5), ("dense", 1024, 16.0)]
]


def test_time_over_tokens_has_a_line_a_method():
    figure = figures.time_over_tokens(ROWS, "measured here")
    assert [(line.name, list(line.x), list(line.y)) for line in figure.data] == [
        ("dense", [256, 1024], [1, 16]),
        ("token:0.7", [256], [0.5]),
    ]
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log" and "measured here" in figure.layout.title.text


def test_the_roof_rises_with_the_memory_and_ends_at_the_peak():
    figure = figures.roofline(ROWS, {"gflops": 800.0, "gbytes": 20.0}, "measured here")
    roof = figure.data[0]
    assert all(y == pytest.approx(min(800, 20 * x)) for x, y in zip(roof.x, roof.y, strict=True))
    assert max(roof.x) >= 1024 * 100 and [list(line.customdata) for line in figure.data[1:]] == [[256, 1024], [256]]


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
