import json

import pytest

from timeripple.bench.scaling import scaling


def test_rows(tiny_pipeline, monkeypatch):
    monkeypatch.setattr("timeripple.bench.scaling.LAYER", "blocks.1.attn1")
    progress = []
    result = scaling(tiny_pipeline, (324, 576), on_run=lambda *counts: progress.append(counts))
    json.dumps(result, allow_nan=False)
    assert progress == [(1, 2), (2, 2)]
    places = [(row["tokens"], row["method"]) for row in result["rows"]]
    assert places == [(tokens, method) for tokens in (324, 576) for method in ("dense", "token:0.75")]
    for dense, token in zip(result["rows"][::2], result["rows"][1::2], strict=True):
        assert dense["speedup"] == dense["attention_speedup"] == 1
        assert token["speedup"] == pytest.approx(dense["seconds"] / token["seconds"])
        assert token["attention_speedup"] == pytest.approx(dense["attention_ms"] / token["attention_ms"])
