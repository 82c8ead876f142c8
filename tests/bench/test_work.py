"""The benchmark of work on a tiny pipeline: what it counts, against what can be counted otherwise."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from timeripple.bench import figures
from timeripple.bench import work as bench
from timeripple.bench.contenders import METHODS
from timeripple.bench.front import ahead
from timeripple.bench.sweep import Job
from timeripple.bench.work import SHARES, Worker, counting_work, family, in_float32, is_ours, work
from timeripple.cli import main
from timeripple.clips.generate import Request, generate
from timeripple.clips.methods import parse_method
from timeripple.clips.quality import psnr

TEXTS = (
    "dense:steps=3",
    "dense:steps=5",
    "token:0.5:steps=4",
    "forecast:0.5:steps=6",
    "token:0.5:steps=6+forecast:0.5",
)
KEYS = {
    "tokens", "method", "solver", "steps", "seconds", "dense_steps", "attention_share", "psnr_converged",
    "psnr_converged_interval", "psnr_dense", "ssim_converged", "vmaf_converged", "held_bytes", "kind",
}  # fmt: skip


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(bench.converged, "__defaults__", (12,))


def requests(prompts=2):
    return [
        Request(text, seed=seed, num_frames=5, height=32, width=32)
        for seed, text in enumerate(["a red ball", "a blue cube", "a green star"][:prompts])
    ]


def test_rows(tiny_pipeline):
    result = work(tiny_pipeline, requests(), TEXTS)
    json.dumps(result, allow_nan=False)
    rows = {row["method"]: row for row in result["rows"]}
    assert set(rows) == set(TEXTS) and all(set(row) == KEYS for row in rows.values())
    assert [rows[text]["steps"] for text in TEXTS] == [3, 5, 4, 6, 6]
    for text, row in rows.items():
        low, high = row["psnr_converged_interval"]
        assert low <= row["psnr_converged"] <= high and 0 < row["ssim_converged"] <= 1
        assert 0 <= row["vmaf_converged"] <= 100 and 0 < row["attention_share"] < 1 and row["kind"] == "measured here"
        assert row["solver"] == "euler" and list(row["dense_steps"]) == [str(share) for share in SHARES]
        assert (row["psnr_dense"] is None) == text.startswith("dense") and (row["held_bytes"] > 0) != (
            row["psnr_dense"] is None
        )
    for text in ("dense:steps=3", "dense:steps=5"):
        assert all(cost == pytest.approx(rows[text]["steps"]) for cost in rows[text]["dense_steps"].values())
    # The stack is left out at half of the steps, attention and all else.
    assert all(cost == pytest.approx(3) for cost in rows["forecast:0.5:steps=6"]["dense_steps"].values())
    token = rows["token:0.5:steps=4"]["dense_steps"]
    with parse_method("token:0.5").applied(tiny_pipeline, 4) as summarise:
        tiny_pipeline(**replace(requests()[0], steps=4).arguments(tiny_pipeline))
        saving = summarise()["saving"]["all_steps"]
    assert token["0.8"] == pytest.approx(4 * (1 - 0.8 * saving), abs=0.1)
    assert (
        result["kind"] == "measured here" and len(result["runs"]) == 2 * len(TEXTS) and "amx" in result["environment"]
    )


def test_clips_are_compared_with_the_converged_one_and_with_dense_of_the_same_steps(tiny_pipeline):
    request = requests()[0]
    worker = Worker(lambda: tiny_pipeline)
    result = worker.run(Job(request, "token:0.5:steps=4:solver=unipc"))
    model = tiny_pipeline.transformer
    own = generate(tiny_pipeline, request, parse_method("token:0.5:steps=4:solver=unipc")).frames
    assert model.dtype == torch.float32  # as the tiny one is anyway
    for name, text in (("psnr_converged", "dense:steps=12:solver=unipc"), ("psnr_dense", "dense:steps=4:solver=unipc")):
        reference = generate(tiny_pipeline, request, parse_method(text)).frames
        assert result[name] == pytest.approx(psnr(own, reference))


def test_float32_is_only_inside():
    from diffusers import WanTransformer3DModel

    class Pipeline:
        pass

    model = WanTransformer3DModel(num_attention_heads=1, attention_head_dim=12, in_channels=4, out_channels=4,
                                  text_dim=8, freq_dim=8, ffn_dim=8, num_layers=1).to(torch.bfloat16)  # fmt: skip
    model.blocks[0].norm2.float()  # as diffusers keeps some parts
    pipeline = Pipeline()
    pipeline.components = {"transformer": model}
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with in_float32(pipeline):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    after = model.state_dict()
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16, torch.float32}
    assert all(
        torch.equal(after[name], weight) and after[name].dtype == weight.dtype for name, weight in before.items()
    )


def test_work_beside_attention_is_the_multiplications_of_linear_layers(tiny_pipeline):
    request = replace(requests()[0], steps=1, guidance_scale=1.0)
    with counting_work(tiny_pipeline) as count:
        generate(tiny_pipeline, request, parse_method("dense"))
    tokens, words, width, hidden, layers = (
        2 * 4 * 4,
        tiny_pipeline.encode_prompt("a red ball", None)[0].shape[1],
        48,
        64,
        2,
    )
    video = tokens * (6 * width**2 + 2 * width * hidden)  # query, key, value, out; query and out of cross-attention
    assert count() == layers * (video + words * 2 * width**2)


def test_it_takes_up_where_it_stopped_and_never_mixes_machines(tiny_pipeline, tmp_path, monkeypatch):
    log = tmp_path / "runs.jsonl"
    first = work(tiny_pipeline, requests(1), TEXTS[:2], log)
    known, runs = first["runs"][0] | {"psnr_dense": 30.0}, []
    monkeypatch.setattr(Worker, "run", lambda self, job: runs.append(job.method) or known)
    again = work(tiny_pipeline, requests(1), TEXTS[:3], log)
    assert runs == [TEXTS[2]] and again["rows"][0]["seconds"] == first["rows"][0]["seconds"]
    monkeypatch.setattr(bench, "machine", lambda pipeline: "another")
    runs.clear()
    work(tiny_pipeline, requests(1), TEXTS[:2], log)
    assert runs == list(TEXTS[:2])  # none is taken from the other machine
    odd = iter(["one", "two"])
    monkeypatch.setattr(Worker, "run", lambda self, job: known | {"machine": next(odd)})
    with pytest.raises(ValueError, match="2 kinds of machines: one; two"):
        work(tiny_pipeline, requests(1), TEXTS[:2])


def test_what_cannot_run_is_said_before_anything_runs(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(bench, "sweep", lambda *args: pytest.fail("ran"))
    for methods, message in (
        (["dense", "dense"], "dense is given twice"),
        (["magic"], "'magic' is unknown"),
        (["dense:steps=900"], "steps is 900"),
    ):
        with pytest.raises(ValueError, match=message):
            work(tiny_pipeline, requests(), methods)
    with pytest.raises(ValueError, match="number of prompts is 0"):
        bench.requests_at(4096, 0)


def test_every_peer_and_every_number_of_dense_steps_is_there():
    from timeripple.baselines import ATTENTION, STEP_CACHES

    assert len(set(METHODS)) == len(METHODS)
    names = {part.split(":")[0] for text in METHODS for part in text.split("+")}
    assert names >= {"dense", "token", *ATTENTION, *STEP_CACHES}
    for text in METHODS:
        parse_method(text).check(20)
    assert family("token:0.5:steps=14+forecast:0.7") == "token:0.5+forecast:0.7"
    assert is_ours("forecast:0.7+token:0.5") and not is_ours("forecast:0.7:steps=4")


def test_figure_has_a_line_a_family_and_says_the_interval():
    rows = [
        {"method": text, "steps": steps, "seconds": seconds, "psnr_converged": level,
         "psnr_converged_interval": [level - 1, level + 2]}
        for text, steps, seconds, level in (
            ("dense:steps=20", 20, 4.0, 40.0), ("dense:steps=10", 10, 2.0, 34.0), ("token:0.5:steps=10", 10, 1.2, 33.0),
            ("forecast:0.5:steps=10", 10, 1.1, 30.0),
        )
    ]  # fmt: skip
    figure = figures.quality_over_seconds(rows, "4096 tokens (measured here)")
    lines = {line.name: (list(line.x), list(line.y)) for line in figure.data}
    assert lines["dense"] == ([2.0, 4.0], [34.0, 40.0]) and set(lines) == {"dense", "token:0.5", "forecast:0.5"}
    ours = next(line for line in figure.data if line.name == "token:0.5")
    assert list(ours.error_y.array) == [2.0] and list(ours.error_y.arrayminus) == [1.0] and ours.error_y.visible
    assert figure.layout.xaxis.type == "log" and "measured here" in figure.layout.title.text


def test_command(tiny_pipeline, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("timeripple.clips.models.load_pipeline", lambda model, *how, **also: tiny_pipeline)
    monkeypatch.setattr(bench, "requests_at", lambda tokens, prompts: requests(prompts))
    arguments = ["bench", "work", "--prompts", "2", "--tokens", "256", "--methods", ",".join(TEXTS[:3])]
    with pytest.raises(SystemExit) as leaving:
        main([*arguments, "--out", str(tmp_path / "new"), "--json"])
    assert leaving.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "new" / "work.json").read_text())
    assert len((tmp_path / "new" / "runs.jsonl").read_text().splitlines()) == 6
    assert "token:0.5" in (tmp_path / "new" / "work.html").read_text()
    assert np.isfinite([row["seconds"] for row in printed["rows"]]).all()


def test_who_is_ahead_where_attention_is_most_of_a_step():
    """Ours leaves out half of the attention and nothing else, and is as good as dense."""
    run = {"seconds": 9.0, "rest_steps": 10.0, "psnr_converged": 35.0}
    measured = {
        "dense:steps=10": [run | {"attention_steps": 10.0}],
        "token:0.5:steps=10": [run | {"attention_steps": 5.0}],
    }
    for share, ratio in ((0.5, 1 / 0.75), (0.9, 1 / 0.55)):
        (lead,) = ahead(bench.points(measured, partial(bench.dense_steps_of, share)), [35])
        assert lead["ours"] == "token:0.5" and lead["best_other"] == "dense" and lead["ratio"] == pytest.approx(ratio)
    (lead,) = ahead(bench.points(measured, bench.seconds_of), [35])
    assert lead["ratio"] == 1


def test_what_cannot_be_measured_is_none(tiny_pipeline, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/no/ffmpeg")
    (row,) = work(tiny_pipeline, requests(1), ["dense:steps=3"])["rows"]
    assert row["vmaf_converged"] is None and row["psnr_converged"] > 0 and row["ssim_converged"] > 0


def test_methods_take_turns_by_their_steps():
    texts = ["token:0.5:steps=4", "dense:steps=8", "forecast:0.5:steps=8", "dense:steps=4"]
    four, eight = ["dense:steps=4", "token:0.5:steps=4"], ["dense:steps=8", "forecast:0.5:steps=8"]
    assert bench.in_turn(texts, requests()[0], 0) == four + eight
    assert bench.in_turn(texts, requests()[0], 1) == eight + four
