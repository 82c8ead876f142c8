"""LightningCP against the parts of a transformer of Wan put together anew."""

import pytest
import torch

from timeripple.attention.method import ConfigError
from timeripple.baselines.lightning_cp import LightningCpConfig
from timeripple.bench.tiny import tiny
from timeripple.clips.methods import parse_method
from timeripple.pond.model import with_coordinates

STEPS, SHAPE = 10, (1, 8, 2, 4, 6)
SIZES = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": STEPS, "output_type": "latent"}


def generate(pipeline, **changes):
    return pipeline("a red ball", generator=torch.Generator().manual_seed(0), **SIZES | changes).frames


def parts(model, latents, timestep, text):
    """Embedded latents [1, tokens, width], and what computes blocks from one on, down to the velocity."""
    x = with_coordinates(latents)
    rotary = model.rope(x)
    embedding, modulation, text, _ = model.condition_embedder(timestep.expand(1), text, None)

    def block(number, hidden):
        return model.blocks[number](hidden, text, modulation.unflatten(1, (6, -1)), rotary)

    def velocity(hidden):
        shift, scale = (model.scale_shift_table + embedding[:, None]).chunk(2, 1)
        return model.proj_out(model.norm_out(hidden) * (1 + scale) + shift).mT.reshape(SHAPE)

    return model.patch_embedding(x).flatten(2).transpose(1, 2), block, velocity


@torch.no_grad()
def propagated(pipeline, interval):
    """The latents that come of it with Euler's solver and no guidance."""
    scheduler, model = pipeline.scheduler, pipeline.transformer
    scheduler.set_timesteps(STEPS)
    sigmas, timesteps = scheduler.sigmas, scheduler.timesteps
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    text, _ = pipeline.encode_prompt("a red ball", None)
    for key in range(0, STEPS, interval):
        embedded, block, velocity = parts(model, latents, timesteps[key], text)
        entered = block(0, embedded)
        outputs = [velocity(block(1, entered))]
        for step in range(key + 1, min(key + interval, STEPS)):
            ahead = latents + (sigmas[step] - sigmas[key]) * outputs[0]  # Euler's steps with one velocity are one
            fresh, block, velocity = parts(model, ahead, timesteps[step], text)
            outputs.append(velocity(block(1, fresh + entered - embedded)))
        for step, output in enumerate(outputs, key):
            latents = latents + (sigmas[step + 1] - sigmas[step]) * output
    return latents


@pytest.mark.parametrize("interval", [2, 3, 4])
def test_between_key_steps_the_last_block_alone_is_computed(tiny_pipeline, interval):
    batches = {0: [], 1: []}
    with parse_method(f"lightning-cp:{interval}").applied(tiny_pipeline, STEPS) as summarise:
        hooks = [
            block.ffn.register_forward_hook(lambda _, args, out, n=number: batches[n].append(len(out)))
            for number, block in enumerate(tiny_pipeline.transformer.blocks)
        ]
        latents = generate(tiny_pipeline, guidance_scale=1.0)
        for hook in hooks:
            hook.remove()
        saving = summarise()["saving"]
    torch.testing.assert_close(latents, propagated(tiny_pipeline, interval), atol=2e-4, rtol=1e-3)
    keys = range(0, STEPS, interval)
    assert LightningCpConfig(interval).computed(STEPS) == tuple(keys)
    between = [size for key in keys if (size := min(interval, STEPS - key) - 1)]
    assert batches[0] == [1] * len(keys) and sorted(batches[1]) == sorted([1] * len(keys) + between)
    # Of both layers' attention in all steps, key steps and the last layer of all are computed.
    assert saving["all_steps"] == pytest.approx(1 - (len(keys) + STEPS) / (2 * STEPS))


@pytest.mark.parametrize("solver", ["unipc", "euler", "dpm++", "heun"])
def test_every_solver_continues(tiny_pipeline, solver):
    own = tiny_pipeline.scheduler
    text, count = f"steps={STEPS}:solver={solver}", 2 * STEPS - 1 if solver == "heun" else STEPS
    clips = {}
    for method in (f"dense:{text}", f"lightning-cp:1:{text}", f"lightning-cp:2:{text}", f"lightning-cp:3:{text}"):
        with parse_method(method).applied(tiny_pipeline, STEPS) as summarise:
            clips[method] = generate(tiny_pipeline)
            numbers = summarise()
        if method.startswith("lightning"):
            assert len(numbers["saving"]["per_step"]) == count and (numbers["saving"]["all_steps"] > 0) == (
                "1:" not in method
            )
    dense, same, near, far = clips.values()
    assert torch.equal(same, dense) and not torch.equal(near, dense) and not torch.equal(far, near)
    assert torch.nn.functional.mse_loss(near, dense) < 0.2 * dense.var()
    assert tiny_pipeline.scheduler is own and "step" not in vars(own)


def test_latents_are_those_the_scheduler_would_come_to(tiny_pipeline):
    """What enters the batch, against UniPC run by hand with the guided velocity of the key step."""
    seen = []
    with parse_method("lightning-cp:4:solver=unipc").applied(tiny_pipeline, STEPS):
        velocities, taken = [], []

        def note(pipeline, step, timestep, tensors):
            velocities.append(tensors["velocity"])
            taken.append(tensors["latents"])
            return {}

        hook = tiny_pipeline.transformer.patch_embedding.register_forward_hook(
            lambda _, args, out: seen.append(args[0])
        )
        generate(tiny_pipeline, callback_on_step_end=note, callback_on_step_end_tensor_inputs=("latents", "velocity"))
        hook.remove()
        scheduler = type(tiny_pipeline.scheduler).from_config(tiny_pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    expected = []
    for step in range(3):  # as if the velocity stayed what it was at the first step
        latents = scheduler.step(velocities[0], scheduler.timesteps[step], latents, return_dict=False)[0]
        expected.append(latents)
    batch = next(x for x in seen if len(x) == 3)
    torch.testing.assert_close(batch[:, :8], torch.cat(expected))
    torch.testing.assert_close(batch[:1, :8], taken[0])
    assert [len(x) for x in seen[:4]] == [1, 1, 3, 3]  # two passes of the key step, then two batches


def test_what_is_held_is_counted(tiny_pipeline):
    with parse_method("lightning-cp:4").applied(tiny_pipeline, STEPS) as summarise:
        generate(tiny_pipeline)
        held = summarise()["held_bytes"]
    change, latents = 48 * 48 * 4, 48 * 8 * 4
    assert 2 * change + 3 * latents <= held <= 2 * change + 12 * latents


def test_reuse_at_key_steps(tiny_pipeline):
    savings = {}
    for text in ("lightning-cp:2", "token:0.5+lightning-cp:2"):
        with parse_method(text).applied(tiny_pipeline, STEPS) as summarise:
            generate(tiny_pipeline)
            records = summarise()["records"]
            savings[text] = summarise()["saving"]["all_steps"]
    assert {record["kind"] for record in records} >= {"reuse", "refresh", "cached"}
    assert {record["step"] % 2 for record in records if record["kind"] == "reuse"} == {0}
    assert savings["lightning-cp:2"] == pytest.approx(0.25) and savings["token:0.5+lightning-cp:2"] > 0.25


def test_timesteps_by_token_are_refused():
    pipeline = tiny("WanPipeline")
    pipeline.register_to_config(expand_timesteps=True)
    with pytest.raises(ConfigError, match="timesteps by token"), parse_method("lightning-cp").applied(pipeline, 4):
        pass
    assert "step" not in vars(pipeline.scheduler)


def test_errors_are_one_sentence_that_names_the_value():
    with pytest.raises(ConfigError, match="interval 0"):
        parse_method("lightning-cp:0")
