"""Step caches on clips that are made in sections, each from noise: none goes on from the section before."""

import pytest
import torch

from tests.hooks.pipelines import build, generate
from tests.hooks.test_account import skyreels_long, skyreels_long_frame_by_frame
from timeripple.clips.methods import parse_method

BY_SCHEDULE = ("taylorseer:2:start=1", "delta-dit:2", "forecast:0.5", "pab:2:start=0:end=1000", "output-cache:0.5")
BY_CHANGE = ("spectrum:0.5", "easycache:0.5")


def kinds_by_step(records):
    found = {}
    for record in records:
        found.setdefault(record["step"], set()).add((record["layer"], record["kind"]))
    return [found[step] for step in sorted(found)]


@pytest.mark.filterwarnings("error:Attention stays dense")
@pytest.mark.parametrize("text", [*BY_SCHEDULE, *BY_CHANGE])
def test_every_section_begins_anew(text):
    pipe, inputs, sections = skyreels_long()
    dense = generate(pipe, inputs)
    steps = pipe.num_timesteps
    with parse_method(text).applied(pipe, steps) as summarise:
        cached = generate(pipe, inputs)
        kinds = kinds_by_step(summarise()["records"])
        assert torch.equal(generate(pipe, inputs), cached)
    assert len(kinds) == sections * steps
    for begin in range(0, sections * steps, steps):
        assert {kind for _, kind in kinds[begin]} == {"dense"}
        assert kinds[begin : begin + steps] == kinds[:steps] or text in BY_CHANGE
    assert cached.isfinite().all() and (cached - dense).norm() < 0.3 * dense.norm()
    assert torch.equal(generate(pipe, inputs), dense)


@pytest.mark.filterwarnings("error:Attention stays dense")
@pytest.mark.parametrize("text", ["pab:2:start=0:end=1000", "output-cache:0.5", "spectrum:0.5"])
def test_sections_whose_frames_denoise_one_after_the_other(text):
    """SkyReels-V2's diffusion forcing: the number of tokens and of steps changes too."""
    pipe, inputs, _ = skyreels_long_frame_by_frame()
    dense = generate(pipe, inputs)
    with parse_method(text).applied(pipe, 8) as summarise:
        cached = generate(pipe, inputs)
        kinds = kinds_by_step(summarise()["records"])
        assert torch.equal(generate(pipe, inputs), cached)
    assert {kind for _, kind in kinds[0]} == {"dense"} and any(k == "cached" for step in kinds for _, k in step)
    assert cached.isfinite().all() and (cached - dense).norm() < 0.3 * dense.norm()


def test_a_clip_that_was_left_leaves_nothing_to_the_next():
    pipe, inputs = build("wan_image_to_video", "euler")
    with parse_method("forecast:0.5").applied(pipe, 4):
        first = generate(pipe, inputs)

        def leave(pipe, step, timestep, tensors):
            if step == 1:
                raise KeyboardInterrupt
            return {}

        with pytest.raises(KeyboardInterrupt):
            generate(pipe, inputs, seed=1, callback_on_step_end=leave)
        assert torch.equal(generate(pipe, inputs), first)
