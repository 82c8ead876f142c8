import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from timeripple import cli
from timeripple.attention.config import ReuseConfig
from timeripple.bench import quality as bench
from timeripple.bench import tune as tuning
from timeripple.clips import compare

SMALL = ["--steps", "5", "--frames", "5", "--size", "40x32"]


@pytest.fixture
def run(tiny_pipeline, monkeypatch, tmp_path, capsys):
    """Runs the command line in an empty folder, the tiny model in place of any other: (exit code, stdout, stderr)."""
    monkeypatch.setattr("timeripple.clips.models.load_pipeline", lambda model, *how, **also: tiny_pipeline)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main(list(arguments))
        return exit_.value.code, *capsys.readouterr()

    return call


def compare_with(run, **options):
    options = {"prompt": "a red ball", "steps": "5", "frames": "5", "size": "40x32", "out": "run"} | options
    return run("compare", *(word for name, value in options.items() for word in (f"--{name}", value)))


def test_compare_writes_files_and_a_table(run, tmp_path):
    code, out, _ = compare_with(run, methods="dense, channel:0.6,token:0.6")
    assert code == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [method["label"] for method in report["methods"]] == ["dense", "channel-0.6", "token-0.6"]
    assert report["grid"] == [2, 4, 5]
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"dense.mp4", "token-0.6.mp4", "side_by_side.mp4"}
    assert "VMAF" in out and "theoretical" in out and "realised" in out and "measured" in out and "token-0.6.mp4" in out


def test_defaults_and_theta(run, tmp_path):
    assert compare_with(run)[0] == 0
    assert (tmp_path / "run" / "token-0.75.mp4").exists()
    assert compare_with(run, theta="0.5", out="other")[0] == 0
    report = json.loads((tmp_path / "other" / "report.json").read_text())
    assert [(method["budget"], method["theta"]) for method in report["methods"]] == [(None, None), (None, 0.5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "ball " * 1000}, "5000 characters"),
        ({"prompt": "a red elephant"}, 'the word "elephant"'),
        ({"seed": "-1"}, "seed is -1"),
        ({"seed": "one"}, "--seed"),
        ({"steps": "0"}, "steps is 0"),
        ({"size": "100"}, "multiple of 8"),
        ({"size": "100x100x3"}, "N or WxH"),
        ({"size": ""}, "N or WxH"),
        ({"frames": "0"}, "num_frames is 0"),
        ({"guidance": "inf"}, "guidance scale is inf"),
        ({"methods": "dense,token:1"}, "budget 1"),
        ({"methods": "dense,token:-0.1"}, "budget -0.1"),
        ({"methods": "dense,tile:0.9"}, "above the ceiling 0.8750"),
        ({"methods": "dense,token:0.97:refresh=1"}, "out of reach"),
        ({"methods": "dense,magic:0.5"}, "'magic' is unknown"),
        ({"methods": "dense,token:colour=red"}, "'colour'"),
        ({"methods": "dense,dense"}, "given twice"),
        ({"methods": ""}, "method '' is unknown"),
        ({"methods": "dense,token:0.5", "theta": "0.3"}, "exclude each other"),
        ({"theta": "-1"}, "theta -1.0 is negative"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(run, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(compare, "compare", lambda *args, **kwargs: pytest.fail("computed"))
    code, out, err = compare_with(run, **options)
    assert code == 2 and out == ""
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [("comprae",), ("compare",), ("compare", "--bogus", "1"), ("bench", "speed")])
def test_wrong_usage(run, arguments):
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and err.count("\n") == 1


def test_unwritable_folder_is_told_before_computing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "compare", lambda *args, **kwargs: pytest.fail("computed"))
    (tmp_path / "file").write_text("")
    code, _, err = compare_with(run, out="file/run")
    assert code == 2 and err == "Cannot write to file/run: not a directory.\n"
    assert os.listdir(tmp_path) == ["file"]


def test_full_disk_is_told_before_computing(run, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(compare, "compare", lambda *args, **kwargs: pytest.fail("computed"))
    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = compare_with(run)
    assert code == 2 and err == "Cannot write to run: no space left on device.\n"
    assert not list(tmp_path.iterdir())


def test_disk_that_fills_up_while_saving(run, tmp_path, monkeypatch):
    write = compare.write_mp4

    def fills_up(path, *args, **kwargs):
        write(path if path.name == "probe.mp4" else "/dev/full", *args, **kwargs)

    monkeypatch.setattr(compare, "write_mp4", fills_up)
    code, out, err = compare_with(run)
    assert code == 2 and "PSNR" in out and "speed-up" in out and "Wrote" not in out  # the figures are not lost
    assert err.splitlines()[-1] == "Cannot write to run: no space left on device."
    assert not list(tmp_path.iterdir())


def test_missing_model(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["compare", "--prompt", "a red ball", "--model", "nowhere"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("There is no model at nowhere")
    assert not list(tmp_path.iterdir())


def test_bench_quality(run, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "METHODS", ("token:{}", "tile:{}"))
    monkeypatch.setattr(bench, "SAVINGS", (0.5, 0.9))
    code, out, _ = run("bench", "quality", "--prompts", "1", *SMALL, "--json", "--out", "runs.jsonl")
    result = json.loads(out)
    assert code == 0 and len(result["rows"]) == 4 and (result["width"], result["height"]) == (40, 32)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 3
    code, out, _ = run("bench", "quality", "--prompts", "1", *SMALL, "--out", "runs.jsonl")
    assert code == 0 and "out of reach" in out and "realised" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompts", "0"), "prompts is 0"),
        (("--size", "50"), "multiple of 8"),
        (("--out", "/dev/null/x"), "/dev/null/x"),
    ],
)
def test_bad_input_of_bench(run, tmp_path, arguments, message):
    code, out, err = run("bench", "quality", *arguments)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_needs_no_torch():
    code = "import sys, timeripple.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(cli.__file__).parents[2]).returncode == 0
    command = [sys.executable, "-m", "timeripple", "compare", "--help"]
    result = subprocess.run(command, cwd=Path(cli.__file__).parents[2], capture_output=True, text=True)
    assert result.returncode == 0 and "--methods" in result.stdout


def test_tuned_settings_are_compared(run, tmp_path, monkeypatch):
    monkeypatch.setattr("timeripple.bench.tune.CONVERGED_STEPS", 12)
    monkeypatch.setattr("timeripple.bench.tune.MOST_STEPS", 5)
    monkeypatch.setattr("timeripple.bench.tune.tune.__defaults__", (("token:0.5",), *tuning.tune.__defaults__[1:]))
    (tmp_path / "prompts.txt").write_text("a red ball\n\na blue cube\n")
    arguments = ("--prompts", "prompts.txt", "--steps", "5", "--frames", "5", "--size", "40x32")
    code, out, err = run("tune", "--seconds", "60", *arguments, "--out", "found.json")
    assert code == 0, err
    found = json.loads((tmp_path / "found.json").read_text())
    assert "Best: " in out and found["method"] in out and found["prompts"] == ["a red ball", "a blue cube"]
    assert "to expect of other prompts" in out and found["psnr_interval"][0] < found["psnr"] < found["psnr_interval"][1]
    assert "token:0.5" in (tmp_path / "found.html").read_text() and found["size"] == [5, 32, 40]
    assert compare_with(run, settings="found.json")[0] == 0
    methods = json.loads((tmp_path / "run" / "report.json").read_text())["methods"]
    assert [method["method"] for method in methods] == ["dense", found["method"]]
    assert methods[1]["steps"] == found["steps"]


def test_settings_of_a_config_are_compared_too(run, tmp_path):
    ReuseConfig(budget=0.6).save(tmp_path / "saved.json")
    assert compare_with(run, settings="saved.json")[0] == 0
    methods = json.loads((tmp_path / "run" / "report.json").read_text())["methods"]
    assert [method["label"] for method in methods] == ["dense", "token-0.6"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give one target"),
        (["--psnr", "33", "--speedup", "2"], "Give one target"),
        (["--psnr", "-3"], "The target is -3"),
        (["--psnr", "33", "--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--psnr", "33", "--size", "50"], "multiple of 8"),
        (["--psnr", "33", "--out", "missing/tuned.json"], "missing/tuned.json"),
        (["--psnr", "33", "--out", "tuned.html"], "tuned.html is where the picture would lie"),
    ],
)
def test_bad_input_of_tune(run, tmp_path, arguments, message):
    code, out, err = run("tune", *arguments)
    assert code == 2 and out == "" and message in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"granularity": "token", "taste": 1}', "\udcff"])
def test_settings_that_are_none_are_refused(run, tmp_path, text):
    (tmp_path / "bad.json").write_bytes(text.encode(errors="surrogateescape"))
    code, _, err = compare_with(run, settings="bad.json")
    assert code == 2 and ("holds no settings" in err or "'taste' is unknown" in err) and len(err.splitlines()) == 1
    code, _, err = compare_with(run, settings="nowhere.json")
    assert code == 2 and "nowhere.json" in err


def test_probe_writes_the_correlations_of_every_channel(run, tmp_path):
    code, out, _ = run("probe", "--prompt", "a red ball", "--at", "2,4", *SMALL, "--out", "seen.json")
    assert code == 0 and "measured here" in out
    result = json.loads((tmp_path / "seen.json").read_text())
    assert len(result["channels"]) == 24 and result["kind"] == "measured here"
    assert [(row["step"], row["layer"], row["side"], row["head"]) for row in result["rows"][:3]] == [
        (1, "blocks.0.attn1", "query", 0),
        (1, "blocks.0.attn1", "query", 1),
        (1, "blocks.0.attn1", "key", 0),
    ]
    for row in result["rows"]:
        assert row["columns"][0] == ["t", 1] and len(row["values"]) == 24
        assert all(-1 <= value <= 1 for values in row["values"] for value in values)
    heads = [(row["step"], row["layer"], row["head"]) for row in result["heads"]]
    assert heads == [(step, f"blocks.{layer}.attn1", head) for step in (1, 3) for layer in (0, 1) for head in (0, 1)]
    assert "own place" in out and f"{result['heads'][0]['spatial']:.1f}×" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--at", "9"], "are '9'; give numbers from 1 to 5"),
        (["--at", "x"], "are 'x'; give numbers"),
        (["--prompt", "a dog", "--at", "2"], '"dog"'),
    ],
)
def test_probe_refuses_in_one_sentence(run, options, message):
    code, _, error = run("probe", "--prompt", "a red ball", *SMALL, *options)
    assert code == cli.USER_ERROR and message in error and error.count("\n") == 1


def test_lab_tells_what_every_head_saves_and_loses(run):
    options = ("--prompt", "a red ball", "--at", "2,4", *SMALL)
    code, out, _ = run("lab", *options, "--method", "channel:0.5", "--json")
    result = json.loads(out)
    assert code == 0 and result["method"] == "channel:0.5" and result["kind"] == "measured here"
    places = [(row["step"], row["layer"], row["head"]) for row in result["rows"]]
    assert places == [(s, f"blocks.{layer}.attn1", h) for s in (1, 3) for layer in (0, 1) for h in (0, 1)]
    assert {row["kind"] for row in result["rows"]} == {"theoretical"}
    assert all(row["drift"] == 0 for row in result["rows"][:4]) and all(row["error"] > 0 for row in result["rows"])
    code, out, _ = run("lab", *options)
    assert code == 0 and "realised" in out and "theoretical" in out and out.count("blocks.1.attn1") == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--at", "9"], "are '9'; give numbers from 1 to 5"),
        (["--method", "dense"], "'dense' reuses nothing; choose from channel, token, tile"),
        (["--method", "skip:0.5"], "'skip:0.5' reuses nothing"),
        (["--method", "token:0.99"], "above the ceiling"),
    ],
)
def test_lab_refuses_in_one_sentence(run, options, message):
    code, out, error = run("lab", "--prompt", "a red ball", *SMALL, *options)
    assert code == cli.USER_ERROR and out == "" and message in error and error.count("\n") == 1


def test_magnitudes_are_written(run, tmp_path):
    path = tmp_path / "ratios.json"
    code, *_ = run("magnitudes", "--prompts", "1", "--steps", "4", "--frames", "5", "--size", "32", "--out", str(path))
    ratios = json.loads(path.read_text())["ratios"]
    assert code == 0 and len(ratios) == 4 and ratios[0] == 1 and all(0.2 < ratio < 5 for ratio in ratios)
