"""Comparisons on a lent GPU, with a stand-in for the package `spaces` that copies as processes do."""

import importlib.util
import pickle
import sys
import threading
from types import SimpleNamespace

import pytest

from timeripple.clips.compare import compare
from timeripple.clips.generate import Cancelled, Request
from timeripple.clips.methods import parse_method
from ui.gpu import seconds_needed, works

REQUEST = Request("a red ball", seed=3, steps=3, num_frames=13, height=32, width=32)
METHODS = [parse_method("dense"), parse_method("token:0.5")]


class StandInRun:
    def __init__(self, stop_after=None):
        self.stop, self.steps, self.stop_after = threading.Event(), [], stop_after

    def report(self, *event):
        self.steps.append(event if len(event) == 2 else (event[0].method, event[0].step))
        if len(self.steps) == self.stop_after:
            self.stop.set()


@pytest.fixture
def durations(monkeypatch):
    asked = []

    def lend(duration):
        def decorate(function):
            def on_gpu(*args):
                asked.append(duration(*args))
                for event in function(*pickle.loads(pickle.dumps(args))):
                    yield pickle.loads(pickle.dumps(event))

            return on_gpu

        return decorate

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "spaces" or found(name))
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=lend))
    return asked


def test_a_lent_gpu_gives_what_ours_gives(tiny_pipeline, durations):
    run = StandInRun()
    lent = works(tiny_pipeline).compare(run, REQUEST, METHODS)
    ours = compare(tiny_pipeline, REQUEST, METHODS)
    assert [(g.frames == o.frames).all() for g, o in zip(lent.generations, ours.generations, strict=True)] == [True] * 2
    assert run.steps == [(method, step) for step in (1, 2, 3) for method in ("dense", "token-0.5")]
    assert durations == [seconds_needed(tiny_pipeline, REQUEST, 2 * REQUEST.steps)] and 20 <= durations[0] <= 60


def test_cancelling_and_errors_come_through(tiny_pipeline, durations):
    run = StandInRun(stop_after=2)
    with pytest.raises(Cancelled):
        works(tiny_pipeline).compare(run, REQUEST, METHODS)
    assert len(run.steps) == 2
    with pytest.raises(ValueError, match="The prompt is empty"):
        works(tiny_pipeline).compare(StandInRun(), Request(""), METHODS)


def test_without_the_package_nothing_changes(tiny_pipeline):
    run = StandInRun(stop_after=1)
    with pytest.raises(Cancelled):
        works(tiny_pipeline).compare(run, REQUEST, METHODS)
    assert run.steps == [("dense", 1)]


def test_looking_inside_and_timing_are_lent_a_gpu_too(tiny_pipeline, durations, tmp_path):
    run, lent = StandInRun(), works(tiny_pipeline)
    seen = lent.inspect_request(run, REQUEST, [0, 2], tmp_path)
    assert seen.kept == (0, 2) and seen.qkv(2, 0).isfinite().all() and run.steps == [(1, 3), (2, 3), (3, 3)]
    assert lent.probe_report(StandInRun(), REQUEST, [1])["rows"]
    assert len(lent.attention_scaling(StandInRun(), [256], 0.5)["rows"]) == 4
    assert len(durations) == 3 and min(durations) >= 20
