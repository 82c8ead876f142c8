import json

import pytest

from timeripple.bench.attention import attention, request_for


def test_rows(tiny_pipeline):
    progress = []
    result = attention(
        tiny_pipeline, 256, repeats=2, steps=(2, 5), layers=("blocks.1.attn1",), on_run=lambda *n: progress.append(n)
    )
    json.dumps(result, allow_nan=False)
    assert progress == [(1, 2), (2, 2)]
    assert result["kind"] == "measured here" and "cpu" in result["environment"]
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows)[:2] == ["dense", "core-dense"] and len(rows) == 10
    for row in rows.values():
        assert (row["tokens"], row["heads"], row["head_dim"]) == (256, 2, 24)
        assert row["ms"] > 0 and row["speedup"] == pytest.approx(rows["dense"]["ms"] / row["ms"])
        assert row["ideal_speedup"] == pytest.approx(1 / (1 - row["saving"]))
    assert rows["dense"]["speedup"] == 1 and rows["dense"]["relative_error"] == 0
    assert rows["core-dense"]["relative_error"] < 1e-6 and rows["core-dense"]["planning_share"] == 0
    for name in ("token", "tile"):
        errors = [rows[f"{name}:{saving}"]["relative_error"] for saving in (0.5, 0.6, 0.7, 0.8)]
        assert 0 < errors[0] < errors[-1]
        assert rows[f"{name}:0.7"]["saving"] == pytest.approx(0.7, abs=0.02)
        assert 0 < rows[f"{name}:0.7"]["planning_share"] < 1


def test_requests_have_the_tokens_asked_for(tiny_pipeline):
    assert request_for(4096).height == 128 and request_for(9216).width == 192
    with pytest.raises(ValueError, match="tokens is 100; give at least 256"):
        request_for(100)
