import json

import pytest
import torch

from timeripple.attention.grid import TokenGrid
from timeripple.bench.attention import SHAPES, attention, pond_captures, request_for, synthetic_captures
from timeripple.inspection.correlations import axis_correlation
from timeripple.inspection.probe import Capture


def test_rows(tiny_pipeline):
    progress = []
    captures = pond_captures(tiny_pipeline, 324, steps=(2, 5), layers=("blocks.1.attn1",))
    result = attention(captures, repeats=2, on_run=lambda *n: progress.append(n))
    json.dumps(result, allow_nan=False)
    assert progress == [(1, 2), (2, 2)]
    rows = {row["method"]: row for row in result}
    assert list(rows)[:2] == ["dense", "core-dense"] and len(rows) == 11
    for row in rows.values():
        assert (row["tokens"], row["heads"], row["head_dim"]) == (324, 2, 24)
        low, high = row["ms_spread"]
        assert 0 < low <= row["ms"] <= high and row["speedup"] == pytest.approx(rows["dense"]["ms"] / row["ms"])
        without_planning = row["speedup"] / (1 - row["planning_share"])
        assert row["kept_plan_speedup"] == pytest.approx(without_planning)
        assert row["ideal_speedup"] == pytest.approx(1 / (1 - row["saving"]))
    assert rows["dense"]["speedup"] == 1 and rows["dense"]["relative_error"] == 0
    assert rows["core-dense"]["relative_error"] < 1e-6 and rows["core-dense"]["planning_share"] == 0
    merged = rows["token, all merged"]
    assert (
        merged["saving"] == 1 - (5 * 3 * 3 / 324) ** 2
        and merged["planning_share"] == 0
        and merged["relative_error"] < 1e-5
    )
    for name in ("token", "tile"):
        errors = [rows[f"{name}:{saving}"]["relative_error"] for saving in (0.5, 0.6, 0.7, 0.8)]
        assert 0 < errors[0] < errors[-1]
        assert rows[f"{name}:0.7"]["saving"] == pytest.approx(0.7, abs=0.02)
        assert 0 < rows[f"{name}:0.7"]["planning_share"] < 1


def test_requests_have_the_tokens_asked_for(tiny_pipeline):
    assert request_for(5184).height == 192 and request_for(9216).width == 256
    with pytest.raises(ValueError, match="tokens is 100; give at least 256"):
        request_for(100)


def test_synthetic_calls_have_the_correlations_of_the_captured_ones():
    def field(correlation, *shape):
        """Along t alone."""
        x = torch.randn(shape)
        for t in range(1, shape[2]):
            x[:, :, t] = correlation * x[:, :, t - 1] + (1 - correlation**2) ** 0.5 * x[:, :, t]
        return x.flatten(2, 4)

    known = TokenGrid(16, 8, 8)
    captured = Capture(0, "layer", *(scale * field(0.9, 1, 2, *known.shape, 8) for scale in (3, 2, 1)), known)
    grid = TokenGrid(12, 10, 6, text_before=5)
    (synthetic,) = synthetic_captures([captured], grid, heads=3, head_dim=64)
    assert synthetic.query.shape == (1, 3, grid.tokens, 64) and synthetic.grid == grid
    for x, std in ((synthetic.query, 3), (synthetic.key, 2), (synthetic.value, 1)):
        assert x.std().item() == pytest.approx(std, rel=0.1)
        for axis, expected in (("t", 0.9), ("y", 0.0), ("x", 0.0)):
            assert axis_correlation(x, grid, axis, 1).mean().item() == pytest.approx(expected, abs=0.05)


def test_shapes_are_those_of_the_models():
    assert {name: grid.tokens for name, (grid, _, _) in SHAPES.items()} == {
        "hunyuan-video": 118_800,
        "wan2.1": 32_760,
        "cogvideox": 17_776,
    }
