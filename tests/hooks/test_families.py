"""What the records of the families say, against the models themselves."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from timeripple.hooks import FAMILIES


def wan(head_dim=24, patch_size=(1, 2, 2)):
    return WanTransformer3DModel(
        patch_size=patch_size,
        num_attention_heads=1,
        attention_head_dim=head_dim,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=8,
        ffn_dim=8,
        num_layers=2,
        rope_max_seq_len=16,
    )


def test_self_attention_modules_are_found_in_order_and_cross_attention_is_not():
    assert list(FAMILIES["WanTransformer3DModel"].attention_modules(wan())) == ["blocks.0.attn1", "blocks.1.attn1"]


@pytest.mark.parametrize(("head_dim", "sizes"), [(128, [44, 42, 42]), (48, [16, 16, 16]), (24, [8, 8, 8])])
def test_rope_channels(head_dim, sizes):
    groups = FAMILIES["WanTransformer3DModel"].rope(wan(head_dim))
    channels = {axis: list(range(head_dim))[group] for axis, group in groups.items()}
    assert [len(channels[axis]) for axis in "tyx"] == sizes
    assert [*channels["t"], *channels["y"], *channels["x"]] == list(range(head_dim))


@pytest.mark.parametrize("axis", "tyx")
def test_rope_channels_of_an_axis_change_along_it_and_only_along_it(axis):
    model = wan()
    cosines, _ = model.rope(torch.zeros(1, 4, 3, 8, 10))
    grid = FAMILIES["WanTransformer3DModel"].grid(model, {"hidden_states": torch.zeros(1, 4, 3, 8, 10)})
    channels = grid.unflatten(cosines[0, :, 0])[..., FAMILIES["WanTransformer3DModel"].rope(model)[axis]]
    changes = {name: channels.diff(dim=dim).abs().max() > 0 for dim, name in enumerate("tyx")}
    assert [name for name in "tyx" if changes[name]] == [axis]
