"""Step caches: each leaves out what its source says, is counted, and is gone afterwards."""

import json

import pytest
import torch
from diffusers.hooks import HookRegistry

from timeripple import summary
from timeripple.attention.method import ConfigError
from timeripple.baselines import STEP_CACHES, cache_dit, mag_cache, teacache
from timeripple.baselines.delta_dit import DeltaDitConfig, blocks_of
from timeripple.baselines.mag_cache import magnitude_ratios
from timeripple.clips.methods import parse_method

STEPS = 10
TEXTS = {  # settings that leave something out in a tiny random model
    "pab": "pab:2:end=990",
    "faster-cache": "faster-cache:2:guidance_range=3",
    "first-block-cache": "first-block-cache:0.5",
    "mag-cache": "mag-cache:0.5",
    "taylorseer": "taylorseer:3",
    "delta-dit": "delta-dit:2",
    "forecast": "forecast:0.5",
    "spectrum": "spectrum:0.75:start=3",
    "easycache": "easycache:0.5",
    "teacache": "teacache:0.5",
    "cache-dit": "cache-dit:0.5",
    "hsa": "hsa:0.3:divisor=3",
    "lightning-cp": "lightning-cp:3",
}
SIZES = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": STEPS}
LAYERS = ["blocks.0.attn1", "blocks.1.attn1"]


@pytest.fixture(autouse=True)
def ratios(monkeypatch, tmp_path):
    """Magnitudes that hardly move, so that steps can be left out."""
    path = tmp_path / "ratios.json"
    path.write_text(json.dumps({"ratios": [1.0] * STEPS, "tea_coefficients": [0.0, 0.0, 0.0, 1.0, 0.0]}))
    for module in (mag_cache, teacache):
        monkeypatch.setattr(module, "RATIOS", path)


def generate(pipeline, **changes):
    generator = torch.Generator().manual_seed(0)
    return pipeline("a red ball", generator=generator, output_type="latent", **SIZES | changes).frames


def hooks_of(pipeline):
    registries = {
        n: m._diffusers_hook for n, m in pipeline.transformer.named_modules() if hasattr(m, "_diffusers_hook")
    }
    return {name: list(registry.hooks) for name, registry in registries.items() if registry.hooks}


def computed(summarise):
    """(step, pass, layer) whose attention was computed, and those that were left out."""
    records = summarise()["records"]
    places = [(r["step"], r["pass"], r["layer"], r["kind"] == "cached") for r in records]
    return {p[:3] for p in places if not p[3]}, {p[:3] for p in places if p[3]}


@pytest.mark.parametrize("name", STEP_CACHES)
def test_changes_the_clip_is_counted_and_leaves_nothing_behind(tiny_pipeline, name):
    dense = generate(tiny_pipeline)
    method = parse_method(TEXTS[name])
    with method.applied(tiny_pipeline, STEPS) as summarise:
        cached = generate(tiny_pipeline)
        again = generate(tiny_pipeline)
        numbers = summarise()
    assert not torch.equal(cached, dense) and torch.equal(again, cached)  # and runs do not see each other
    assert torch.nn.functional.mse_loss(cached, dense) < dense.var()
    assert hooks_of(tiny_pipeline) == {} and tiny_pipeline.transformer._cache_config is None
    assert torch.equal(generate(tiny_pipeline), dense)
    records = numbers["records"]
    assert numbers["method"] == method.label and numbers["held_bytes"] > 0
    mean = sum(sum(r["saving"]) / len(r["saving"]) for r in records) / len(records)
    assert numbers["saving"]["all_steps"] == pytest.approx(mean) and 0 < mean < 1
    assert numbers["saving"]["kind"] == "realised" and len(numbers["saving"]["per_step"]) == STEPS


@pytest.mark.parametrize("name", STEP_CACHES)
def test_gone_after_an_error(tiny_pipeline, name):
    with pytest.raises(ZeroDivisionError), parse_method(TEXTS[name]).applied(tiny_pipeline, STEPS):
        raise ZeroDivisionError
    assert hooks_of(tiny_pipeline) == {} and not tiny_pipeline.batched_guidance


@pytest.mark.parametrize("name", sorted({*STEP_CACHES} - {"faster-cache"}))
def test_passes_do_not_read_each_others_caches(tiny_pipeline, name):
    """Without guidance there is one pass; its clip is the conditional one, whatever the other pass keeps."""
    outputs = {}
    for guidance in (1.0, 3.0):
        first_pass = []

        def keep(module, args, kwargs, output, first_pass=first_pass):
            if module._diffusers_hook.get_hook("timeripple").passes[-1] == "cond":
                first_pass.append(output[0])

        with parse_method(TEXTS[name]).applied(tiny_pipeline, STEPS), torch.no_grad():
            hook = tiny_pipeline.transformer.register_forward_hook(keep, with_kwargs=True)
            try:
                generate(tiny_pipeline, guidance_scale=guidance, num_inference_steps=STEPS)
            finally:
                hook.remove()
        outputs[guidance] = first_pass
    assert torch.equal(outputs[1.0][0], outputs[3.0][0]) and len(outputs[1.0]) == len(outputs[3.0]) == STEPS


def test_pab_computes_self_attention_at_every_second_step_of_its_range(tiny_pipeline):
    tiny_pipeline.scheduler.set_timesteps(STEPS)
    inside = [100 < t < 990 for t in tiny_pipeline.scheduler.timesteps.tolist()]
    with parse_method("pab:2:end=990").applied(tiny_pipeline, STEPS) as summarise:
        generate(tiny_pipeline)
        done, left_out = computed(summarise)
    expected = {step for step in range(STEPS) if inside[step] and step % 2}
    assert {step for step, _, _ in left_out} == expected and len(left_out) == len(expected) * 2 * len(LAYERS)
    assert {step for step, _, _ in done} == {*range(STEPS)} - expected


def test_first_block_cache_always_computes_the_first_block(tiny_pipeline):
    with parse_method("first-block-cache:0.5").applied(tiny_pipeline, STEPS) as summarise:
        generate(tiny_pipeline)
        done, left_out = computed(summarise)
    assert {layer for _, _, layer in left_out} == {LAYERS[1]}
    assert {(step, name) for step, name, layer in done if layer == LAYERS[0]} == {
        (step, name) for step in range(STEPS) for name in ("cond", "uncond")
    }
    with parse_method("first-block-cache:0").applied(tiny_pipeline, STEPS) as summarise:
        exact = generate(tiny_pipeline)
        assert summarise()["saving"]["all_steps"] == 0
    assert torch.equal(exact, generate(tiny_pipeline))


def test_mag_cache_keeps_the_first_steps_and_skips_at_most_so_many_in_a_row(tiny_pipeline):
    with parse_method("mag-cache:0.5:max_skip=2:retention=0.3").applied(tiny_pipeline, STEPS) as summarise:
        generate(tiny_pipeline)
        _, left_out = computed(summarise)
    kinds = "".join("." if any(s == step for s, _, _ in left_out) else "d" for step in range(STEPS))
    assert kinds == "ddd..d..d."


def test_cache_dit_prints_nothing_among_results(tiny_pipeline, capfd):
    with parse_method("cache-dit").applied(tiny_pipeline, STEPS):
        generate(tiny_pipeline)
    assert capfd.readouterr().out == ""


def test_cache_dit_leaves_out_what_its_mask_says(tiny_pipeline):
    for guidance in (3.0, 1.0):
        with parse_method("cache-dit:share=0.5:warmup=0.1").applied(tiny_pipeline, STEPS) as summarise:
            generate(tiny_pipeline, guidance_scale=guidance)
            _, left_out = computed(summarise)
        mask = parse_method("cache-dit:share=0.5").cache.mask(STEPS)
        passes = ("cond", "uncond") if guidance > 1 else ("cond",)
        late = guidance <= 1  # where the library starts anew at the second step
        skipped = {step for step, wanted in enumerate(mask) if not wanted} - ({1} if late else set())
        assert left_out == {(step, name, LAYERS[1]) for step in skipped for name in passes}, guidance


def test_cache_dit_says_what_is_missing(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(cache_dit, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed"), parse_method("cache-dit").applied(tiny_pipeline, STEPS):
        pass
    assert hooks_of(tiny_pipeline) == {}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("mag-cache", "only Pond's are known"),
        ("teacache", "polynomial fitted to WanPipeline's model"),
        ("faster-cache", "WanPipeline makes two passes"),
    ],
)
def test_what_a_method_must_know_of_the_pipeline_is_said(method, message):
    class WanPipeline:
        pass

    with pytest.raises(ConfigError, match=message), parse_method(method).cache.applied(WanPipeline(), 4):
        pass


def test_magnitude_ratios_are_those_of_the_residual(tiny_pipeline):
    residuals = []

    def enter(module, args, kwargs):
        residuals.append([args[0] if args else kwargs["hidden_states"]])

    def leave(module, args, output):
        residuals[-1].append(output)

    blocks = tiny_pipeline.transformer.blocks
    with blocks[0].register_forward_pre_hook(enter, with_kwargs=True), blocks[1].register_forward_hook(leave):
        generate(tiny_pipeline)
    norms = [(after - before).norm(dim=-1) for before, after in residuals[::2]]  # of the first pass
    expected = [1.0] + [(b / a).mean().item() for a, b in zip(norms, norms[1:])]  # noqa: B905, RUF007
    arguments = {"prompt": "a red ball", "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    assert magnitude_ratios(tiny_pipeline, **arguments, **SIZES) == pytest.approx(expected)


def test_taylorseer_continues_attention_and_feed_forward(tiny_pipeline):
    calls = []
    block = tiny_pipeline.transformer.blocks[1]
    with (
        parse_method("taylorseer:3:start=2").applied(tiny_pipeline, STEPS) as summarise,
        block.ffn.net[0].register_forward_hook(lambda *_: calls.append(None)),
    ):
        generate(tiny_pipeline)
        done, left_out = computed(summarise)
    steps = [0, 1, 3, 6, 9]  # the first two, then every third, as diffusers counts
    assert {step for step, _, _ in done} == {*steps} and len(calls) == 2 * len(steps)
    assert {step for step, _, _ in left_out} == {*range(STEPS)} - {*steps}


def test_faster_cache_guides_in_one_batch_and_leaves_half_of_it_out(tiny_pipeline):
    batches = []
    with (
        parse_method("faster-cache:2:guidance_range=3").applied(tiny_pipeline, STEPS) as summarise,
        tiny_pipeline.transformer.blocks[0].register_forward_pre_hook(lambda _, args: batches.append(len(args[0]))),
    ):
        generate(tiny_pipeline)
        records = summarise()["records"]
    assert {*batches} == {1, 2} and batches[0] == 2 and len(batches) == STEPS
    for step, batch in enumerate(batches):
        kinds = {(r["kind"], *r["saving"]) for r in records if r["step"] == step}
        assert kinds in ({("dense", 1 - batch / 2, 1 - batch / 2)}, {("cached", 1.0, 1.0)})
    assert any(r["kind"] == "cached" for r in records)


def test_guidance_in_one_batch_gives_the_same_clip(tiny_pipeline):
    dense = generate(tiny_pipeline)
    tiny_pipeline.batched_guidance = True
    try:
        torch.testing.assert_close(generate(tiny_pipeline), dense, atol=1e-4, rtol=1e-4)
    finally:
        tiny_pipeline.batched_guidance = False


def test_delta_dit_keeps_the_change_of_rear_blocks_first_and_of_front_blocks_later(tiny_pipeline):
    seen = {0: [], 1: []}
    blocks = blocks_of(tiny_pipeline.transformer)
    assert blocks == list(tiny_pipeline.transformer.blocks)
    with parse_method("delta-dit:2:boundary=0.4").applied(tiny_pipeline, STEPS) as summarise:
        hooks = [
            block.register_forward_hook(lambda _, args, output, n=number: seen[n].append((args[0], output)))
            for number, block in enumerate(blocks)
        ]
        generate(tiny_pipeline, guidance_scale=1.0)
        for hook in hooks:
            hook.remove()
        _, left_out = computed(summarise)
    # Steps 0 to 3 keep the rear block, 4 to 9 the front one; odd steps return what the even ones before them kept.
    assert {(step, layer) for step, _, layer in left_out} == {
        *((step, LAYERS[1]) for step in (1, 3)), *((step, LAYERS[0]) for step in (5, 7, 9))
    }  # fmt: skip
    for step, number in [(1, 1), (3, 1), (5, 0), (7, 0), (9, 0)]:
        change = [seen[number][s][1] - seen[number][s][0] for s in (step - 1, step)]
        torch.testing.assert_close(change[1], change[0])


def test_reuse_and_a_step_cache_save_together(tiny_pipeline):
    savings = {}
    for text in ("token:0.5", "first-block-cache:0.5", "token:0.5+first-block-cache:0.5"):
        with parse_method(text).applied(tiny_pipeline, STEPS) as summarise:
            generate(tiny_pipeline)
            savings[text] = summarise()["saving"]["all_steps"]
            kinds = {record["kind"] for record in summarise()["records"]}
    assert {"cached", "reuse"} <= kinds and savings[text] > max(list(savings.values())[:2])


@pytest.mark.parametrize("name", STEP_CACHES)
def test_parse_and_label(name):
    config = STEP_CACHES[name].parse(TEXTS[name])
    assert config.label.startswith(name) and STEP_CACHES[name].parse(name) == STEP_CACHES[name]()


def test_delta_dit_on_two_streams(tiny_pipeline):
    """Blocks that return text beside the video, as CogVideoX's do."""
    from diffusers import CogVideoXTransformer3DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_embed_dim=16,
            num_layers=4, sample_width=12, sample_height=8, sample_frames=9, max_text_seq_length=5, time_embed_dim=8,
        ).eval().requires_grad_(False)  # fmt: skip

    def denoise():
        outputs = []
        with torch.no_grad():
            for step in range(4):
                latents = torch.randn(1, 3, 4, 8, 12, generator=torch.Generator().manual_seed(0)) + 0.1 * step
                text = torch.ones(1, 5, 16)
                with model.cache_context("cond", step_index=step, num_inference_steps=4):
                    outputs.append(model(latents, text, torch.tensor([900.0 - 100 * step]), return_dict=False)[0])
        HookRegistry.check_if_exists_or_initialize(model).reset_stateful_hooks()
        return torch.stack(outputs)

    dense = denoise()
    with DeltaDitConfig().applied(model, 4):
        kept = denoise()
    assert torch.equal(kept[0], dense[0]) and not torch.equal(kept[1], dense[1])
    assert torch.nn.functional.mse_loss(kept, dense) < 0.1 * dense.var()
    assert torch.equal(denoise(), dense)


def test_summary_counts_nothing_as_saved_without_a_cache(tiny_pipeline):
    with parse_method("dense").applied(tiny_pipeline, STEPS):
        generate(tiny_pipeline)
        assert summary(tiny_pipeline)["saving"] is None
