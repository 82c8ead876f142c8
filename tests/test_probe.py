import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from timeripple.generate import Request
from timeripple.probe import capture

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
