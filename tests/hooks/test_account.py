"""The account is of one clip: all sections, all transformers, nothing else; a budget it did not meet is said."""

import copy
import pickle
from collections import Counter
from contextlib import contextmanager

import pytest
import torch

from tests.attention.test_cost import FAST, SLOW
from tests.hooks.pipelines import build, generate
from timeripple import ReuseConfig, disable, enable, summary
from timeripple.attention import cost
from timeripple.baselines import OutputCacheConfig
from timeripple.bench.tiny import SMALL, small_request, tiny
from timeripple.clips import generate as clips
from timeripple.clips.methods import parse_method

TOKEN = ReuseConfig("token", theta=1.0, refresh=2, dense_first=0.25, dense_last=1)


@contextmanager
def passes_counted(transformer):
    """Yields the forward passes of each section, as the pipeline makes them."""
    counts = []
    handle = transformer.register_forward_pre_hook(lambda *_: counts.append(1))
    try:
        yield counts
    finally:
        handle.remove()


def skyreels_long():
    pipe, inputs = build("skyreels_forcing", "unipc")
    return pipe, inputs | {"num_frames": 17, "base_num_frames": 9, "overlap_history": 5, "ar_step": 0}, 3


def skyreels_long_frame_by_frame():
    pipe, inputs, sections = skyreels_long()
    return pipe, inputs | {"ar_step": 2}, sections


def ltx_long():
    """Its loop leaves out the last timestep."""
    pipe = tiny("LTXI2VLongMultiPromptPipeline")
    sizes = {"num_frames": 41, "height": 64, "width": 96, "temporal_tile_size": 24, "temporal_overlap": 8}
    return pipe, {"prompt": "a cat | a dog", "guidance_scale": 3.0} | sizes, 3


@pytest.mark.filterwarnings("error:Attention stays dense")
@pytest.mark.parametrize("long", [skyreels_long, skyreels_long_frame_by_frame, ltx_long])
def test_all_sections_count(long):
    pipe, inputs, sections = long()
    turns = []

    def run():
        turns.clear()
        return generate(pipe, inputs, callback_on_step_end=lambda pipe, index, *_: turns.append(index) or {})

    dense = run()
    enable(pipe, TOKEN)
    with passes_counted(pipe.transformer) as passes:
        reused = run()
    numbers = summary(pipe)
    records, per_step = numbers["records"], numbers["saving"]["per_step"]
    assert {*Counter(record["layer"] for record in records).values()} == {len(passes)}
    assert [*dict.fromkeys(record["step"] for record in records)] == list(range(len(turns)))
    of_step = [[s for r in records if r["step"] == n for s in r["saving"]] for n in range(len(turns))]
    assert per_step == pytest.approx([sum(savings) / len(savings) for savings in of_step])
    assert numbers["saving"]["all_steps"] == pytest.approx(sum(per_step) / len(turns))
    begins = [n for n, index in enumerate(turns) if index == 0]
    assert len(begins) == sections and {r["kind"] for r in records if r["step"] in begins} <= {"refresh", "dense"}
    assert not torch.equal(reused, dense)
    assert torch.equal(run(), reused) and len(summary(pipe)["records"]) == len(records)  # of this clip alone


def test_a_clip_that_was_left_does_not_count():
    pipe, inputs = build("skyreels_forcing", "unipc")
    inputs |= {"num_frames": 17, "base_num_frames": 9, "overlap_history": 5, "ar_step": 0}
    enable(pipe, TOKEN)
    first = generate(pipe, inputs)
    records = len(summary(pipe)["records"])
    turns = []

    def leave(pipe, step, timestep, tensors):
        turns.append(step)
        if len(turns) == 6:  # in the second section
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        generate(pipe, inputs, callback_on_step_end=leave)
    assert torch.equal(generate(pipe, inputs), first) and len(summary(pipe)["records"]) == records


@pytest.mark.parametrize(
    "name", ["WanImageToVideoPipeline", "SkyReelsV2DiffusionForcingPipeline", "HunyuanVideoFramepackPipeline",
             "LTXI2VLongMultiPromptPipeline"],
)  # fmt: skip
def test_a_clip_that_failed_in_decoding_does_not_count(name, files):
    """Its denoising was complete, and pipelines do not say that such a clip is over."""
    pipe = tiny(name)
    arguments = small_request(pipe, files, num_frames=40 if "Framepack" in name else 9).arguments(pipe)
    enable(pipe, TOKEN)
    pipe(**arguments)
    records = [record["step"] for record in summary(pipe)["records"]]
    decode = pipe.vae.decode
    pipe.vae.decode = None
    with pytest.raises(TypeError) as failed:  # and what it has raised is kept, as in a notebook
        pipe(**arguments)
    pipe.vae.decode = decode
    pipe(**arguments)
    assert [record["step"] for record in summary(pipe)["records"]] == records and failed


def test_an_expert_that_had_no_part_in_the_last_clip_does_not_count():
    pipe, inputs = build("wan_two_experts", "euler")
    enable(pipe, TOKEN)
    generate(pipe, inputs)
    both = summary(pipe)
    assert {*Counter(record["step"] for record in both["records"])} == {0, 1, 2, 3}
    pipe.register_to_config(boundary_ratio=0.0)  # all steps are the first one's
    generate(pipe, inputs)
    alone = summary(pipe)
    assert len(alone["records"]) == len(both["records"]) and alone["layers"] == both["layers"] == 4
    assert len(alone["saving"]["per_step"]) == 4 and alone["held_bytes"] < both["held_bytes"] * 1.5
    kinds = [record["kind"] for record in alone["records"] if record["pass"] == "cond"]
    assert kinds == [kind for kind in ("refresh", "reuse", "refresh", "dense") for _ in range(2)]


def test_experts_share_the_memory_they_are_given():
    pipe, inputs = build("wan_two_experts", "euler")
    enable(pipe, TOKEN)
    generate(pipe, inputs, num_inference_steps=8)
    free = summary(pipe)["held_bytes"]
    enable(pipe, TOKEN, memory_limit=free // 3)
    generate(pipe, inputs, num_inference_steps=8)
    assert summary(pipe)["held_bytes"] <= free // 3 + 4096  # plans, beside the errors


def test_copies_and_pickles_begin_with_nothing():
    pipe, inputs = build("wan_image_to_video", "euler")
    enable(pipe, TOKEN)
    reused = generate(pipe, inputs)
    copied = copy.deepcopy(pipe)
    loaded = pickle.loads(pickle.dumps(pipe.transformer))
    assert summary(copied)["records"] == summary(loaded)["records"] == [] and summary(pipe)["records"]
    assert torch.equal(generate(copied, inputs), reused)
    assert len(summary(copied)["records"]) == len(summary(pipe)["records"])
    disable(copied)
    assert summary(pipe)["records"]


# --- Budgets ----------------------------------------------------------------------------------------------------------


def shortfalls(warned):
    return [str(each.message) for each in warned if "was to be saved" in str(each.message)]


def test_a_budget_that_was_not_met_is_said_once_with_what_was_reached(recwarn):
    pipe, inputs = build("hunyuan_video", "euler")
    enable(pipe, "token:0.75")
    for _ in range(2):
        generate(pipe, inputs, num_inference_steps=8)
    reached = summary(pipe)["saving"]["reuse_steps"]
    assert reached < 0.7
    assert shortfalls(recwarn) == [
        f"token-0.75: 75% of the attention was to be saved and {reached:.0%} was, "
        "as text, a small grid or the refreshes leave no more to save."
    ]


def test_a_schedule_that_is_all_dense_is_named_as_the_cause(recwarn):
    pipe, inputs = build("wan", "euler")
    enable(pipe, "token:0.5:refresh=none")
    generate(pipe, inputs, num_inference_steps=2)
    (said,) = shortfalls(recwarn)
    assert said.endswith("50% of the attention was to be saved and 0% was, as its schedule has every step dense.")


def test_of_two_experts_the_whole_clip_is_judged(recwarn):
    pipe, inputs = build("wan_two_experts", "euler")
    enable(pipe, "token:0.3:refresh=none")
    generate(pipe, inputs, num_inference_steps=8)
    assert summary(pipe)["saving"]["reuse_steps"] > 0.3 and not shortfalls(recwarn)


def test_memory_that_is_not_enough_is_named(recwarn):
    pipe, inputs = build("wan_image_to_video", "euler")
    of_a_layer = 18 * 48 * 2 * 2  # tokens and channels of an error and its slope, in two passes and 8 bits
    enable(pipe, "token:0.5:refresh=3", memory_limit=of_a_layer)
    generate(pipe, inputs, num_inference_steps=8)
    assert summary(pipe)["storage"] == {"dtype": "float8_e4m3fn", "device": "cpu", "layers": 1}
    (said,) = shortfalls(recwarn)
    assert said.endswith("as memory was enough for the errors of 1 of 2 layers.")


def test_outputs_return_for_whole_steps(recwarn):
    pipe, inputs = build("wan_image_to_video", "euler")
    enable(pipe, OutputCacheConfig(0.5))
    generate(pipe, inputs)  # two steps between the first and the last, and one of them
    enable(pipe, OutputCacheConfig(0.7))
    generate(pipe, inputs)
    assert [said.rpartition(" as ")[2] for said in shortfalls(recwarn)] == ["only whole steps can be left out."]


def test_what_is_met_dense_or_left_is_not_spoken_of(recwarn):
    pipe, inputs = build("wan_image_to_video", "euler")
    for config in (None, "token:0.3:refresh=none", "token:theta=0.1", "token:0"):
        enable(pipe, config)
        generate(pipe, inputs, num_inference_steps=8)

    def leave(*_):
        raise KeyboardInterrupt

    enable(pipe, "token:0.75")
    with pytest.raises(KeyboardInterrupt):
        generate(pipe, inputs, callback_on_step_end=leave)
    disable(pipe)
    assert not shortfalls(recwarn)


def test_a_comparison_says_it_in_its_remarks_and_not_twice(files, recwarn):
    pipe = tiny("CogVideoXPipeline")
    generation = clips.generate(pipe, small_request(pipe, files, **SMALL), parse_method("token:0.75"))
    assert generation.shortfall and not shortfalls(recwarn)


# --- Speed in place of a budget ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["token:speedup=1.6", "token:speedup=1.6+taylorseer:2"])
def test_the_budget_chosen_for_a_speedup_is_in_the_summary(monkeypatch, files, method):
    monkeypatch.setattr(cost, "cost_of", lambda *_: FAST)
    pipe = tiny("WanVideoToVideoPipeline")
    request = small_request(pipe, files, **SMALL | {"steps": 8})
    generation = clips.generate(pipe, request, parse_method(method))
    chosen = generation.summary["chosen"]
    assert 0 < chosen["budget"] < 1 and chosen["speedup"] >= 1.6 and generation.shortfall is None
    assert clips.generate(pipe, request, parse_method("token:0.5")).summary["chosen"] is None


@pytest.mark.parametrize("method", ["token:0.6+taylorseer:2", "skip:0.5+taylorseer:2", "token:0.5+lightning-cp:3"])
def test_the_window_of_a_stack_leaves_out_what_is_dense_before_reuse(files, method):
    """A budget over the steps that a cache computes is one over the window of the stack, whose other steps save all."""
    pipe, stack = tiny("WanVideoToVideoPipeline"), parse_method(method)
    generation = clips.generate(pipe, small_request(pipe, files, **SMALL | {"steps": 10}), stack)
    computed = stack.cache.computed(8)
    inside = {computed[step.index] for step in stack.config.schedule(len(computed)) if step.in_window}
    per_step = generation.saving["per_step"]
    window = [saved for step, saved in enumerate(per_step) if step in inside or step not in computed]
    assert len(window) < 8 and generation.saving["reuse_steps"] == pytest.approx(sum(window) / len(window))
    assert generation.saving["reuse_steps"] >= stack.config.budget and generation.shortfall is None


@pytest.mark.parametrize(("memory_limit", "why"), [(None, "text, a small grid"), (0, "memory was enough")])
def test_a_speedup_for_which_too_little_was_saved_is_said(monkeypatch, recwarn, memory_limit, why):
    """Two experts: the second begins with a refresh that no schedule has."""
    monkeypatch.setattr(cost, "cost_of", lambda *_: FAST)
    pipe, inputs = build("wan_two_experts", "euler")
    enable(pipe, "token:speedup=1.6", memory_limit=memory_limit)
    for _ in range(2):
        generate(pipe, inputs, num_inference_steps=8)
    numbers = summary(pipe)
    wanted, reached = numbers["chosen"]["saving"], numbers["saving"]["reuse_steps"]
    (said,) = shortfalls(recwarn)
    of_that = (
        f"{wanted:.0%} of the attention was to be saved for 1.6 times the speed and {abs(reached):.0%} was, as {why}"
    )
    assert said.startswith(f"token-speedup=1.6: {of_that}") and wanted == pytest.approx(0.59, abs=0.01)


def test_attention_that_would_be_slower_stays_dense_and_says_so(monkeypatch, recwarn):
    monkeypatch.setattr(cost, "cost_of", lambda *_: SLOW)
    pipe, inputs = build("wan_two_experts", "euler")
    plain = generate(pipe, inputs, num_inference_steps=8)
    enable(pipe, "token:speedup=1.5")
    assert torch.equal(generate(pipe, inputs, num_inference_steps=8), plain)
    (said,) = (str(each.message) for each in recwarn if "attention stayed dense" in str(each.message))
    assert said == "token-speedup=1.5: attention stayed dense, as reuse is not faster here at this size."
