"""Guidance, experts and sections of the tiny pipelines of the families; peers on them; autocast."""

from collections import Counter

import diffusers
import numpy as np
import pytest
import torch

from timeripple.bench.tiny import NEGATIVE, PROMPT, SMALL, STEPS, small_request, tiny
from timeripple.clips.compare import compare
from timeripple.clips.generate import Generation, generate
from timeripple.clips.methods import parse_method

DENSE, TOKEN = map(parse_method, ("dense", "token:0.5"))


def test_the_scale_of_a_guider_is_the_request_s_and_then_its_own_again(files):
    pipeline = tiny("HunyuanVideo15Pipeline")
    guider = pipeline.guider
    weak, strong = (
        generate(pipeline, small_request(pipeline, files, guidance_scale=s), DENSE).frames for s in (1.5, 8.0)
    )
    assert not np.array_equal(weak, strong) and pipeline.guider is guider and guider.guidance_scale == 6.0
    pipeline.guider = guider.new(guidance_scale=1.5)
    plain = pipeline(PROMPT, **SMALL, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(1)).frames[0]
    assert np.array_equal(weak, (plain * 255).round().astype(np.uint8))


@pytest.mark.parametrize("name", ["HunyuanVideoPipeline", "HunyuanVideoFramepackPipeline"])
def test_true_guidance_makes_a_second_pass_and_heeds_the_negative_prompt(name, files):
    pipeline = tiny(name)
    without, *guided = (
        generate(pipeline, small_request(pipeline, files, **given), DENSE)
        for given in ({}, {"true_cfg_scale": 4.0}, {"true_cfg_scale": 4.0, "negative_prompt": NEGATIVE})
    )
    frames = [generation.frames for generation in (without, *guided)]
    assert not np.array_equal(*frames[:2]) and not np.array_equal(*frames[1:])
    assert len(guided[0].summary["records"]) == 2 * len(without.summary["records"])


@pytest.mark.parametrize("prompts", [(PROMPT, NEGATIVE), (NEGATIVE, PROMPT)])
@pytest.mark.parametrize("text", ["token:0.4", "tile:0.3", "skip:0.3", "token-merge:0.4", "channel:0.4"])
def test_prompts_of_two_lengths_with_true_guidance(text, prompts, files):
    """FramePack packs text without its padding, so a plan of the first pass does not fit the second."""
    pipeline = tiny("HunyuanVideoFramepackPipeline")
    request = small_request(pipeline, files, prompts[0], negative_prompt=prompts[1], true_cfg_scale=4.0)
    dense, reused, again = (generate(pipeline, request, parse_method(method)) for method in ("dense", text, text))
    assert np.array_equal(reused.frames, again.frames)  # nothing uninitialised reaches the clip
    assert reused.saving["reuse_steps"] > 0 and reused.flaw is None
    scale = dense.frames.astype(float).std()
    assert np.abs(reused.frames.astype(float) - dense.frames).mean() < 0.5 * scale
    exact = generate(pipeline, request, parse_method("token:theta=1e-12:refresh=none"))  # plans that merge nothing
    assert np.abs(exact.frames.astype(int) - dense.frames).max() <= 1


def modes(generation, layer_of=None):
    """Kinds of the records by step, of one pass each."""
    return {(record["step"], record["pass"], record["kind"]) for record in generation.summary["records"]}


def test_the_second_expert_begins_with_attention_computed_in_full(files):
    pipeline = tiny("WanPipeline")
    begun = []
    handle = pipeline.transformer_2.register_forward_pre_hook(lambda *_: begun.append(1))
    request = small_request(pipeline, files, steps=8)
    events = []

    def note(event):
        events.append(len(begun))

    try:
        generation = generate(pipeline, request, parse_method("token:0.5:refresh=5"), on_step=note)
    finally:
        handle.remove()
    first = next(step for step, calls in enumerate(events) if calls)
    kinds = {record["kind"] for record in generation.summary["records"] if record["step"] == first}
    assert kinds <= {"dense", "refresh"}


def test_reuse_stacks_on_taylorseer_with_two_experts(files):
    pipeline = tiny("WanPipeline")
    generation = generate(pipeline, small_request(pipeline, files), parse_method("token:0.5+taylorseer:2"))
    assert generation.saving["all_steps"] > 0


def test_guidance_that_begins_late_begins_with_attention_computed_in_full(files):
    pipeline = tiny("HunyuanVideo15Pipeline")
    pipeline.guider = diffusers.ClassifierFreeGuidance(guidance_scale=6.0, start=0.5)
    generation = generate(pipeline, small_request(pipeline, files, steps=8), parse_method("token:0.01:refresh=3"))
    first = min(step for step, name, _ in modes(generation) if name == "pred_uncond")
    late = {kind for step, name, kind in modes(generation) if (step, name) == (first, "pred_uncond")}
    assert first == 4 and late <= {"dense", "refresh"}


def test_the_account_is_of_all_sections(files):
    pipeline = tiny("HunyuanVideoFramepackPipeline")
    events = []
    generation = generate(pipeline, small_request(pipeline, files, num_frames=40), TOKEN, on_step=events.append)
    assert [event.step for event in events] == [*range(1, 2 * STEPS + 1)]
    calls = Counter(record["layer"] for record in generation.summary["records"])
    assert set(calls.values()) == {2 * STEPS}


def test_steps_of_sections_are_counted_on(files):
    pipeline, events = tiny("HunyuanVideoFramepackPipeline"), []
    generate(pipeline, small_request(pipeline, files, num_frames=40), DENSE, on_step=events.append)
    counted = [(event.step, event.steps) for event in events]
    assert counted == [(step, STEPS if step <= STEPS else 2 * STEPS) for step in range(1, 2 * STEPS + 1)]
    assert all(event.eta_seconds >= 0 for event in events)


# --- Peers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["HunyuanVideoPipeline", "CogVideoXPipeline", "MochiPipeline", "HunyuanVideo15Pipeline"]
)
def test_output_cache_on_models_that_attend_jointly_to_text(name, files):
    pipeline = tiny(name)
    request = small_request(pipeline, files)
    dense, cached = (generate(pipeline, request, parse_method(text)) for text in ("dense", "output-cache:0.5"))
    assert cached.saving["all_steps"] > 0 and not np.array_equal(cached.frames, dense.frames)
    assert cached.summary["held_bytes"] > 0


@pytest.mark.parametrize("text", ["re-ttention:0.3", "ditfastattn:0.3", "svg:0.4", "output-cache:0.5"])
def test_peers_on_two_experts(text, files):
    pipeline = tiny("WanPipeline")
    generation = generate(pipeline, small_request(pipeline, files, steps=8), parse_method(text))
    assert generation.saving["all_steps"] > 0 and generation.flaw is None


@pytest.mark.parametrize("text", ["re-ttention:0.01", "ditfastattn:0.01", "svg:0.05", "output-cache:0.5"])
def test_peers_where_guidance_begins_late(text, files):
    pipeline = tiny("HunyuanVideo15Pipeline")
    pipeline.guider = diffusers.ClassifierFreeGuidance(guidance_scale=6.0, start=0.5, stop=0.9)
    assert generate(pipeline, small_request(pipeline, files, steps=8), parse_method(text)).flaw is None


@pytest.mark.parametrize("name", ["WanImageToVideoPipeline", "HunyuanVideoPipeline", "CogVideoXPipeline"])
@pytest.mark.parametrize(
    "text", ["skip:0.4", "svg:0.4", "compact:0.4", "ditfastattn:0.3", "re-ttention:0.3", "token-merge:0.4", "token:0.5",
             "tile:0.3", "channel:0.5", "output-cache:0.5", "channel:0.5+svg:0.4"]
)  # fmt: skip
def test_methods_under_autocast(name, text, files):
    pipeline = tiny(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        generation = generate(pipeline, small_request(pipeline, files, steps=5), parse_method(text))
    assert generation.flaw is None and max(generation.saving["per_step"]) > 0


# --- Budgets that cannot be met ---------------------------------------------------------------------------------------


def remarks(pipeline, request, *methods):
    comparison = compare(pipeline, request, [parse_method(text) for text in ("dense", *methods)])
    return [remark for remark in comparison.remarks if "was to be saved" in remark], comparison


def test_a_budget_that_much_text_keeps_from_being_met_is_said_once(files):
    pipeline = tiny("HunyuanVideo15Pipeline")  # 72 tokens of video and 745 of text and picture
    said, comparison = remarks(pipeline, small_request(pipeline, files), "token:0.5", "token:0")
    reached = comparison.generations[1].saving["reuse_steps"]
    assert reached < 0.4
    assert said == [
        f"token-0.5: 50% of the attention was to be saved and {reached:.0%} was, "
        "as text, a small grid or the refreshes leave no more to save."
    ]


def test_a_budget_that_is_met_is_not_spoken_of(files):
    pipeline = tiny("WanImageToVideoPipeline")
    assert remarks(pipeline, small_request(pipeline, files), "token:0.5", "channel:0.5")[0] == []


def test_why_a_budget_was_not_met():
    storage = {"dtype": "float8_e4m3fn", "device": "cpu", "layers": 3}
    saving = {"kind": "realised", "reuse_steps": 0.21, "all_steps": 0.2, "per_step": [0.2]}
    summary = {
        "storage": storage,
        "layers": 8,
        "records": [{"kind": "reuse"}],
        "saving": saving,
        "granularity": "token",
        "chosen": None,
    }
    clip = np.zeros((1, 16, 16, 3), np.uint8)
    limited = Generation(TOKEN, clip, {}, saving, summary)
    assert limited.shortfall == (
        "50% of the attention was to be saved and 21% was, as memory was enough for the errors of 3 of 8 layers"
    )
    none, near = ({"saving": saving | {"reuse_steps": share}} for share in (0.0, 0.49))
    dense = Generation(TOKEN, clip, {}, none["saving"], summary | none | {"records": []})
    assert dense.shortfall.endswith("0% was, as attention stayed dense")
    assert Generation(TOKEN, clip, {}, near["saving"], summary | near).shortfall is None
    assert Generation(DENSE, clip, {}, None, summary).shortfall is None
