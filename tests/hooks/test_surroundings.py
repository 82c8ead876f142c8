"""enable and disable amid what users do to their models: precision, offloading, adapters, compilation, guidance."""

import accelerate
import diffusers
import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks import apply_group_offloading

from tests.hooks.pipelines import build, generate
from timeripple import ReuseConfig, disable, enable, summary
from timeripple.clips.methods import parse_method
from timeripple.hooks.processor import ReuseProcessor

STEPS = 4
TOKEN = ReuseConfig("token", theta=1.0, refresh=2, dense_first=0.25, dense_last=1)
LAYERS = 2


@pytest.fixture
def model():
    return make()


def make(in_channels=4):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=24, in_channels=in_channels, out_channels=4, text_dim=16,
            freq_dim=32, ffn_dim=32, num_layers=LAYERS, rope_max_seq_len=32,
        )  # fmt: skip
        return model.eval().requires_grad_(False)


@torch.no_grad()
def denoise(model, passes=("cond", "uncond"), batch=1, channels=4, size=(8, 12), dtype=torch.float32):
    outputs = []
    for step in range(STEPS):
        noise = [torch.randn(1, channels, 3, *size, generator=torch.Generator().manual_seed(n)) for n in (0, 1)]
        for name in passes:
            text = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(len(name))).expand(batch, -1, -1)
            with model.cache_context(name, step_index=step, num_inference_steps=STEPS):
                output = model(
                    hidden_states=(noise[0] + 0.1 * step * noise[1]).expand(batch, -1, -1, -1, -1).to(dtype),
                    timestep=torch.full((batch,), 1000.0 - 100 * step),
                    encoder_hidden_states=text.to(dtype),
                    return_dict=False,
                )[0]
            outputs.append(output)
    model._reset_stateful_cache()
    return torch.stack(outputs)


def differs_and_returns(model, **how):
    """Reuse changes the outputs a little, and without it they are what they were."""
    dense = denoise(model, **how)
    enable(model, TOKEN)
    reused = denoise(model, **how)
    assert summary(model)["saving"]["reuse_steps"] > 0
    assert len(summary(model)["records"]) == STEPS * LAYERS * len(how.get("passes", "12"))
    assert not torch.equal(reused, dense)
    assert torch.nn.functional.mse_loss(reused.float(), dense.float()) < 0.1 * dense.float().var()
    disable(model)
    assert torch.equal(denoise(model, **how), dense)
    return reused


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, dtype):
    differs_and_returns(model.to(dtype), dtype=dtype)


def test_autocast(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        differs_and_returns(model)


@pytest.mark.parametrize("config", ["token:0.5", "tile:0.3", "channel:0.5"])
def test_autocast_gives_attention_one_precision(model, config):
    """Queries and keys are normalised in float32 and values are not; attention itself is in bfloat16."""
    seen = []
    enable(model, config)

    def watch(config, call):
        seen.append((call.query.dtype, call.key.dtype, call.value.dtype, torch.is_autocast_enabled("cpu")))
        return measured(config, call)

    measured = ReuseConfig.measure
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReuseConfig, "measure", watch)
        reused = denoise(model)
    assert reused.isfinite().all() and {*seen} == {(torch.bfloat16,) * 3 + (False,)}


def test_batched_guidance_is_one_pass(model):
    two = differs_and_returns(model, passes=("pass",), batch=2)
    assert torch.equal(two[:, :1], two[:, 1:])  # both samples alike


def test_a_distilled_model_makes_one_pass(model):
    differs_and_returns(model, passes=("cond",))


def test_image_to_video_has_more_channels():
    differs_and_returns(make(in_channels=9), channels=9)


def test_sizes_may_change_from_call_to_call(model):
    small, large = denoise(model), denoise(model, size=(16, 12))
    enable(model, TOKEN)
    first = denoise(model)
    assert denoise(model, size=(16, 12)).shape == large.shape and first.shape == small.shape
    assert torch.equal(denoise(model), first)


def test_group_offloading(model):
    expected = differs_and_returns(model)
    apply_group_offloading(
        model, onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level"
    )
    assert torch.equal(differs_and_returns(model), expected)


CACHES = ("taylorseer:2:start=1", "first-block-cache:0.3", "pab:2:start=0:end=1000", "delta-dit:2", "forecast:0.5",
          "easycache:0.5", "hsa", "lightning-cp:2")  # fmt: skip


@pytest.mark.parametrize("cache", CACHES)
def test_step_caches_beside_group_offloading(cache):
    """Whose hooks hold weights, which are not the cache's."""
    pipe, inputs = build("wan", "euler")
    dense = generate(pipe, inputs)

    def cached():
        with parse_method(cache).applied(pipe, STEPS) as summarise:
            return generate(pipe, inputs), summarise()["held_bytes"]

    alone, held = cached()
    apply_group_offloading(
        pipe.transformer, onload_device=torch.device("cpu"), offload_device=torch.device("cpu"),
        offload_type="block_level", num_blocks_per_group=1,
    )  # fmt: skip
    for _ in range(2):
        offloaded, held_beside = cached()
        assert torch.equal(offloaded, alone) and held_beside == held > 0
        assert torch.equal(generate(pipe, inputs), dense)


def test_offloading_by_accelerate(model):
    expected = differs_and_returns(model)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert torch.equal(differs_and_returns(model), expected)


def test_offloading_after_enabling(model):
    expected = differs_and_returns(model)
    enable(model, TOKEN)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert torch.equal(denoise(model), expected)


class LowRank(torch.nn.Module):
    """What LoRA makes of a projection."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        generator = torch.Generator().manual_seed(0)
        self.down = torch.nn.Parameter(torch.randn(2, base.in_features, generator=generator))
        self.up = torch.nn.Parameter(torch.randn(base.out_features, 2, generator=generator) / 10)

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("loaded", ["before", "after"])
def test_adapters(model, loaded):
    plain = denoise(model)
    if loaded == "after":
        enable(model, TOKEN)
    for block in model.blocks:
        block.attn1.to_q = LowRank(block.attn1.to_q)
    if loaded == "after":
        reused = denoise(model)
        disable(model)
        assert torch.equal(differs_and_returns(model), reused)
    else:
        differs_and_returns(model)
    assert not torch.equal(denoise(model), plain)


@pytest.mark.filterwarnings("error:Attention stays dense")
def test_projections_that_are_fused_and_taken_apart_again():
    """diffusers keeps the processors of before, ours among them, and puts them back."""
    pipe, inputs = build("cogvideox", "euler")
    dense = generate(pipe, inputs)
    enable(pipe, TOKEN)
    reused = generate(pipe, inputs)
    pipe.transformer.fuse_qkv_projections()
    torch.testing.assert_close(generate(pipe, inputs), reused)
    disable(pipe)
    pipe.transformer.unfuse_qkv_projections()
    for _ in range(2):
        enable(pipe, "token:0.5")
        enable(pipe, TOKEN)
        assert torch.equal(generate(pipe, inputs), reused)
        disable(pipe)
        assert torch.equal(generate(pipe, inputs), dense)
    assert not any(isinstance(module.processor, ReuseProcessor) for module in attentions(pipe.transformer))


def attentions(transformer):
    return [module for module in transformer.modules() if hasattr(module, "processor")]


def test_training_mode_stays_dense(model):
    model.train()
    dense = denoise(model)
    enable(model, TOKEN)
    with pytest.warns(UserWarning, match="training mode") as warnings:
        assert torch.equal(denoise(model), dense)
    assert len([w for w in warnings if "stays dense" in str(w.message)]) == 1


def test_memory_is_bounded_and_reported(model):
    enable(model, TOKEN)
    free = denoise(model)
    held = summary(model)["held_bytes"]
    assert summary(model)["storage"] == {"dtype": "float32", "device": "cpu", "layers": 2}
    enable(
        model, TOKEN, memory_limit=2 * 2 * LAYERS * 72 * 48 * 2
    )  # passes, an error and its slope, tokens, channels, bytes
    half = denoise(model)
    assert summary(model)["storage"] == {"dtype": "bfloat16", "device": "cpu", "layers": 2}
    assert summary(model)["held_bytes"] < held and not torch.equal(half, free)
    torch.testing.assert_close(half, free, atol=0.02, rtol=0.02)


def test_wan_2_2_shares_its_steps_between_two_transformers():
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=diffusers.AutoencoderKLWan(
            base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        ),
        scheduler=diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        transformer=make(), transformer_2=make(), boundary_ratio=0.6,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)

    def generate():
        text = {"prompt_embeds": torch.ones(1, 5, 16), "negative_prompt_embeds": torch.zeros(1, 5, 16)}
        sizes = {"height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 6, "output_type": "latent"}
        return pipe(**text, **sizes, generator=torch.Generator().manual_seed(0)).frames

    dense = generate()
    enable(pipe, ReuseConfig(theta=1.0, refresh=2))
    reused = generate()
    records = summary(pipe)["records"]
    assert sorted({record["step"] for record in records}) == list(range(6)) and len(records) == 6 * 2 * LAYERS
    assert not torch.equal(reused, dense) and torch.equal(generate(), reused)
    disable(pipe)
    assert torch.equal(generate(), dense)
