import json

import pytest

from timeripple import figures

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
