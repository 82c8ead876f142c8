"""Clips that are made together: step by step in turn, each as if it were alone."""

import time
from dataclasses import replace

import numpy as np
import pytest

from tests.hooks.pipelines import build
from timeripple.bench.tiny import SMALL, small_request, tiny
from timeripple.clips import interleaved
from timeripple.clips.generate import BrokenClip, Cancelled, Request, generate
from timeripple.clips.interleaved import can_take_turns, generate_all, twin
from timeripple.clips.methods import parse_method

REQUEST = Request("a red ball", seed=1, steps=6, num_frames=9, height=32, width=40)
METHODS = [parse_method(text) for text in (
    "dense", "token:0.6", "channel:0.5", "tile:0.4:refresh=none", "dense:steps=3:solver=euler", "taylorseer:2",
    "token:0.5+first-block-cache:0.1", "faster-cache", "hsa:0.25", "output-cache:0.5",
)]  # fmt: skip


def numbers(generation):
    return [(r["step"], r["pass"], r["layer"], r["kind"], r["saving"]) for r in generation.summary["records"]]


def test_each_is_as_if_it_were_alone(tiny_pipeline):
    state = [*tiny_pipeline.transformer.state_dict()]
    alone = [generate(tiny_pipeline, REQUEST, method) for method in METHODS]
    together = generate_all(tiny_pipeline, REQUEST, METHODS)
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.frames, other.frames), other.method.label
        assert numbers(one) == numbers(other) and one.summary["held_bytes"] == other.summary["held_bytes"]
    assert [*tiny_pipeline.transformer.state_dict()] == state
    assert np.array_equal(generate(tiny_pipeline, REQUEST, METHODS[0]).frames, alone[0].frames)


@pytest.mark.parametrize("name", ["HunyuanVideoPipeline", "CogVideoXPipeline", "LTXPipeline"])
def test_other_pipelines(name, files):
    pipeline = tiny(name)
    request = small_request(pipeline, files, **SMALL | {"steps": 5})
    methods = [parse_method(text) for text in ("dense", "token:0.4", "tile:0.3")]
    alone = [generate(pipeline, request, method) for method in methods]
    for one, other in zip(alone, generate_all(pipeline, request, methods), strict=True):
        assert np.array_equal(one.frames, other.frames) and numbers(one) == numbers(other)


def test_steps_are_made_in_turn_by_the_share_that_is_done(tiny_pipeline):
    order = []
    methods = [parse_method(text) for text in ("dense", "dense:steps=3", "token:0.5")]
    generate_all(tiny_pipeline, REQUEST, methods, on_step=lambda event: order.append((event.method, event.step)))
    a, b, c = (method.label for method in methods)
    assert order == [
        (a, 1), (b, 1), (c, 1), (a, 2), (c, 2), (a, 3), (b, 2), (c, 3), (a, 4), (c, 4), (a, 5), (b, 3), (c, 5),
        (a, 6), (c, 6),
    ]  # fmt: skip


def test_waiting_counts_in_nobodys_seconds(tiny_pipeline):
    """While one works nobody else does, so together they cannot take longer than all of it took."""
    start = time.perf_counter()
    clips = generate_all(tiny_pipeline, replace(REQUEST, steps=12), METHODS[:3])
    assert sum(clip.seconds["total"] for clip in clips) <= time.perf_counter() - start
    assert all(sum(clip.step_seconds) == pytest.approx(clip.seconds["denoise"]) for clip in clips)


def test_one_that_breaks_costs_no_other(tiny_pipeline, monkeypatch):
    plain = interleaved.generate

    def breaks(pipeline, request, method, **callbacks):
        if method.label.startswith("token"):
            raise BrokenClip("token gave numbers that are not finite.")
        return plain(pipeline, request, method, **callbacks)

    monkeypatch.setattr(interleaved, "generate", breaks)
    dense, token, tile = generate_all(tiny_pipeline, REQUEST, [METHODS[0], METHODS[1], METHODS[3]])
    assert isinstance(token, BrokenClip) and dense.frames.shape == tile.frames.shape


def test_cancelling_ends_all(tiny_pipeline):
    events = []
    with pytest.raises(Cancelled):
        generate_all(tiny_pipeline, REQUEST, METHODS[:3], on_step=events.append, should_stop=lambda: len(events) >= 4)
    assert len(events) == 4
    assert len(generate_all(tiny_pipeline, REQUEST, METHODS[:2])) == 2  # and nothing is left behind


def test_an_error_is_raised_as_it_is_and_ends_all(tiny_pipeline):
    events = []

    def on_step(event):
        events.append(event)
        if len(events) == 2:
            raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        generate_all(tiny_pipeline, REQUEST, METHODS[:3], on_step=on_step)
    assert len(events) == 2


def test_twins_share_weights_and_nothing_else():
    pipe, _ = build("wan_two_experts", "unipc")
    other = twin(pipe)
    for name in ("transformer", "transformer_2", "vae"):
        own, its = getattr(pipe, name), getattr(other, name)
        assert own is not its and type(own) is type(its)
        assert [p.data_ptr() for p in own.parameters()] == [p.data_ptr() for p in its.parameters()]
    assert other.scheduler is not pipe.scheduler
    assert pipe.components["transformer"] is pipe.transformer  # it is as it was


def test_where_nothing_can_be_shared_it_is_one_after_the_other(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(interleaved, "can_take_turns", lambda pipeline: False)
    order = []
    generate_all(tiny_pipeline, REQUEST, METHODS[:2], on_step=lambda event: order.append(event.method))
    assert order == ["dense"] * 6 + ["token-0.6"] * 6
    assert can_take_turns(tiny_pipeline)
