"""Every family on a tiny random model of its real class: grid, text, exactness, isolation, and nothing left behind."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import diffusers
import pytest
import torch

from timeripple import ReuseConfig, disable, enable, summary
from timeripple.attention.grid import TokenGrid
from timeripple.attention.method import ConfigError
from timeripple.hooks import FAMILIES, family_of
from timeripple.hooks.families import GENERIC
from timeripple.hooks.masks import read_mask

STEPS = 4
TOKEN = ReuseConfig("token", theta=1.0, refresh=2, dense_first=0.25, dense_last=1)
FRAMES, HEIGHT, WIDTH, CHANNELS, TEXT, TEXT_DIM = 3, 8, 12, 4, 5, 16
BCFHW, BFCHW = (CHANNELS, FRAMES, HEIGHT, WIDTH), (FRAMES, CHANNELS, HEIGHT, WIDTH)


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Tiny:
    """A family: settings of its class, its latents, the arguments beside them, and where its tokens are.

    arguments(batch, text): text [batch, TEXT, TEXT_DIM] in the places the model reads it from. grid: with one sample
    or with two, whose second text is shorter; patch: (t, y, x); sees_text: whether self-attention sees text.
    """

    settings: dict
    arguments: callable
    layers: list
    grid: TokenGrid
    latents: tuple = BCFHW
    patch: tuple = (1, 2, 2)
    rope: tuple | None = None

    @property
    def sees_text(self):
        return self.grid.tokens > self.grid.video_tokens

    def inputs(self, name="cond", step=0, batch=1):
        """Latents that change slowly from step to step, and the text of the pass."""
        latents = randn(0, 1, *self.latents) + 0.1 * step * randn(1, 1, *self.latents)
        latents = torch.cat([latents, randn(2, 1, *self.latents)])[:batch]
        text = randn(len(name), 2, TEXT, TEXT_DIM)[:batch]
        timestep = torch.full((batch,), 1000.0 - 100 * step)
        return {"hidden_states": latents, "timestep": timestep, "return_dict": False} | self.arguments(batch, text)


def text_mask(batch):
    """All of the first sample's text, three tokens of the second's."""
    return torch.tensor([[1] * TEXT, [1, 1, 1] + [0] * (TEXT - 3)])[:batch]


def only_text(batch, text):
    return {"encoder_hidden_states": text}


def hunyuan_arguments(batch, text):
    return {
        "encoder_hidden_states": text,
        "encoder_attention_mask": text_mask(batch),
        "pooled_projections": randn(9, 2, 8)[:batch],
        "guidance": torch.full((batch,), 6000.0),
    }


def framepack_arguments(batch, text):
    return hunyuan_arguments(batch, text) | {
        "image_embeds": randn(8, 2, 2, 8)[:batch],
        "indices_latents": torch.arange(3, 3 + FRAMES),
        "latents_clean": randn(7, 2, CHANNELS, 1, HEIGHT, WIDTH)[:batch],
        "indices_latents_clean": torch.zeros(1),
        "latents_history_2x": randn(6, 2, CHANNELS, 2, HEIGHT, WIDTH)[:batch],
        "indices_latents_history_2x": torch.arange(2),
        "latents_history_4x": randn(5, 2, CHANNELS, 4, HEIGHT, WIDTH)[:batch],
        "indices_latents_history_4x": torch.arange(4),
    }


def hunyuan15_arguments(batch, text):
    return {
        "encoder_hidden_states": text,
        "encoder_attention_mask": text_mask(batch),
        "encoder_hidden_states_2": randn(7, 2, 3, 8)[:batch],
        "encoder_attention_mask_2": torch.ones(batch, 3),
        "image_embeds": torch.zeros(batch, 2, 8),
    }


HEADS = {"num_attention_heads": 2, "attention_head_dim": 24, "in_channels": CHANNELS, "out_channels": CHANNELS}
WAN = HEADS | {"text_dim": TEXT_DIM, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32}
HUNYUAN = HEADS | {
    "text_embed_dim": TEXT_DIM,
    "pooled_projection_dim": 8,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "rope_axes_dim": (4, 10, 10),
}
VIDEO = (FRAMES, HEIGHT // 2, WIDTH // 2)
TWO_BLOCKS = ["transformer_blocks.0.attn1", "transformer_blocks.1.attn1"]
HUNYUAN_LAYERS = ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"]
PACKED = WIDTH // 2 * HEIGHT // 2  # tokens of a frame, of which history keeps 1, 1/8 and 1/64
WAN_TINY = Tiny(WAN, only_text, ["blocks.0.attn1", "blocks.1.attn1"], TokenGrid(*VIDEO), rope=(8, 8, 8))

TINY = {
    "WanTransformer3DModel": WAN_TINY,
    "SkyReelsV2Transformer3DModel": WAN_TINY,
    "HunyuanVideoTransformer3DModel": Tiny(
        HUNYUAN, hunyuan_arguments, HUNYUAN_LAYERS, TokenGrid(*VIDEO, text_after=TEXT), rope=(4, 10, 10)
    ),
    "HunyuanVideo15Transformer3DModel": Tiny(
        HEADS | {"text_embed_dim": TEXT_DIM, "text_embed_2_dim": 8, "image_embed_dim": 8, "num_layers": 2,
                 "num_refiner_layers": 1, "rope_axes_dim": (4, 10, 10), "patch_size": 1},
        hunyuan15_arguments, ["transformer_blocks.0.attn", "transformer_blocks.1.attn"],
        TokenGrid(FRAMES, HEIGHT, WIDTH, text_after=TEXT + 3 + 2), patch=(1, 1, 1), rope=(4, 10, 10),
    ),
    "HunyuanVideoFramepackTransformer3DModel": Tiny(
        HUNYUAN | {"has_image_proj": True, "image_proj_dim": 8, "has_clean_x_embedder": True},
        framepack_arguments, HUNYUAN_LAYERS, TokenGrid(*VIDEO, text_before=24 + 6 + 2, text_after=TEXT + 2),
        rope=(4, 10, 10),
    ),
    "CogVideoXTransformer3DModel": Tiny(
        HEADS | {"text_embed_dim": TEXT_DIM, "num_layers": 2, "sample_width": WIDTH, "sample_height": HEIGHT,
                 "sample_frames": 9, "max_text_seq_length": TEXT, "time_embed_dim": 8},
        only_text, TWO_BLOCKS, TokenGrid(*VIDEO, text_before=TEXT), BFCHW,
    ),
    "LTXVideoTransformer3DModel": Tiny(
        HEADS | {"caption_channels": TEXT_DIM, "cross_attention_dim": 48, "num_layers": 2},
        lambda batch, text: {
            "encoder_hidden_states": text, "encoder_attention_mask": text_mask(batch),
            "num_frames": FRAMES, "height": HEIGHT, "width": WIDTH,
        },
        TWO_BLOCKS, TokenGrid(FRAMES, HEIGHT, WIDTH), (FRAMES * HEIGHT * WIDTH, CHANNELS), patch=(1, 1, 1),
    ),
    "MochiTransformer3DModel": Tiny(
        HEADS | {"text_embed_dim": TEXT_DIM, "pooled_projection_dim": 16, "num_layers": 2, "time_embed_dim": 8},
        lambda batch, text: {"encoder_hidden_states": text, "encoder_attention_mask": text_mask(batch).bool()},
        TWO_BLOCKS, TokenGrid(*VIDEO, text_after=TEXT),
    ),
    "AllegroTransformer3DModel": Tiny(
        HEADS | {"caption_channels": TEXT_DIM, "cross_attention_dim": 48, "num_layers": 2},
        only_text, TWO_BLOCKS, TokenGrid(*VIDEO),
    ),
    "CosmosTransformer3DModel": Tiny(  # not among the records: the generic one serves it
        HEADS | {"text_embed_dim": TEXT_DIM, "adaln_lora_dim": 8, "num_layers": 2, "max_size": (8, 16, 16),
                 "concat_padding_mask": False, "extra_pos_embed_type": None},
        only_text, TWO_BLOCKS, TokenGrid(*VIDEO),
    ),
}  # fmt: skip
FAMILY = pytest.mark.parametrize("name", TINY)


def make(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(diffusers, name)(**TINY[name].settings).eval().requires_grad_(False)
        for parameter in model.parameters():  # some start at zero and would hide everything behind them
            if not parameter.any():
                parameter.normal_(std=0.1)
        return model


@torch.no_grad()
def denoise(model, passes=("cond", "uncond"), batch=1, steps=STEPS):
    """One run as pipelines make it; the outputs [steps, passes, ...]."""
    tiny, outputs = TINY[type(model).__name__], []
    enabled = getattr(model, "_diffusers_hook", None)
    for step in range(steps):
        for name in passes:
            if hasattr(model, "cache_context"):
                with model.cache_context(name):
                    outputs.append(model(**tiny.inputs(name, step, batch))[0])
            else:
                outputs.append(model(**tiny.inputs(name, step, batch))[0])
    if enabled:
        enabled.reset_stateful_hooks()
    return torch.stack(outputs).unflatten(0, (steps, len(passes)))


def switch_on(model, config, total=STEPS):
    enable(model, config, num_inference_steps=total)


def hooked(model):
    return [n for n, m in model.named_modules() if hasattr(m, "_diffusers_hook") or "forward" in vars(m)]


@dataclass
class Watch:
    """A config whose runs leave attention alone and keep what they see."""

    label: str = "watch"
    granularity: str = "watch"
    calls: list = field(default_factory=list)
    records = ()
    held_bytes = 0

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

    def saving(self):
        return {}


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
    assert {*FAMILIES} - {*TINY} == {"WanVACETransformer3DModel"}  # its self-attention is Wan's, see below


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


def test_a_grid_that_is_not_told_leaves_attention_dense():
    model = make("LTXVideoTransformer3DModel")
    inputs = TINY["LTXVideoTransformer3DModel"].inputs() | {"video_coords": randn(3, 1, 3, FRAMES * HEIGHT * WIDTH)}
    inputs |= dict.fromkeys(("num_frames", "height", "width"))
    with torch.no_grad():
        dense = model(**inputs)[0]
        switch_on(model, TOKEN)
        with pytest.warns(UserWarning, match="num_frames, height and width are not told"):
            assert torch.equal(model(**inputs)[0], dense)


def test_linear_attention_of_an_unknown_model_stays_as_it_is():
    settings = HEADS | {"num_layers": 1, "caption_channels": TEXT_DIM, "cross_attention_dim": 48,
                        "num_cross_attention_heads": 2, "cross_attention_head_dim": 24}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.SanaVideoTransformer3DModel(**settings).eval().requires_grad_(False)
    inputs = WAN_TINY.inputs()
    with torch.no_grad():
        dense = model(**inputs)[0]
        switch_on(model, TOKEN)
        with pytest.warns(UserWarning, match="calls scaled_dot_product_attention 0 times"):
            assert torch.equal(model(**inputs)[0], dense)


def test_what_is_no_video_transformer_is_refused():
    with pytest.raises(ConfigError, match="has no supported transformer"):
        enable(torch.nn.TransformerEncoderLayer(8, 2), TOKEN)


def test_presets_name_their_source():
    assert all(family.preset[1].split(":")[0] in ("paper", "ours", "default") for family in FAMILIES.values())
    config, source = FAMILIES["HunyuanVideoTransformer3DModel"].preset
    steps = config.schedule(50)
    assert source.startswith("paper") and [s.index for s in steps if s.in_window] == list(range(10, 49))
    assert (steps[10].theta, steps[20].theta, steps[30].theta) == pytest.approx((0.2, 0.5, 0.5))


MASK_GRID = TokenGrid(1, 2, 2, text_before=1, text_after=2)
HIDES_LAST = torch.tensor([1, 1, 1, 1, 1, 1, 0]).bool()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, None),
        (torch.ones(1, 1, 1, 7, dtype=torch.bool), None),
        (torch.zeros(1, 1, 7, 7), None),
        (HIDES_LAST.view(1, 1, 1, 7), HIDES_LAST),
        (torch.where(HIDES_LAST, 0.0, -10_000.0).expand(2, 2, 1, 7), HIDES_LAST),
        ((HIDES_LAST & HIDES_LAST[:, None]).view(1, 1, 7, 7), HIDES_LAST),
    ],
)
def test_masks_that_hide_text_keys_are_read(mask, expected):
    found = read_mask(mask, 2, MASK_GRID)
    assert found is None if expected is None else torch.equal(found, expected.expand(2, 7))


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (torch.full((1, 1, 1, 7), -0.5), "weighs"),
        (torch.ones(7, 7).tril().bool().view(1, 1, 7, 7), "differs between video tokens"),
        (torch.stack([HIDES_LAST, ~HIDES_LAST]).view(1, 2, 1, 7), "heads"),
        (~HIDES_LAST.view(1, 1, 1, 7), "hides video"),
        (torch.ones(7, 7).index_fill(0, torch.tensor([0]), 0).bool().view(1, 1, 7, 7), "text and video"),
    ],
)
def test_masks_that_cannot_be_honoured_are_refused(mask, reason):
    with pytest.raises(ValueError, match=reason):
        read_mask(mask, 1, MASK_GRID)
