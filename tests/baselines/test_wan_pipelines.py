"""Peers that know Wan's transformer, in its pipelines: two experts, an image beside the latents, and a run that begins
in the middle of the noise schedule."""

import numpy as np
import pytest

from timeripple.bench.tiny import example_files, inputs_for, small_request, tiny
from timeripple.clips.generate import generate
from timeripple.clips.methods import parse_method


@pytest.mark.parametrize("name", ["WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline"])
@pytest.mark.parametrize(
    ("text", "idle", "least", "most"), [("hsa:0.3", "dense", 0, 0.7), ("lightning-cp:2", "lightning-cp:1", 0.1, 0.25)]
)
def test_two_runs_are_alike_save_and_leave_nothing_behind(name, text, idle, least, most, tmp_path):
    pipeline = tiny(name)
    request = small_request(pipeline, inputs_for(name, example_files(tmp_path)), steps=10)
    dense = generate(pipeline, request, parse_method("dense"))
    first, second = (generate(pipeline, request, parse_method(text)) for _ in range(2))
    assert np.array_equal(first.frames, second.frames) and not np.array_equal(first.frames, dense.frames)
    assert least < first.saving["all_steps"] <= most and first.summary["held_bytes"] > 0
    for same in (idle, "dense"):
        assert np.array_equal(generate(pipeline, request, parse_method(same)).frames, dense.frames)
