import json

import pytest

from timeripple.bench import quality as bench
from timeripple.bench import sweep as sweeping
from timeripple.bench.quality import QualityBench, quality
from timeripple.pond.prompts import is_held_out, parse_prompt

SETTINGS = QualityBench(prompts=2, steps=5, num_frames=5, height=32, width=32)


@pytest.fixture(autouse=True)
def few_methods(monkeypatch):
    monkeypatch.setattr(bench, "METHODS", ("channel:{}:refresh=none", "token:{}", "tile:{}:refresh=none"))
    monkeypatch.setattr(bench, "SAVINGS", (0.5, 0.9))


def test_rows(tiny_pipeline):
    progress = []
    result = quality(tiny_pipeline, SETTINGS, on_run=lambda *counts: progress.append(counts))
    json.dumps(result, allow_nan=False)
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == [m.format(s) for m in bench.METHODS for s in bench.SAVINGS]
    assert progress == [(i, 10) for i in range(1, 11)]
    channel, token, tile = (rows[name] for name in ("channel:0.5:refresh=none", "token:0.5", "tile:0.9:refresh=none"))
    assert channel["saving_kind"] == "theoretical" and token["saving_kind"] == "realised"
    assert channel["feedback"] is False and token["feedback"] is True
    assert channel["granularity"] == "channel" and channel["saving"] == pytest.approx(0.5, abs=0.1)
    assert 0 < token["saving_all_steps"] < token["saving"]  # the first step is dense
    assert 10 < token["psnr"] <= 100 and 0 < token["ssim"] <= 1
    assert tile["psnr"] is None and "above the ceiling" in tile["reason"]
    assert result["kind"] == "measured here" and result["steps"] == 5 and "cpu" in result["environment"]


def test_finished_runs_are_taken_up(tiny_pipeline, tmp_path, monkeypatch):
    log = tmp_path / "runs.jsonl"
    first = quality(tiny_pipeline, SETTINGS, log)
    lines = log.read_text().splitlines()
    assert len(lines) == 10
    log.write_text("\n".join(lines[:9]) + "\n" + lines[9][:20])
    generate, calls = sweeping.generate, []

    def counted(pipeline, request, method):
        calls.append(method.label)
        return generate(pipeline, request, method)

    monkeypatch.setattr(sweeping, "generate", counted)
    assert quality(tiny_pipeline, SETTINGS, log)["rows"] == first["rows"]
    assert calls == ["dense", "dense", "tile-0.5-refresh=none"]  # a step to warm up, the reference, what was missing
    calls.clear()
    assert quality(tiny_pipeline, SETTINGS, log)["rows"] == first["rows"] and not calls


def test_prompts_are_held_out_from_training():
    requests = QualityBench(prompts=4).requests()
    assert len({request.prompt for request in requests}) == 4
    assert all(is_held_out(parse_prompt(request.prompt)) for request in requests)


def test_bad_settings(tiny_pipeline):
    with pytest.raises(ValueError, match="number of prompts is 0"):
        QualityBench(prompts=0).check(tiny_pipeline)
    with pytest.raises(ValueError, match="multiple of 8"):
        QualityBench(height=50).check(tiny_pipeline)


def test_every_method_of_the_benchmark_parses():
    from timeripple.clips.methods import parse_method

    for text in ("channel:0.5:refresh=none", "skip:0.5:refresh=none", "skip:0.5:refresh=auto", "output-cache:0.5"):
        parse_method(text).config.schedule(20)
