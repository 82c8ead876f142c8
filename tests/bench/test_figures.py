import pytest

from timeripple.bench import figures

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


def test_bars_reach_from_the_lower_to_the_upper_quartile():
    rows = [ROWS[0] | {"ms_spread": [0.75, 1.5]}, ROWS[2]]  # the second as older records are
    (line,) = figures.time_over_tokens(rows, "measured here").data
    assert list(line.error_y.array) == [0.5, 0] and list(line.error_y.arrayminus) == [0.25, 0]


def test_the_roof_rises_with_the_memory_and_ends_at_the_peak():
    figure = figures.roofline(ROWS, {"gflops": 800.0, "gbytes": 20.0}, "measured here")
    roof = figure.data[0]
    assert all(y == pytest.approx(min(800, 20 * x)) for x, y in zip(roof.x, roof.y, strict=True))
    assert max(roof.x) >= 1024 * 100 and [list(line.customdata) for line in figure.data[1:]] == [[256, 1024], [256]]
