from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler

from timeripple.attention.method import ConfigError
from timeripple.clips import generate as generating
from timeripple.clips.generate import Cancelled, Request, generate
from timeripple.clips.methods import parse_method
from timeripple.clips.models import load_pipeline
from timeripple.clips.solvers import SOLVERS, evaluations, solver

REQUEST = Request("a red ball rolling left", steps=5, num_frames=9, height=32, width=40)


@pytest.fixture(scope="module")
def dense(tiny_pipeline):
    return generate(tiny_pipeline, REQUEST, parse_method("dense"))


def test_dense_frames_are_those_of_the_plain_pipeline(tiny_pipeline, dense):
    video = tiny_pipeline(
        REQUEST.prompt,
        num_frames=9,
        height=32,
        width=40,
        num_inference_steps=5,
        generator=torch.Generator().manual_seed(0),
    ).frames[0]
    assert dense.frames.shape == (9, 32, 40, 3) and dense.frames.dtype == np.uint8
    assert np.array_equal(dense.frames, (video * 255).round().astype(np.uint8))


def test_seconds_add_up(dense):
    seconds = dense.seconds
    assert seconds["total"] == pytest.approx(seconds["text"] + seconds["denoise"] + seconds["decode"])
    assert 0 < seconds["plan"] < seconds["attention"] < seconds["denoise"]
    assert min(seconds.values()) > 0 and dense.saving is None


def test_reuse_saves_and_the_pipeline_is_left_as_it_was(tiny_pipeline, dense):
    fast = generate(tiny_pipeline, REQUEST, parse_method("token:0.6"))
    assert fast.saving["kind"] == "realised" and len(fast.saving["per_step"]) == 5
    assert not np.array_equal(fast.frames, dense.frames)
    assert np.array_equal(generate(tiny_pipeline, REQUEST, parse_method("dense")).frames, dense.frames)
    assert not tiny_pipeline.transformer._forward_pre_hooks


def test_seed_and_negative_prompt_matter(tiny_pipeline, dense):
    for other in (replace(REQUEST, seed=1), replace(REQUEST, negative_prompt="a blue cube")):
        assert not np.array_equal(generate(tiny_pipeline, other, parse_method("dense")).frames, dense.frames)


def test_events_count_up_and_the_last_preview_is_the_middle_frame(tiny_pipeline, dense):
    events = []
    generation = generate(tiny_pipeline, REQUEST, parse_method("dense"), on_step=events.append)
    assert [(event.method, event.step, event.steps) for event in events] == [("dense", i, 5) for i in range(1, 6)]
    seconds = [event.seconds for event in events]
    assert seconds == sorted(seconds) and events[-1].eta_seconds == 0 < events[0].eta_seconds
    assert events[0].preview.shape == (32, 40, 3) and events[0].preview.dtype == np.uint8
    assert np.abs(events[-1].preview.astype(int) - dense.frames[4]).max() <= 1
    assert np.array_equal(generation.frames, dense.frames)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_method_takes_steps_and_solver_of_its_own_from_the_same_noise(tiny_pipeline, solver):
    method, events, own = parse_method(f"token:0.5:steps=4:solver={solver}"), [], tiny_pipeline.scheduler
    generation = generate(tiny_pipeline, REQUEST, method, on_step=events.append)
    asked = 7 if solver == "heun" else 4  # Heun asks twice a step, but for the last
    assert [(event.step, event.steps) for event in events] == [(i, asked) for i in range(1, asked + 1)]
    assert len(generation.saving["per_step"]) == asked and tiny_pipeline.scheduler is own
    assert np.abs(events[-1].preview.astype(int) - generation.frames[4]).max() <= 1


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_follows_a_straight_flow_to_its_end_exactly(name):
    """Where the velocity does not change, one way of solving is as good as another: latents end at the clean clip."""
    scheduler = solver(name, FlowMatchEulerDiscreteScheduler(shift=3.0))
    clean, noise = torch.randn(2, 1, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    scheduler.set_timesteps(6)
    assert len(scheduler.timesteps) == evaluations(name, 6) and scheduler.sigmas[-1] == 0
    latents = torch.lerp(clean, noise, float(scheduler.sigmas[0]))
    for index, timestep in enumerate(scheduler.timesteps):
        torch.testing.assert_close(latents, torch.lerp(clean, noise, float(scheduler.sigmas[index])), atol=1e-4, rtol=0)
        latents = scheduler.step(noise - clean, timestep, latents, return_dict=False)[0]
    torch.testing.assert_close(latents, clean, atol=1e-4, rtol=0)


def test_solvers_have_the_shift_of_the_model():
    """sigma' = shift * sigma / (1 + (shift - 1) * sigma) of evenly spaced sigma, for every solver."""
    for name in SOLVERS:
        again = solver(name, solver("unipc", FlowMatchEulerDiscreteScheduler(shift=5.0)))
        again.set_timesteps(6)
        sigma = torch.unique(again.sigmas[again.sigmas > 0]).double()
        gaps = (sigma / (5 - 4 * sigma)).diff()
        torch.testing.assert_close(gaps, gaps.mean().expand(len(sigma) - 1), atol=1e-3, rtol=0)


def test_a_solver_needs_a_flow(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(tiny_pipeline, "scheduler", CogVideoXDDIMScheduler())
    with pytest.raises(ConfigError, match="solver=euler needs flow matching with a fixed shift, which CogVideoXDDIM"):
        generate(tiny_pipeline, REQUEST, parse_method("dense:solver=euler"))


@pytest.mark.parametrize(
    ("latents", "shown", "middle"), [(1, (0, 1), 0), (3, (0, 2), 4), (4, (1, 3), 2), (5, (1, 3), 4)]
)
def test_preview_is_the_clean_clip_of_an_exact_velocity(tiny_pipeline, latents, shown, middle):
    """Of 1, 9, 13 and 17 frames those of number 0, 4, 6 and 8, the second, fourth or only one of their latent frame."""
    tiny_pipeline.scheduler.set_timesteps(5)
    clean, noise = torch.randn(2, 1, 8, latents, 4, 4, generator=torch.Generator().manual_seed(0))
    before = clean + tiny_pipeline.scheduler.sigmas[1] * (noise - clean)
    preview = generating._preview(tiny_pipeline, 1, before, noise - clean)
    expected = generating.to_frames(tiny_pipeline.decode(clean[:, :, slice(*shown)]))[middle]
    assert np.abs(preview.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("stop_after", [0, 2, 5])
def test_cancel_stops_within_one_step(tiny_pipeline, stop_after):
    events = []
    with pytest.raises(Cancelled):
        generate(
            tiny_pipeline,
            REQUEST,
            parse_method("token:0.6"),
            on_step=events.append,
            should_stop=lambda: len(events) >= stop_after,
        )
    assert len(events) == stop_after
    assert not tiny_pipeline.transformer._forward_pre_hooks
    assert not hasattr(tiny_pipeline.transformer, "_diffusers_hook")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "  "}, "empty"),
        ({"prompt": "ball " * 1000}, "5000 characters"),
        ({"prompt": "a red elephant"}, "elephant"),
        ({"negative_prompt": "a red elephant"}, "elephant"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 201}, "steps is 201"),
        ({"height": 100}, "multiple of 8"),
        ({"width": 0}, "multiple of 8"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"num_frames": 20_001, "height": 256, "width": 256}, "tokens"),
        ({"guidance_scale": float("nan")}, "guidance scale is nan"),
    ],
)
def test_bad_requests(tiny_pipeline, change, message):
    with pytest.raises(ValueError, match=message) as error:
        replace(REQUEST, **change).check(tiny_pipeline)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("capability", "dtype"), [("avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("avx2", torch.float32)]
)
def test_load_pipeline_from_a_folder(tiny_pipeline, tmp_path, monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    tiny_pipeline.save_pretrained(tmp_path)
    loaded = load_pipeline(str(tmp_path), device="cpu")
    assert loaded.transformer.blocks[0].ffn.net[0].proj.weight.dtype == dtype
    for part in ("transformer", "vae", "prompt_encoder"):
        weights = getattr(loaded, part).state_dict()
        for name, weight in getattr(tiny_pipeline, part).state_dict().items():
            assert torch.equal(weights[name], weight.to(weights[name].dtype))
            assert part == "transformer" or weights[name].dtype == torch.float32


def test_load_pipeline_without_a_model(tmp_path):
    with pytest.raises(ValueError, match="no model at"):
        load_pipeline(str(tmp_path / "nowhere"))
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_pipeline(str(tmp_path))


def test_cancel_does_not_wait_for_the_end_of_a_step(tiny_pipeline):
    asked = []

    def stop_in_the_first_step() -> bool:
        asked.append(True)
        return len(asked) > 2  # before the run, before the first block

    events = []
    with pytest.raises(Cancelled):
        generate(
            tiny_pipeline, REQUEST, parse_method("dense"), on_step=events.append, should_stop=stop_in_the_first_step
        )
    assert events == [] and len(asked) == 3
    block = tiny_pipeline.transformer.blocks[0]
    assert not block._forward_pre_hooks
