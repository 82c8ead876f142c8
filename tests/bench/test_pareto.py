import json

import pytest

from timeripple.bench import figures
from timeripple.bench import pareto as bench
from timeripple.bench.pareto import pareto
from timeripple.cli import main
from timeripple.clips.methods import parse_method

SMALL = {"steps": 5, "num_frames": 2, "height": 32, "width": 32}
TEXTS = ["token:0.5", "first-block-cache:0.5", "token:0.5+taylorseer:2", "svg"]


def test_rows(tiny_pipeline):
    result = pareto(tiny_pipeline, 2, TEXTS, **SMALL)
    json.dumps(result, allow_nan=False)
    dense, *rows = result["rows"]
    assert dense["method"] == "dense" and dense["speedup"] == 1 and dense["psnr"] is None
    assert sorted(row["method"] for row in rows) == sorted(TEXTS)
    assert [row["speedup"] for row in rows] == sorted(row["speedup"] for row in rows)
    assert {row["method"] for row in rows if row["ours"]} == {"token:0.5", "token:0.5+taylorseer:2"}
    for row in rows:
        beaten = [r for r in rows if r["speedup"] > row["speedup"] and r["psnr"] > row["psnr"]]
        assert row["front"] == (not beaten) and 0 < row["ssim"] <= 1 and row["saving_all_steps"] > 0
    assert any(row["front"] for row in rows) and result["kind"] == "measured here" and result["prompts"] == 2


def test_what_cannot_run_is_said_before_anything_runs(tiny_pipeline):
    with pytest.raises(ValueError, match="'magic' is unknown"):
        pareto(tiny_pipeline, 1, ["magic"], **SMALL)
    with pytest.raises(ValueError, match="multiple of 8"):
        pareto(tiny_pipeline, 1, TEXTS, **SMALL | {"height": 50})


def test_there_are_at_most_twenty_points_and_every_baseline_is_one():
    from timeripple.baselines import ATTENTION, STEP_CACHES

    names = {part.split(":")[0] for text in bench.METHODS for part in text.split("+")}
    assert len(bench.METHODS) + 1 <= 20 and names >= {*ATTENTION, *STEP_CACHES} - {"output-cache"}
    for text in bench.METHODS:
        parse_method(text).check(20)


def test_figure_shows_every_point_once_and_the_front_as_a_staircase():
    rows = [
        {"method": "dense", "ours": False, "speedup": 1.0, "psnr": None, "front": False},
        {"method": "pab:2", "ours": False, "speedup": 1.2, "psnr": 30.0, "front": False},
        {"method": "token:0.7", "ours": True, "speedup": 2.0, "psnr": 40.0, "front": True},
        {"method": "token:0.5+taylorseer:3", "ours": True, "speedup": 3.0, "psnr": 35.0, "front": True},
    ]
    figure = figures.speed_and_quality(rows, "Speed and quality")
    front, *groups = figure.data
    assert list(front.x) == [2.0, 3.0] and list(front.y) == [40.0, 35.0]
    assert {group.name: list(group.text) for group in groups} == {
        "TimeRipple": ["token:0.7"],
        "TimeRipple and a step cache": ["token:0.5+taylorseer:3"],
        "peers": ["pab:2"],
    }


def test_command(tiny_pipeline, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("timeripple.clips.models.load_pipeline", lambda model, *how: tiny_pipeline)
    arguments = ["pareto", "--prompts", "1", "--methods", "token:0.5,pab:2", "--steps", "4", "--frames", "2"]
    with pytest.raises(SystemExit) as leaving:
        main([*arguments, "--size", "32", "--out", str(tmp_path / "new"), "--json"])
    assert leaving.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "new" / "pareto.json").read_text())
    assert len((tmp_path / "new" / "runs.jsonl").read_text().splitlines()) == 3
    assert "token:0.5" in (tmp_path / "new" / "pareto.html").read_text()
