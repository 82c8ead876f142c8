import numpy as np
import pytest
import torch

from timeripple.pond.model import with_coordinates
from timeripple.pond.pipeline import PondPipeline
from timeripple.pond.prompts import PromptError

PROMPT = "a red ball rolling left across the ocean"
SMALL = {"num_frames": 5, "height": 32, "width": 40, "num_inference_steps": 2}


def generator():
    return torch.Generator().manual_seed(0)


def test_shapes_of_every_output_type(tiny_pipeline):
    frames = tiny_pipeline(PROMPT, **SMALL, generator=generator()).frames
    assert frames.shape == (1, 5, 32, 40, 3) and 0 <= frames.min() <= frames.max() <= 1
    tensor = tiny_pipeline(PROMPT, **SMALL, generator=generator(), output_type="pt").frames
    np.testing.assert_array_equal(tensor.permute(0, 1, 3, 4, 2).numpy(), frames)
    images = tiny_pipeline(PROMPT, **SMALL, generator=generator(), output_type="pil").frames
    assert images[0][0].size == (40, 32)
    latents = tiny_pipeline(PROMPT, **SMALL, generator=generator(), output_type="latent", return_dict=False)[0]
    assert latents.shape == (1, 8, 2, 4, 5)


def test_euler_steps_follow_the_velocity(tiny_pipeline):
    """x_{i+1} = x_i + (sigma_{i+1} - sigma_i) * (v_uncond + g * (v_cond - v_uncond)), written out here."""
    pipe, noise = tiny_pipeline, torch.randn(1, 8, 2, 4, 5, generator=generator())
    result = pipe(PROMPT, **SMALL, latents=noise, guidance_scale=2.5, output_type="latent").frames
    prompt_embeds, negative_embeds = pipe.encode_prompt(PROMPT, None)
    latents = noise
    with torch.no_grad():
        for i, timestep in enumerate(pipe.scheduler.timesteps):
            conditional, unconditional = (
                pipe.transformer(with_coordinates(latents), timestep.expand(1), embeds, return_dict=False)[0]
                for embeds in (prompt_embeds, negative_embeds)
            )
            velocity = unconditional + 2.5 * (conditional - unconditional)
            latents = latents + (pipe.scheduler.sigmas[i + 1] - pipe.scheduler.sigmas[i]) * velocity
    torch.testing.assert_close(result, latents)


def test_guidance_of_one_runs_one_pass(tiny_pipeline):
    calls = []
    handle = tiny_pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
    tiny_pipeline(PROMPT, **SMALL, guidance_scale=1.0, output_type="latent")
    handle.remove()
    assert len(calls) == SMALL["num_inference_steps"]


def test_the_callback_sees_every_step_and_can_stop(tiny_pipeline):
    steps = []

    def stop_after_first(pipe, step, timestep, tensors):
        steps.append((step, tensors["latents"].shape))
        pipe._interrupt = True

    tiny_pipeline(PROMPT, **SMALL, callback_on_step_end=stop_after_first, output_type="latent")
    assert steps == [(0, (1, 8, 2, 4, 5))]


def test_saving_and_loading_gives_the_same_video(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    loaded = PondPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    one, other = (pipe(PROMPT, **SMALL, generator=generator()).frames for pipe in (tiny_pipeline, loaded))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"height": 60}, "height is 60"),
        ({"width": 8}, "width is 8"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_frames": 4001, "height": 256, "width": 256}, "tokens"),
    ],
)
def test_sizes_that_cannot_be_generated(tiny_pipeline, settings, words):
    with pytest.raises(ValueError, match=words) as error:
        tiny_pipeline(PROMPT, **{**SMALL, **settings})
    assert "\n" not in str(error.value)


def test_unknown_words_never_give_a_video(tiny_pipeline):
    with pytest.raises(PromptError, match="dragon"):
        tiny_pipeline("a red dragon", **SMALL)
    with pytest.raises(PromptError, match="zebra"):
        tiny_pipeline(PROMPT, negative_prompt="zebra", **SMALL)


def test_coordinates_are_centres_of_cells_from_minus_one_to_one():
    seen = with_coordinates(torch.zeros(2, 8, 2, 4, 5))
    assert seen.shape == (2, 11, 2, 4, 5) and (seen[:, :8] == 0).all()
    torch.testing.assert_close(seen[1, 8, :, 0, 0], torch.tensor([-0.5, 0.5]))
    torch.testing.assert_close(seen[0, 9, 1, :, 2], torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    torch.testing.assert_close(seen[0, 10, 0, 3], torch.tensor([-0.8, -0.4, 0.0, 0.4, 0.8]))
