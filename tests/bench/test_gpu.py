"""The rehearsal on the CPU, in Triton's interpreter: every part's process, its time limit, its failures, its JSON."""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from timeripple.bench.gpu import suite
from timeripple.bench.gpu.findings import Findings
from timeripple.bench.gpu.suite import PARTS, run_part, run_parts
from timeripple.cli import main


def stand_in(monkeypatch, code):
    """A child that runs `code` in place of a part; it knows `findings`."""
    begin = "import sys; from pathlib import Path; from timeripple.bench.gpu.findings import Findings\n"
    begin += "findings = Findings(Path(sys.argv[2]), sys.argv[1], {}, float(sys.argv[4]))\n"
    start = suite.subprocess.Popen
    monkeypatch.setattr(
        suite.subprocess,
        "Popen",
        lambda command, **how: start([sys.executable, "-c", begin + code, *command[3:]], **how),
    )


def test_kernels_and_attention(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["gpu", "--parts", "kernels,attention", "--device", "cpu", "--small", "--out", str(tmp_path)])
    assert stopped.value.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attention.json", "kernels.json"]
    kernels, attention = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("kernels", "attention"))
    for document in (kernels, attention):
        assert document["outcome"] == "finished" and document["kind"] == "measured here"
        assert {"device", "torch", "triton", "date"} <= {*document["environment"]} and "notes" not in document
    rows = {row["kernel"]: row for row in kernels["rows"]}
    assert {*rows} == {"dense", "token", "tile", "channel", "window_deviations"}
    assert all(row["failed"] == 0 and 0 < row["worst_error"] < 1e-5 for row in rows.values())
    assert sum(row["cases"] for row in rows.values()) == len(kernels["cases"])
    rows = {row["method"]: row for row in attention["rows"]}
    assert [row["failure"] for row in rows.values() if row["failure"]] == []
    assert rows["sdpa"]["speedup"] == 1 and rows["core-dense"]["relative_error"] < 1e-5
    for name in ("token:0.7", "tile:0.7"):
        assert 0.65 < rows[name]["saving"] < 0.85 and 0 < rows[name]["relative_error"] < 1  # there are few windows
        assert rows[name]["speedup_planned"] == pytest.approx(
            rows["sdpa"]["ms"] / (rows[name]["ms"] + rows[name]["plan_ms"])
        )
    assert rows["token, all merged"]["relative_error"] < 1e-5  # the residual makes up for what merging takes
    calls = {row["call"] for row in attention["profiles"]}
    assert len(calls) == 5
    for call in calls:
        rows = {row["name"]: row["ms"] for row in attention["profiles"] if row["call"] == call}
        span, busy, gaps = (rows[name] for name in ("span", "busy", "gaps"))
        assert span == pytest.approx(busy + gaps) and 0 < busy <= span
    assert "core-dense" in capsys.readouterr().out


@pytest.mark.parametrize(("part", "rows"), [("end-to-end", 3), ("denoising", 5), ("pipelines", 1)])
def test_whole_runs(part, rows, tmp_path, monkeypatch):
    monkeypatch.setitem(PARTS, part, replace(PARTS[part], seconds=None))  # a busy machine may take its time
    (document,) = run_parts(tmp_path, 60, [part], "cpu", small=True)
    assert document["outcome"] == "finished" and len(document["rows"]) == rows, document
    assert "notes" not in document and not any(row.get("failure") for row in document["rows"])
    if part == "denoising":
        differs = [row["relative_difference"] > 0 for row in document["rows"]]
        assert differs == [False, True, True, True, False]  # dense first and last


def test_training_is_called_with_the_time_that_is_left(tmp_path, monkeypatch):
    from timeripple.bench.gpu import training

    called = []
    monkeypatch.setattr(training.subprocess, "run", lambda command: called.append(command) or FAILED)
    with pytest.raises(RuntimeError, match="exit code 3"):
        training.run(Findings(tmp_path / "training.json", "training", {}, 120 + training.AFTER), "cuda:0", False)
    (command,) = called
    options = dict(zip(command[3::2], command[4::2], strict=True))
    autoencoder = options.pop("--autoencoder")
    assert (Path(autoencoder) / "config.json").exists()
    assert options == {"--device": "cuda:0", "--minutes": "2.00", "--out": str(tmp_path / "pond")}


class FAILED:
    returncode = 3


def test_a_part_that_hangs_keeps_what_it_found(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "MARGIN", 0)
    stand_in(monkeypatch, "import time; findings.add({'ms': 1.5, 'error': float('nan')}); time.sleep(600)")
    document = run_part("attention", tmp_path / "attention.json", 2, "cpu", True)
    assert document["outcome"] == "killed after 2 s"
    assert document["rows"] == [{"ms": 1.5, "error": None}]
    assert json.loads((tmp_path / "attention.json").read_text()) == document


def test_a_part_that_crashes_is_not_the_end(tmp_path, monkeypatch):
    code = "import os; findings.add({'part': sys.argv[1]}); print('the last words'); sys.stdout.flush(); os.abort()"
    stand_in(monkeypatch, code)
    seen = []
    documents = run_parts(tmp_path, 1, ["kernels", "attention"], "cpu", True, seen.append)
    assert [document["rows"] for document in documents] == [[{"part": "kernels"}], [{"part": "attention"}]]
    for document in documents:
        assert document["outcome"].startswith(f"died of signal {signal.Signals.SIGABRT.name}")
        assert document["last_words"] == "the last words"
    assert seen == documents


def test_a_part_that_fails_says_why(tmp_path):
    (document,) = run_parts(tmp_path, 1, ["attention"], "no-such-device")
    assert "no-such-device" in document["last_words"] and document["outcome"].startswith("died of exit code 1")


def test_parts_without_time_are_left_out(tmp_path):
    (document,) = run_parts(tmp_path, 0.01, ["kernels"], "cpu")
    assert document["outcome"] == "left out: no time was left"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--parts", "kernel"], f"choose from {', '.join(PARTS)}"), (["--minutes", "0"], "give more than 0")],
)
def test_wrong_options_are_one_sentence(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["gpu", *arguments, "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
