"""Seconds of several rounds, and stages that should take the same everywhere."""

import numpy as np
import pytest

from timeripple.clips import interleaved
from timeripple.clips.compare import compare
from timeripple.clips.generate import Generation, Request
from timeripple.clips.methods import parse_method
from timeripple.clips.rounds import disturbances, speedups_by_round, together

REQUEST = Request("a green cube", seed=3, steps=5, num_frames=9, height=32, width=40)


def clip(method, attention=10.0, rest=10.0, decode=2.0):
    seconds = {"text": 0.5, "denoise": attention + rest, "attention": attention, "plan": 0.1, "decode": decode}
    seconds["total"] = seconds["text"] + seconds["denoise"] + decode
    return Generation(parse_method(method), np.zeros((1, 8, 8, 3), np.uint8), seconds, None, {})


def test_the_seconds_of_several_rounds_are_medians_stage_by_stage():
    rounds = [clip("token", 4.0, 9.0), clip("token", 6.0, 30.0), clip("token", 5.0, 10.0)]
    made = together(rounds)
    assert (made.seconds["attention"], made.seconds["denoise"], made.seconds["total"]) == (5.0, 15.0, 17.5)
    assert [each["attention"] for each in made.rounds] == [4.0, 6.0, 5.0]
    assert together(rounds[:1]) is rounds[0]
    dense = together([clip("dense"), clip("dense"), clip("dense", 20.0)])
    assert speedups_by_round(made, dense) == pytest.approx([22.5 / 15.5, 22.5 / 38.5, 32.5 / 17.5])
    assert speedups_by_round(rounds[0], clip("dense")) is None
    assert "token-0.75: 0.58 to 1.86 times as fast in 3 rounds." in disturbances([dense, made])


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (clip("token", 2.0), []),
        (clip("token", 2.0, rest=11.4, decode=2.2), []),
        (clip("token", 2.0, rest=11.6), ["denoising without attention took 11.6 s where dense took 10.0 s"]),
        (clip("token", 2.0, decode=1.6), ["decoding took 1.6 s where dense took 2.0 s"]),
        (clip("token", 2.0, rest=5.0, decode=3.0), ["decoding took 3.0", "denoising without attention took 5.0"]),
        (clip("token", 2.0, decode=0.4), []),  # too short to tell
        (clip("taylorseer:3", 2.0, rest=3.0), []),  # does less
        (clip("output-cache:0.5", 2.0, rest=6.0), []),
        (clip("token:0.5:steps=10", 2.0, rest=5.0), []),
        (clip("token:0.5:solver=heun", 2.0, rest=19.0), []),
    ],
    ids=lambda value: value.method.text if isinstance(value, Generation) else str(len(value)),
)
def test_the_same_work_should_take_the_same_time(other, found):
    sentences = disturbances([clip("dense"), other])
    assert len(sentences) == len(found)
    for sentence, words in zip(sentences, found, strict=True):
        assert sentence.startswith(f"{other.method.label}: {words}") and "--repeat 3" in sentence


def test_every_second_round_goes_the_other_way(tiny_pipeline, monkeypatch):
    order = []

    def made(pipeline, request, method, **options):
        order.append(method.text)
        return clip(method.text, attention=1.0 + len(order))

    monkeypatch.setattr(interleaved, "generate", made)
    methods = [parse_method(text) for text in ("dense", "token", "tile:0.5")]
    result = compare(tiny_pipeline, REQUEST, methods, repeat=3)
    assert order == ["dense", "token", "tile:0.5", "tile:0.5", "token", "dense", "dense", "token", "tile:0.5"]
    assert [len(each.rounds) for each in result.generations] == [3, 3, 3]
    assert [each.seconds["attention"] for each in result.generations] == [7, 6, 5]
    with pytest.raises(ValueError, match="repeat is 0; give 1 or more"):
        compare(tiny_pipeline, REQUEST, methods, repeat=0)
