import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from timeripple.clips.generate import Cancelled, Request, generate
from timeripple.clips.methods import parse_method
from timeripple.inspection.probe import capture, inspect_clip, inspect_request
from timeripple.inspection.reports import head_report, rope_frequencies

REQUEST = Request("a red ball", steps=4, num_frames=5, height=32, width=48)


def test_captures_are_what_attention_gets(tiny_pipeline):
    outputs = []
    projection = tiny_pipeline.transformer.blocks[1].attn1.to_out[0]
    handle = projection.register_forward_pre_hook(lambda module, arguments: outputs.append(arguments[0].clone()))
    captures = capture(tiny_pipeline, REQUEST, {0, 2})
    handle.remove()
    assert [(c.step, c.layer) for c in captures] == [
        (step, f"blocks.{layer}.attn1") for step in (0, 2) for layer in (0, 1)
    ]
    assert len(outputs) == 2 * 3  # two passes, and it stopped after step 2 of 4
    for c, output in zip(captures[1::2], (outputs[0], outputs[4]), strict=True):
        assert c.grid.shape == (2, 4, 6) and c.query.shape == (1, 2, 48, 24)
        expected = scaled_dot_product_attention(c.query, c.key, c.value).transpose(1, 2).flatten(2)
        torch.testing.assert_close(output, expected)
    assert not hasattr(tiny_pipeline.transformer, "_diffusers_hook")


def test_heads_are_told_by_what_attention_does(tiny_pipeline):
    captures = capture(tiny_pipeline, REQUEST, {0, 2})
    rows = head_report(captures)
    assert len(rows) == 2 * 2 * 2  # steps, layers, heads
    for row in rows:
        c = next(c for c in captures if (c.step, c.layer) == (row["step"], row["layer"]))
        query, key = (x[0, row["head"]].double() for x in (c.query, c.key))
        weights = (query @ key.T / 24**0.5).softmax(-1)  # all 48 queries: fewer than are drawn
        tokens = torch.arange(48)
        own_frame = (weights * (tokens // 24 == tokens[:, None] // 24)).sum(-1).mean()
        own_place = (weights * (tokens % 24 == tokens[:, None] % 24)).sum(-1).mean()
        assert row["spatial"] == pytest.approx(2 * own_frame.item(), abs=2e-4)
        assert row["temporal"] == pytest.approx(24 * own_place.item(), abs=2e-4)
        entropy = -(weights * weights.log()).sum(-1).mean() / np.log(48)
        assert row["entropy"] == pytest.approx(entropy.item(), abs=2e-4)


def test_only_the_layers_asked_for(tiny_pipeline):
    captures = capture(tiny_pipeline, REQUEST, [1], ["blocks.1.attn1"])
    assert [(c.step, c.layer) for c in captures] == [(1, "blocks.1.attn1")]


@pytest.mark.parametrize("steps", [{4}, {-1, 2}, ()])
def test_steps_that_do_not_exist_are_refused(tiny_pipeline, steps):
    with pytest.raises(ValueError, match="give some from 0 to 3"):
        capture(tiny_pipeline, REQUEST, steps)


def test_progress_and_stop(tiny_pipeline):
    steps = []
    with pytest.raises(Cancelled):
        capture(tiny_pipeline, REQUEST, {3}, on_step=lambda *n: steps.append(n), should_stop=lambda: len(steps) == 2)
    assert steps == [(1, 4), (2, 4)]
    assert not hasattr(tiny_pipeline.transformer, "_diffusers_hook")


def test_a_request_that_is_looked_into_is_kept_with_its_clip(tiny_pipeline, tmp_path):
    captures = capture(tiny_pipeline, REQUEST, {1, 3})
    seen = inspect_request(tiny_pipeline, REQUEST, [1, 3], tmp_path)
    assert (seen.steps, seen.kept, seen.layers) == (4, (1, 3), ("blocks.0.attn1", "blocks.1.attn1"))
    for c in captures:
        layer = seen.layers.index(c.layer)
        for loaded, kept in zip(seen.qkv(c.step, layer), (c.query, c.key, c.value), strict=True):
            torch.testing.assert_close(loaded, kept[0], rtol=1e-3, atol=1e-3)
        assert torch.equal(seen.qkv(c.step, layer, 1), seen.qkv(c.step, layer)[:, 1])
    assert np.array_equal(seen.frames, generate(tiny_pipeline, REQUEST, parse_method("dense")).frames)


def test_a_clip_is_noised_as_it_would_be_at_each_step(tiny_pipeline, tmp_path):
    """The first transformer input must be (1 - sigma) * latents + sigma * noise, at the timestep of the step."""
    clip = np.random.default_rng(0).integers(0, 256, (7, 32, 48, 3), np.uint8)
    seen_inputs = []
    handle = tiny_pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen_inputs.append((kwargs["hidden_states"][:, :8].clone(), kwargs["timestep"])),
        with_kwargs=True,
    )
    seen = inspect_clip(tiny_pipeline, clip, 5, [0, 3], 7, tmp_path)
    handle.remove()
    assert (seen.steps, seen.kept, seen.grid.shape) == (5, (0, 3), (2, 4, 6))
    assert np.array_equal(seen.frames, clip[:5])  # two latent frames; a third would take nine
    frames = torch.from_numpy(clip[:5]).permute(3, 0, 1, 2)[None] / 127.5 - 1
    latents = tiny_pipeline.encode(frames)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(7))
    tiny_pipeline.scheduler.set_timesteps(5)
    for (noisy, timestep), step in zip(seen_inputs, (0, 3), strict=True):
        sigma = tiny_pipeline.scheduler.sigmas[step]
        torch.testing.assert_close(noisy, (1 - sigma) * latents + sigma * noise)
        assert timestep.item() == pytest.approx(1000 * sigma.item())


def test_a_clip_that_does_not_fit_is_one_sentence(tiny_pipeline, tmp_path):
    with pytest.raises(ValueError, match="height is 33; give a multiple of 8"):
        inspect_clip(tiny_pipeline, np.zeros((5, 33, 48, 3), np.uint8), 5, [0], 0, tmp_path)
    with pytest.raises(ValueError, match="has 4 frames; take one of at least 5"):
        inspect_clip(tiny_pipeline, np.zeros((4, 32, 48, 3), np.uint8), 5, [0], 0, tmp_path)
    with pytest.raises(Cancelled):
        inspect_clip(tiny_pipeline, np.zeros((5, 32, 48, 3), np.uint8), 5, [0], 0, tmp_path, should_stop=lambda: True)
    assert not hasattr(tiny_pipeline.transformer, "_diffusers_hook")


def test_rope_frequencies_are_those_of_the_model(tiny_pipeline):
    """RoPE turns channel c of the token at position p by p * frequency; its cosine at p = 1 says the frequency."""
    transformer = tiny_pipeline.transformer
    cosine = transformer.rope.freqs_cos[1].double()
    channels = rope_frequencies(transformer)
    sizes = transformer.rope.t_dim, transformer.rope.h_dim, transformer.rope.w_dim
    assert [axis for axis, _ in channels] == ["t"] * sizes[0] + ["y"] * sizes[1] + ["x"] * sizes[2]
    frequencies = torch.tensor([frequency for _, frequency in channels], dtype=torch.float64)
    torch.testing.assert_close(frequencies.cos(), cosine, rtol=0, atol=1e-6)


def test_what_an_earlier_run_left_in_the_folder_is_not_read(tiny_pipeline, tmp_path):
    first, second = (
        Request(text, steps=2, num_frames=5, height=32, width=32) for text in ("a red ball", "a blue cube")
    )
    inspect_request(tiny_pipeline, first, {0, 1}, tmp_path, bits=8)
    seen = inspect_request(tiny_pipeline, second, {1}, tmp_path)
    (exact, *_) = capture(tiny_pipeline, second, {1})
    qkv = torch.stack([exact.query[0], exact.key[0], exact.value[0]]).float()
    assert torch.allclose(seen.qkv(1, 0), qkv, atol=1e-2, rtol=1e-3)
    assert (
        {path.name for path in tmp_path.glob("0-*.npy")} == set() == {path.name for path in tmp_path.glob("*scales*")}
    )
