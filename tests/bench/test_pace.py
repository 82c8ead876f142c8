"""Seconds from the medians of steps: what outliers do to them, how sure they are, and where they come from."""

import numpy as np
import pytest

from timeripple.bench.pace import Pace, step_kinds, timing
from timeripple.clips.generate import Request, generate
from timeripple.clips.methods import parse_method

REQUEST = Request("a red ball", steps=6, num_frames=5, height=32, width=32)


def run_of(kinds, seconds, rest=2.0):
    return {"step_kinds": list(kinds), "step_seconds": list(seconds), "rest_seconds": rest}


def test_outliers_do_not_decide():
    pace, runs = Pace(), []
    for slow in (None, 1, 4):
        seconds = [1.0, 0.4, 0.4, 1.4, 0.4, 0.4]
        if slow is not None:
            seconds[slow] *= 20
        runs.append(run_of("drrfrr", seconds, rest=2.0 if slow != 4 else 60.0))
        pace.add("token:0.5", runs[-1])
    assert pace.seconds("token:0.5", runs) == pytest.approx(1.0 + 4 * 0.4 + 1.4 + 2.0)
    assert np.mean([sum(run["step_seconds"]) + run["rest_seconds"] for run in runs]) > 20  # whole runs would say this
    fewer = [run_of("drr", [])]  # what it takes in other numbers of steps
    assert pace.seconds("token:0.5", fewer) == pytest.approx(1.0 + 2 * 0.4 + 2.0)
    mixed = [run_of("dr", []), run_of("drrr", [])]  # of prompts for which a method leaves out other steps
    assert pace.seconds("token:0.5", mixed) == pytest.approx(1.0 + 2 * 0.4 + 2.0)


def test_the_interval_holds_the_seconds_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth, kinds = 4 * 1.0 + 10 * 0.4 + 2.0, "d" * 4 + "r" * 10
    typical = {"d": 1.0, "r": 0.4}
    held = []
    for _ in range(150):
        pace = Pace()
        for _ in range(5):
            noise = rng.lognormal(0, 0.1, 15) * np.where(rng.random(15) < 0.03, 5, 1)
            pace.add("x", run_of(kinds, [typical[k] * n for k, n in zip(kinds, noise, strict=False)], 2.0 * noise[-1]))
        low, high = pace.interval("x", [run_of(kinds, [])])
        held.append(low <= truth <= high)
    assert 0.88 <= np.mean(held) <= 1.0


def test_kinds_of_steps_are_read_off_the_records():
    records = [
        {"step": 0, "kind": "dense", "saving": [0.0, 0.0]},
        {"step": 1, "kind": "cached", "saving": [1.0, 1.0]},
        {"step": 1, "kind": "dense", "saving": [0.0, 0.0]},
        {"step": 2, "kind": "reuse", "saving": [0.96, 0.98]},
    ]
    assert step_kinds(records, 4) == ["dense 0.0", "cached+dense 0.5", "reuse 1.0", " 0.0"]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("dense", {"dense 0.0"}),
        ("forecast:0.5", {"dense 0.0", "cached 1.0"}),
        ("hsa:0.25:divisor=2:end=0", {"dense 0.0", "dense 0.8"}),
    ],
)
def test_steps_of_a_generation(tiny_pipeline, text, kinds):
    generation = generate(tiny_pipeline, REQUEST, parse_method(text))
    found = timing(generation)
    assert {*found["step_kinds"]} == kinds and len(found["step_seconds"]) == 6 and min(found["step_seconds"]) > 0
    assert sum(found["step_seconds"]) == pytest.approx(generation.seconds["denoise"])
    assert sum(found["step_seconds"]) + found["rest_seconds"] == pytest.approx(generation.seconds["total"])


def test_refreshes_have_a_pace_of_their_own(tiny_pipeline):
    generation = generate(tiny_pipeline, REQUEST, parse_method("token:0.5"))
    schedule = parse_method("token:0.5").config.schedule(6)
    assert [kind.split()[0] for kind in timing(generation)["step_kinds"]] == [step.kind for step in schedule]
