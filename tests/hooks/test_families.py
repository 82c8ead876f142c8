"""Every family on a tiny random model of its real class: grid, text, exactness, isolation, and nothing left behind."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import diffusers
import pytest
import torch

from tests.hooks.tiny import (
    BCFHW,
    BFCHW,
    FRAMES,
    HEADS,
    HEIGHT,
    STEPS,
    TEXT,
    TEXT_DIM,
    TINY,
    VIDEO,
    WAN,
    WAN_TINY,
    WIDTH,
    denoise,
    hooked,
    make,
    randn,
)
from timeripple import ReuseConfig, disable, enable, summary
from timeripple.attention.grid import TokenGrid
from timeripple.attention.method import ConfigError
from timeripple.hooks import FAMILIES, family_of
from timeripple.hooks.families import GENERIC

TOKEN = ReuseConfig("token", theta=1.0, refresh=2, dense_first=0.25, dense_last=1)
FAMILY = pytest.mark.parametrize("name", TINY)


def switch_on(model, config, total=STEPS):
    enable(model, config, num_inference_steps=total)


@dataclass
class Watch:
    """A config whose runs leave attention alone and keep what they see."""

    label: str = "watch"
    granularity: str = "watch"
    calls: list = field(default_factory=list)
    records = steps = ()
    held_bytes = 0
    kind = "realised"

    def start(self, num_inference_steps):
        return self

    def begin_forward(self, name, step):
        self.step = step

    def attention(self, layer, call):
        self.calls.append((layer, call.value.clone(), call.grid, call.key_mask))
        mask = None if call.key_mask is None else call.key_mask[:, None, None]
        qkv = call.query, call.key, call.value
        return torch.nn.functional.scaled_dot_product_attention(*qkv, mask, scale=call.scale)

    def end_forward(self):
        pass


@torch.no_grad()
def watched(model, inputs):
    """What the first layer's attention is given: value, grid and mask of every call."""
    watch = Watch()
    switch_on(model, watch)
    model(**inputs)
    disable(model)
    first = watch.calls[0][0]
    return [call[1:] for call in watch.calls if call[0].split("[")[0] == first]


def changed_rows(before, after):
    """Rows of [1, heads, tokens, d] that differ."""
    return ((before - after).abs().amax((0, 1, 3)) > 1e-6).nonzero().flatten().tolist()


def test_every_record_is_tested():
    # VACE's self-attention is Wan's, see below; Animate's model is tried in its pipeline, see test_inputs.py
    assert {*FAMILIES} - {*TINY} == {"WanVACETransformer3DModel", "WanAnimateTransformer3DModel"}


@FAMILY
def test_self_attention_is_found_in_order_and_cross_attention_is_not(name):
    model = make(name)
    assert list(family_of(model).attention_modules(model)) == TINY[name].layers
    assert (family_of(model) is GENERIC) == (name == "CosmosTransformer3DModel")


def test_the_context_blocks_of_vace_are_found():
    model = diffusers.WanVACETransformer3DModel(**WAN, vace_layers=[0], vace_in_channels=4)
    assert sorted(family_of(model).attention_modules(model)) == [
        "blocks.0.attn1",
        "blocks.1.attn1",
        "vace_blocks.0.attn1",
    ]


@FAMILY
@pytest.mark.parametrize("place", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (2, 3, 5)])
def test_a_marked_token_is_where_the_grid_says(name, place):
    tiny, model, (t, y, x) = TINY[name], make(name), place
    plain, marked = tiny.inputs(), tiny.inputs()
    latents = marked["hidden_states"].clone()
    if latents.ndim == 3:
        latents[:, (t * HEIGHT + y) * WIDTH + x] += 1
    else:
        p = tiny.patch
        where = (slice(None), slice(None), t, slice(y * p[1], (y + 1) * p[1]), slice(x * p[2], (x + 1) * p[2]))
        (latents.transpose(1, 2) if tiny.latents == BFCHW else latents)[where] += 1
    ((before, grid, _),) = watched(model, plain)
    ((after, _, _),) = watched(model, marked | {"hidden_states": latents})
    assert grid == tiny.grid
    row = grid.text_before + (t * grid.height + y) * grid.width + x
    assert changed_rows(before, after) == [row]


@pytest.mark.parametrize("name", sorted({*TINY} - {"MochiTransformer3DModel"}))  # its text changes every token
def test_text_is_where_the_grid_says(name):
    tiny, model = TINY[name], make(name)
    plain = tiny.inputs()
    other = plain | {"encoder_hidden_states": plain["encoder_hidden_states"] + 1}
    ((before, grid, _),) = watched(model, plain)
    ((after, _, _),) = watched(model, other)
    rows = changed_rows(before, after)
    assert all(row in grid.text().tolist() for row in rows) and bool(rows) == tiny.sees_text


def test_mochi_leaves_the_padding_of_text_out():
    model = make("MochiTransformer3DModel")
    grids = [grid for _, grid, _ in watched(model, TINY["MochiTransformer3DModel"].inputs(batch=2))]
    assert grids == [TokenGrid(*VIDEO, text_after=TEXT), TokenGrid(*VIDEO, text_after=3)]


@pytest.mark.parametrize("name", ["HunyuanVideoTransformer3DModel", "HunyuanVideoFramepackTransformer3DModel"])
def test_hunyuan_hides_the_padding_of_text(name):
    ((_, grid, mask),) = watched(make(name), TINY[name].inputs(batch=2))
    assert mask.sum(1).tolist() == [grid.tokens, grid.tokens - (TEXT - 3)] and mask[1, grid.video].all()


@FAMILY
@pytest.mark.parametrize("batch", [1, 2])
def test_threshold_0_is_exact(name, batch):
    model = make(name)
    dense = denoise(model, batch=batch)
    switch_on(model, ReuseConfig(theta=0))
    assert torch.equal(denoise(model, batch=batch), dense)
    calls = len(TINY[name].layers) * STEPS * 2
    assert len(summary(model)["records"]) == calls * (batch if name.startswith("Mochi") else 1)


@FAMILY
@pytest.mark.parametrize("batch", [1, 2])
def test_output_differs_when_on_and_is_the_same_after_off(name, batch):
    model = make(name)
    dense = denoise(model, batch=batch)
    before = hooked(model)
    switch_on(model, TOKEN)
    reused = denoise(model, batch=batch)
    assert torch.equal(reused[0], dense[0]) and torch.equal(reused[-1], dense[-1])
    assert not torch.equal(reused[1:-1], dense[1:-1])
    assert torch.nn.functional.mse_loss(reused, dense) < 0.1 * dense.var()
    assert summary(model)["saving"]["reuse_steps"] > 0
    assert torch.equal(denoise(model, batch=batch), reused)  # the state of a run does not reach the next
    disable(model)
    assert [module for module in hooked(model) if module] == [module for module in before if module] == []
    assert torch.equal(denoise(model, batch=batch), dense)


@FAMILY
def test_passes_do_not_see_each_other(name):
    model = make(name)
    switch_on(model, TOKEN)
    alone, both = denoise(model, ["cond"]), denoise(model)
    assert torch.equal(both[:, 0], alone[:, 0]) and not torch.equal(both[:, 1], alone[:, 0])


@FAMILY
def test_samples_of_a_batch_do_not_see_each_other(name):
    model = make(name)
    switch_on(model, TOKEN)
    both, alone = denoise(model, batch=2), denoise(model)
    torch.testing.assert_close(both[:, :, :1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if tiny.rope])
def test_rope_channels_of_an_axis_change_along_it_and_only_along_it(name):
    model, tiny = make(name), TINY[name]
    groups = family_of(model).rope(model)
    assert tuple(group.stop - group.start for group in groups.values()) == tiny.rope
    if "Framepack" in name:
        cosines = model.rope(torch.arange(FRAMES), HEIGHT, WIDTH, "cpu")[0]
    else:
        cosines = model.rope(torch.zeros(1, *BCFHW))[0]
    cosines = cosines.squeeze() if cosines.ndim == 4 else cosines
    planes = TokenGrid(*tiny.grid.shape).unflatten(cosines)
    for axis, group in groups.items():
        changes = {other: planes[..., group].diff(dim=dim).abs().max() > 0 for dim, other in enumerate("tyx")}
        assert [other for other in "tyx" if changes[other]] == [axis]


@pytest.mark.parametrize(("rotary", "sizes"), [(True, [6, 9, 9]), (False, [])])
def test_channels_of_cogvideox(rotary, sizes):
    config = SimpleNamespace(attention_head_dim=24, use_rotary_positional_embeddings=rotary)
    groups = FAMILIES["CogVideoXTransformer3DModel"].rope(SimpleNamespace(config=config))
    assert [group.stop - group.start for group in groups.values()] == sizes


def test_cogvideox_patches_of_two_frames():
    config = SimpleNamespace(patch_size=2, patch_size_t=2)
    latents = {"hidden_states": torch.zeros(1, 5, 4, 8, 12)}
    grid = FAMILIES["CogVideoXTransformer3DModel"].grid(SimpleNamespace(config=config), latents, 3 * 24 + 7)
    assert grid == TokenGrid(3, 4, 6, text_before=7)


def places(*times):
    """Of the tokens of a frame at each of these times, [1, 3, tokens], in seconds and pixels."""
    grid = torch.meshgrid(torch.tensor(times), 32.0 * torch.arange(HEIGHT), 32.0 * torch.arange(WIDTH), indexing="ij")
    return torch.stack(grid).flatten(1)[None]


@pytest.mark.parametrize(
    ("times", "before", "clip", "after"),
    [
        ((0.0, 0.04, 0.36), 0, 3, 0),
        ((0.32, 0.0, 0.04, 0.36), 1, 3, 0),  # LTX' conditions come first
        ((0.0, 0.04, 0.36, 0.0, 0.04, -0.04), 0, 3, 3),  # what its long clips go on from comes last
    ],
)
def test_a_grid_that_is_told_by_places(times, before, clip, after):
    area = HEIGHT * WIDTH
    told = FAMILIES["LTXVideoTransformer3DModel"].grid(None, {"video_coords": places(*times)}, len(times) * area)
    assert told == TokenGrid(clip, HEIGHT, WIDTH, text_before=before * area, text_after=after * area)


def test_a_grid_that_is_not_told_is_refused():
    grid, tokens = FAMILIES["LTXVideoTransformer3DModel"].grid, FRAMES * HEIGHT * WIDTH
    with pytest.raises(ValueError, match="num_frames, height and width are not told"):
        grid(None, {}, tokens)
    for elsewhere in (randn(3, 1, 3, tokens), places(0.0, 0.04), places(0.0, 0.04, 0.36)[:, :, :-1]):
        with pytest.raises(ValueError, match=r"tokens are no frames|not placed in frames, rows and columns"):
            grid(None, {"video_coords": elsewhere}, tokens)


def assert_stays_dense(model, inputs, warning):
    with torch.no_grad():
        dense = model(**inputs)[0]
        switch_on(model, TOKEN)
        with pytest.warns(UserWarning, match=warning):
            assert torch.equal(model(**inputs)[0], dense)


def test_places_that_are_no_grid_leave_attention_dense():
    model = make("LTXVideoTransformer3DModel")
    inputs = TINY["LTXVideoTransformer3DModel"].inputs() | {"video_coords": randn(3, 1, 3, FRAMES * HEIGHT * WIDTH)}
    assert_stays_dense(model, inputs, "not placed in frames, rows and columns")


def test_linear_attention_of_an_unknown_model_stays_as_it_is():
    settings = HEADS | {"num_layers": 1, "caption_channels": TEXT_DIM, "cross_attention_dim": 48,
                        "num_cross_attention_heads": 2, "cross_attention_head_dim": 24}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.SanaVideoTransformer3DModel(**settings).eval().requires_grad_(False)
    assert_stays_dense(model, WAN_TINY.inputs(), "calls scaled_dot_product_attention 0 times")


def test_what_is_no_video_transformer_is_refused():
    with pytest.raises(ConfigError, match="has no supported transformer"):
        enable(torch.nn.TransformerEncoderLayer(8, 2), TOKEN)


def test_presets_name_their_source():
    assert all(family.preset[1].split(":")[0] in ("paper", "ours", "default") for family in FAMILIES.values())
    config, source = FAMILIES["HunyuanVideoTransformer3DModel"].preset
    steps = config.schedule(50)
    assert source.startswith("paper") and [s.index for s in steps if s.in_window] == list(range(10, 49))
    assert (steps[10].theta, steps[20].theta, steps[30].theta) == pytest.approx((0.2, 0.5, 0.5))
