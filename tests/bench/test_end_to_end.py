import json

import pytest

from timeripple.attention.method import ConfigError
from timeripple.bench import end_to_end as module
from timeripple.bench.end_to_end import end_to_end


def test_rows(tiny_pipeline, monkeypatch):
    order = []
    generate = module.generate

    def noted(pipeline, request, method):
        order.append(method.text)
        return generate(pipeline, request, method)

    monkeypatch.setattr(module, "generate", noted)
    monkeypatch.setattr(module, "request_for", lambda tokens: module_request(tokens))
    progress = []
    methods = ("dense", "token:0.5", "channel:0.5")
    result = end_to_end(tiny_pipeline, (64, 128), methods, 2, lambda *counts: progress.append(counts))
    json.dumps(result, allow_nan=False)
    assert order == 2 * [*methods, *reversed(methods)]
    assert progress[-1] == (12, 12)
    assert [(row["tokens"], row["method"]) for row in result["rows"]] == [(n, m) for n in (64, 128) for m in methods]
    dense, token, channel = result["rows"][:3]
    assert dense["speedup"] == dense["amdahl_speedup"] == 1 and dense["psnr"] is dense["saving"] is None
    assert token["speedup"] == pytest.approx(dense["seconds"] / token["seconds"])
    assert token["amdahl_speedup"] > 1 and 10 < token["psnr"] <= 100
    assert token["saving_kind"] == "realised" and channel["saving_kind"] == "theoretical"
    assert 0 < token["planning_share"] < 1 and 0 < token["attention_share"] < 1
    assert token["peak_mb"] is None or token["peak_mb"] > 50


def module_request(tokens):
    from timeripple.clips.generate import Request

    return Request("a red ball", steps=6, num_frames=13, height=32, width=tokens // 16 * 8)


def test_what_cannot_run_is_refused_before_anything_runs(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(module, "generate", lambda *_: pytest.fail("something ran"))
    with pytest.raises(ConfigError, match="'teleport' is unknown"):
        end_to_end(tiny_pipeline, (256,), ("dense", "teleport"))
    with pytest.raises(ConfigError, match="out of reach"):
        end_to_end(tiny_pipeline, (256,), ("dense", "token:0.95:refresh=2"))
