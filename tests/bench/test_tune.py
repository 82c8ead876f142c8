"""The search against an exhaustive one, in a world where seconds and dB of everything are known."""

import json
from dataclasses import replace

import numpy as np
import pytest

import timeripple
from timeripple.bench import tune as module
from timeripple.bench import work
from timeripple.bench.tune import DENSE_STEPS, FAMILIES, Target, candidates_near, fits, rounds, tune
from timeripple.clips.generate import Request, generate
from timeripple.clips.methods import load_method, parse_method

REQUESTS = [Request(f"a {colour} ball", seed=i, num_frames=2, height=32, width=32)
            for i, colour in enumerate(("red", "blue", "green", "pink"))]  # fmt: skip
SAVED = {"token:0.5": 0.55, "token:0.3": 0.7, "forecast:0.7": 0.75, "easycache:0.1": 0.6}
LOST = {"token:0.5": 1.5, "token:0.3": 0.5, "forecast:0.7": 5.0, "easycache:0.1": 12.0}


@pytest.fixture
def world(monkeypatch):
    """Seconds are steps times what a family leaves; dB rise by 6 a doubling, less what it loses, and by prompt."""
    asked, saved = [], dict(SAVED)

    def run(self, job):
        asked.append(job)
        family, steps = work.family(job.method), parse_method(job.method).steps
        level = 34 + 6 * np.log2(steps / 10) - LOST.get(family, 0.0) + 2 * np.sin(3 * job.request.seed)
        return {"seconds": steps * saved.get(family, 1.0), "psnr_converged": level, "held_bytes": 0}

    monkeypatch.setattr(module.Worker, "run", run)
    monkeypatch.setattr(module, "generate_once", lambda *_: None)
    return asked, saved


def exhaustive(saved, keeps):
    """Seconds and method of everything that `keeps`, on average over the prompts."""
    found = []
    for family in ("dense", *SAVED):
        for steps in range(4, 57):
            level = 34 + 6 * np.log2(steps / 10) - LOST.get(family, 0.0)
            level += np.mean([2 * np.sin(3 * seed) for seed in range(len(REQUESTS))])
            seconds = steps * saved.get(family, 1.0)
            if keeps(seconds, level):
                found.append((seconds, level, family))
    return found


def test_the_fastest_that_keeps_a_psnr(tiny_pipeline, world):
    asked, saved = world
    found = tune(tiny_pipeline, REQUESTS, Target(psnr=36), tuple(SAVED))
    seconds, _, family = min(exhaustive(saved, lambda seconds, level: level >= 36))
    assert work.family(found["method"]) == family == "token:0.5"
    assert found["psnr"] >= 36 and found["seconds"] <= 1.2 * seconds
    low, high = found["psnr_interval"]
    assert low < found["psnr"] < high and found["target"] == {"psnr": 36}
    everything = len(REQUESTS) * (len(DENSE_STEPS) + 5 * len(SAVED))
    assert len(asked) < 0.75 * everything and len(asked) == len(set(asked))
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("target", [Target(speedup=2), Target(seconds=10)])
def test_the_best_within_a_time(tiny_pipeline, world, target):
    _, saved = world
    found = tune(tiny_pipeline, REQUESTS, target, tuple(SAVED))
    best = max(exhaustive(saved, lambda seconds, level: seconds <= 10), key=lambda one: one[1])
    assert found["seconds"] <= 10 and found["psnr"] >= best[1] - 0.7 and work.family(found["method"]) == best[2]


def test_where_fewer_steps_win_it_says_so(tiny_pipeline, world):
    _, saved = world
    saved.update(dict.fromkeys(SAVED, 1.0))
    found = tune(tiny_pipeline, REQUESTS, Target(psnr=36), tuple(SAVED))
    assert work.family(found["method"]) == "dense"
    dense = [row for row in found["rows"] if row["method"].startswith("dense:") and row["psnr_converged"] >= 36]
    assert found["seconds"] == min(row["seconds"] for row in dense)


def test_where_a_peer_wins_it_returns_that(tiny_pipeline, world):
    _, saved = world
    saved["forecast:0.7"] = 0.1
    assert work.family(tune(tiny_pipeline, REQUESTS, Target(psnr=34), tuple(SAVED))["method"]) == "forecast:0.7"


def test_what_the_pipeline_does_not_suit_is_named(tiny_pipeline, world, monkeypatch):
    run = module.Worker.run
    monkeypatch.setattr(
        module.Worker, "run", lambda self, job: {"refused": "no"} if "easy" in job.method else run(self, job)
    )
    found = tune(tiny_pipeline, REQUESTS, Target(psnr=34), tuple(SAVED))
    assert found["left_out"] and all(text.startswith("easycache") for text in found["left_out"])
    assert not any("easycache" in row["method"] for row in found["rows"])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(psnr=90), "Nothing keeps 90 dB; the best found keeps"),
        (Target(seconds=0.5), r"Nothing takes at most 0.50 s; the fastest found takes 2.20 s"),
    ],
)
def test_targets_out_of_reach(tiny_pipeline, world, target, message):
    with pytest.raises(ValueError, match=message):
        tune(tiny_pipeline, REQUESTS, target, tuple(SAVED))


@pytest.mark.parametrize("given", [{}, {"psnr": 30, "seconds": 2}, {"psnr": -1}, {"speedup": float("nan")}])
def test_targets_that_are_none(given):
    with pytest.raises(ValueError, match=r"Give one target|give more than 0"):
        Target(**given)


def test_rounds_double_until_all_prompts_are_in():
    assert [list(rounds(n)) for n in (1, 2, 4, 6)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 6]]


def test_candidates_fit_their_steps():
    found = candidates_near(10, FAMILIES, 20)
    assert {work.family(text) for text in found} >= {"token:0.5", "taylorseer:2:spacing=even", "dense:solver=euler"}
    assert {parse_method(text).steps for text in found} <= {10, 12, 14, 17, 20}
    assert not fits("token:0.97:refresh=1:steps=4", 20)


def test_it_runs_and_what_it_writes_is_loaded(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(work.converged, "__defaults__", (12,))
    monkeypatch.setattr(module, "DENSE_STEPS", (3, 4, 5))
    found = tune(tiny_pipeline, REQUESTS[:2], Target(seconds=60), ("token:0.5", "forecast:0.7"))
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(found))
    method = load_method(path)
    assert method.text == found["method"] and method.steps == found["steps"]
    request = REQUESTS[0]
    expected = generate(tiny_pipeline, request, method).frames
    with timeripple.load(tiny_pipeline, path) as tuned:
        assert tuned.steps == found["steps"] and tuned.method == method
        video = tiny_pipeline(**replace(request, steps=tuned.steps).arguments(tiny_pipeline)).frames
        assert tuned.summary()["method"] == method.label
    assert np.array_equal((video[0].permute(0, 2, 3, 1) * 255).round().byte().numpy(), expected)
    plain = tiny_pipeline(**request.arguments(tiny_pipeline)).frames  # and it is off again
    dense = generate(tiny_pipeline, request, parse_method("dense")).frames
    assert np.array_equal((plain[0].permute(0, 2, 3, 1) * 255).round().byte().numpy(), dense)
