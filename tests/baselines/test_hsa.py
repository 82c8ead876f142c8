"""HSA against a transformer of Wan written down anew, in which tokens that rest leave their keys and values."""

import pytest
import torch

from timeripple.attention.method import ConfigError
from timeripple.baselines.hsa import HsaConfig
from timeripple.bench.tiny import tiny
from timeripple.clips.methods import parse_method
from timeripple.pond.model import with_coordinates

STEPS, SHAPE = 10, (1, 8, 2, 4, 6)
TOKENS, WIDTH, LAYERS, HEADS = 2 * 4 * 6, 48, 2, 2
SIZES = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": STEPS, "output_type": "latent"}


def test_steps_at_which_all_tokens_are_active():
    assert HsaConfig(0.25, 3).full(20) == {0, 1, 4, 7, 10, 13, 16, 18, 19}
    assert HsaConfig(0.25, 4, start=0.3, end=0.0).full(10) == {0, 1, 2, 6}
    assert HsaConfig(0.25, 1).full(6) == {*range(6)} and HsaConfig().full(1) >= {0}


def split(x):
    return x.unflatten(2, (HEADS, -1)).transpose(1, 2)


def turned(x, rotary):
    """RoPE on pairs of channels, as a complex product. x: [1, heads, tokens, d]; rotary: cos, sin [1, tokens, 1, d]."""
    angle = torch.complex(rotary[0][0, :, 0, ::2].double(), rotary[1][0, :, 0, 1::2].double())
    return torch.view_as_real(torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * angle).flatten(-2).to(x.dtype)


def velocity_of(model, latents, timestep, text, rows, kept):
    """Of the tokens `rows`, [rows, channels]; kept: keys and values by block, of which those of `rows` are renewed."""
    x = with_coordinates(latents)
    rotary = [part[:, rows] for part in model.rope(x)]
    hidden = model.patch_embedding(x).flatten(2).transpose(1, 2)[:, rows]
    embedding, modulation, text, _ = model.condition_embedder(timestep.expand(1), text, None)
    for number, block in enumerate(model.blocks):
        parts = (block.scale_shift_table + modulation.unflatten(1, (6, -1))).chunk(6, 1)
        attention, normed = block.attn1, block.norm1(hidden) * (1 + parts[1]) + parts[0]
        query = turned(split(attention.norm_q(attention.to_q(normed))), rotary)
        keys, values = kept.setdefault(number, [torch.zeros(1, HEADS, TOKENS, WIDTH // HEADS) for _ in range(2)])
        keys[:, :, rows] = turned(split(attention.norm_k(attention.to_k(normed))), rotary)
        values[:, :, rows] = split(attention.to_v(normed))
        seen = (query @ keys.mT * (WIDTH // HEADS) ** -0.5).softmax(-1) @ values
        hidden = hidden + attention.to_out[0](seen.transpose(1, 2).flatten(2)) * parts[2]
        hidden = hidden + block.attn2(block.norm2(hidden), text)
        hidden = hidden + block.ffn(block.norm3(hidden) * (1 + parts[4]) + parts[3]) * parts[5]
    shift, scale = (model.scale_shift_table + embedding[:, None]).chunk(2, 1)
    return model.proj_out(model.norm_out(hidden) * (1 + scale) + shift)[0]


@torch.no_grad()
def allocated(pipeline, share, divisor):
    """The latents that come of it with Euler and no guidance, and how many tokens were active at every step."""
    scheduler, model = pipeline.scheduler, pipeline.transformer
    scheduler.set_timesteps(STEPS)
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    text, _ = pipeline.encode_prompt("a red ball", None)
    kept, active, full = {}, [], HsaConfig(share, divisor).full(STEPS)
    velocity, before, change = torch.zeros(TOKENS, 8), None, None
    for step, timestep in enumerate(scheduler.timesteps):
        everything = step in full
        rows = (
            torch.arange(TOKENS) if everything else change.argsort(descending=True)[: round(share * TOKENS)].sort()[0]
        )
        active.append(len(rows))
        velocity = velocity.clone()
        velocity[rows] = velocity_of(model, latents, timestep, text, rows, kept)
        if everything:
            change = None if before is None else (velocity - before).abs().sum(1) / before.abs().sum(1)
            before = velocity
        moved = scheduler.sigmas[step + 1] - scheduler.sigmas[step]
        latents = latents + moved * velocity.T.reshape(SHAPE)
    return latents, active


def generate(pipeline, **changes):
    return pipeline("a red ball", generator=torch.Generator().manual_seed(0), **SIZES | changes).frames


@pytest.mark.parametrize(("share", "divisor"), [(0.25, 3), (0.5, 2), (1.0, 3)])
def test_active_tokens_meet_all_and_others_go_on_with_their_velocity(tiny_pipeline, share, divisor):
    expected, active = allocated(tiny_pipeline, share, divisor)
    method = parse_method(f"hsa:{share}:divisor={divisor}")
    with method.applied(tiny_pipeline, STEPS) as summarise:
        latents = generate(tiny_pipeline, guidance_scale=1.0)
        numbers = summarise()
    torch.testing.assert_close(latents, expected, atol=2e-4, rtol=1e-3)
    assert numbers["saving"]["per_step"] == pytest.approx([1 - rows / TOKENS for rows in active])
    dense = generate(tiny_pipeline, guidance_scale=1.0)
    assert (share == 1.0) == torch.allclose(latents, dense, atol=1e-4)


def test_keys_and_values_are_counted(tiny_pipeline):
    with parse_method("hsa:0.25:divisor=3").applied(tiny_pipeline, STEPS) as summarise:
        generate(tiny_pipeline)
        held = summarise()["held_bytes"]
    pairs, velocities = 2 * LAYERS * TOKENS * WIDTH * 4, 2 * TOKENS * 8 * 4
    passes = 2
    assert passes * (pairs + velocities) <= held <= 1.1 * passes * (pairs + velocities)


def test_the_first_pass_chooses_for_all(tiny_pipeline):
    sizes = []
    with (
        parse_method("hsa:0.25:divisor=3").applied(tiny_pipeline, STEPS),
        tiny_pipeline.transformer.blocks[1].ffn.register_forward_hook(lambda _, args, out: sizes.append(out.shape[1])),
    ):
        generate(tiny_pipeline)
    full = HsaConfig(0.25, 3).full(STEPS)
    assert sizes == [TOKENS if step in full else TOKENS // 4 for step in range(STEPS) for _ in range(2)]


@pytest.mark.parametrize("text", ["hsa", "lightning-cp"])
def test_other_transformers_are_refused(text):
    with (
        pytest.raises(ConfigError, match=r"LTXPipeline has a LTXVideoTransformer3DModel; choose another"),
        parse_method(text).applied(tiny("LTXPipeline"), 4),
    ):
        pass


def test_it_stacks_on_nothing():
    with pytest.raises(ConfigError, match=r"hsa-0.25 stacks on nothing, but this is 'token:0.5\+hsa'; give it alone"):
        parse_method("token:0.5+hsa")


@pytest.mark.parametrize(
    ("text", "message"),
    [("hsa:0", "share 0"), ("hsa:divisor=0", "divisor 0"), ("hsa:end=2", "end 2"), ("hsa:2", "share 2")],
)
def test_errors_are_one_sentence_that_names_the_value(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_method(text)
