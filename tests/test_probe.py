import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from timeripple.generate import Cancelled, Request
from timeripple.probe import capture, load_layer, rope_frequencies, save_captures

REQUEST = Request("a red ball", steps=4, num_frames=2, height=32, width=48)


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


def test_saved_captures_come_back_head_by_head(tiny_pipeline, tmp_path):
    captures = capture(tiny_pipeline, REQUEST, {1})
    save_captures(captures, tmp_path)
    for c in captures:
        for head in range(2):
            query, key, value = load_layer(tmp_path, 1, c.layer, head)
            for loaded, kept in ((query, c.query), (key, c.key), (value, c.value)):
                torch.testing.assert_close(loaded, kept[0, head], rtol=1e-3, atol=1e-3)


def test_rope_frequencies_are_those_of_the_model(tiny_pipeline):
    """RoPE turns channel c of the token at position p by p * frequency; its cosine at p = 1 says the frequency."""
    transformer = tiny_pipeline.transformer
    cosine = transformer.rope.freqs_cos[1].double()
    channels = rope_frequencies(transformer)
    sizes = transformer.rope.t_dim, transformer.rope.h_dim, transformer.rope.w_dim
    assert [axis for axis, _ in channels] == ["t"] * sizes[0] + ["y"] * sizes[1] + ["x"] * sizes[2]
    frequencies = torch.tensor([frequency for _, frequency in channels], dtype=torch.float64)
    torch.testing.assert_close(frequencies.cos(), cosine, rtol=0, atol=1e-6)
