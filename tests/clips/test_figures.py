import json

import numpy as np
import pytest

from timeripple.attention.config import ReuseConfig
from timeripple.clips import figures

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


def test_ticks_of_a_logarithmic_axis_are_round_and_few():
    assert figures.round_numbers(18, 41) == [20, 30, 40]
    assert figures.round_numbers(4, 150) == [5, 10, 20, 50, 100]
    assert figures.round_numbers(0.5, 2e5) == [1, 10, 100, 1000, 1e4, 1e5]


@pytest.mark.parametrize("low", [1e-9, 0.03, 1.2, 2.04, 7.5, 3000])
@pytest.mark.parametrize("times", [1.2, 1.4, 3, 50, 1e4, 1e12])
def test_an_axis_has_two_ticks_to_nine(low, times):
    ticks = figures.round_numbers(low, low * times)
    assert 2 <= len(ticks) <= 9 and ticks == sorted(set(ticks))
    assert low * (1 - 1e-9) <= ticks[0] and ticks[-1] <= low * times * (1 + 1e-9)
