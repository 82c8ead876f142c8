"""Caches of the whole block stack and the forecast of attention, each against its rule written down anew."""

import json

import numpy as np
import pytest
import torch

from timeripple.baselines import mag_cache, teacache
from timeripple.baselines.forecast import ForecastConfig
from timeripple.baselines.spectrum import SpectrumConfig
from timeripple.baselines.taylorseer import TaylorSeerConfig
from timeripple.clips.methods import parse_method

STEPS = 10
SIZES = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": STEPS}


def watch(pipeline, text, steps=STEPS, **changes):
    """What entered and left the stack, latents and outputs of the transformer and the embedding at every step of the
    only guidance pass, float64 arrays; and the summary."""
    model = pipeline.transformer
    seen = {"entered": [], "left": [], "latents": [], "output": [], "embedding": []}

    def enter(module, args):
        seen["entered"].append(args[0])
        seen["embedding"].append(args[2])

    def finish(module, args, kwargs, output):
        seen["latents"].append(kwargs["hidden_states"])
        seen["output"].append(output[0])

    with parse_method(text).applied(pipeline, steps) as summarise:
        handles = [
            model.blocks[0].register_forward_pre_hook(enter),
            model.blocks[-1].register_forward_hook(lambda module, args, output: seen["left"].append(output)),
            model.register_forward_hook(finish, with_kwargs=True),
        ]
        generator = torch.Generator().manual_seed(0)
        pipeline("a red ball", generator=generator, output_type="latent", guidance_scale=1.0, **SIZES | changes)
        for handle in handles:
            handle.remove()
        numbers = summarise()
    return {name: np.stack([x.double().numpy() for x in values]) for name, values in seen.items()}, numbers


def left_out(numbers):
    return [saving == 1 for saving in numbers["saving"]["per_step"]]


def test_computed_steps_lie_evenly_from_the_first_to_the_last():
    assert ForecastConfig(0.45).computed(20) == (0, 2, 5, 7, 10, 12, 14, 17, 19)
    for steps in (2, 7, 14, 50):
        for share in (0.1, 0.3, 0.5, 1.0):
            computed = ForecastConfig(share).computed(steps)
            gaps = np.diff(computed)
            assert computed[0] == 0 and computed[-1] == steps - 1 and gaps.max() - gaps.min() <= 1
            assert len(computed) == max(2, round(share * steps))


def test_forecast_may_compute_the_first_steps_without_a_gap():
    assert ForecastConfig(0.45, start=3).computed(20) == (0, 1, 2, 5, 8, 10, 13, 16, 19)
    assert ForecastConfig(0.1, start=5).computed(20) == (0, 19)  # no more than the share
    for steps in (1, 2, 3, 14):
        for start in (2, 4, 30):
            computed = ForecastConfig(0.6, start=start).computed(steps)
            count = min(max(2, round(0.6 * steps)), steps)
            assert len(computed) == len({*computed}) == count and computed[-1] == steps - 1
            assert computed[: min(start, count - 1)] == tuple(range(min(start, count - 1)))


@pytest.mark.parametrize("ratios", [np.linspace(1.06, 0.97, 20), np.ones(20), np.linspace(1.5, 0.5, 20)])
@pytest.mark.parametrize("text", ["mag-cache", "mag-cache:0.03", "mag-cache:0.2:max_skip=2:retention=0"])
def test_mag_cache_computes_what_it_says(tiny_pipeline, monkeypatch, tmp_path, ratios, text):
    path = tmp_path / "ratios.json"
    path.write_text(json.dumps({"ratios": ratios.tolist()}))
    monkeypatch.setattr(mag_cache, "RATIOS", path)
    for steps in (STEPS, 20):  # of the first, ratios are those of the nearest of the 20 steps
        computed = parse_method(text).cache.computed(steps)
        for stack in (text, f"token:0.3+{text}"):
            _, numbers = watch(tiny_pipeline, stack, steps, num_inference_steps=steps)
            assert left_out(numbers) == [step not in computed for step in range(steps)]


def test_mag_cache_counts_both_evaluations_of_heun(tiny_pipeline):
    _, numbers = watch(tiny_pipeline, "mag-cache:0.06:solver=heun")
    computed = parse_method("mag-cache:0.06").cache.computed(2 * STEPS - 1)
    assert left_out(numbers) == [step not in computed for step in range(2 * STEPS - 1)]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_forecast_continues_the_change_of_the_stack(tiny_pipeline, order):
    seen, numbers = watch(tiny_pipeline, f"forecast:0.5:order={order}")
    computed = ForecastConfig(0.5).computed(STEPS)
    assert left_out(numbers) == [step not in computed for step in range(STEPS)]
    changes = seen["left"] - seen["entered"]
    for step in {*range(STEPS)} - {*computed}:
        known = [at for at in computed if at < step][-order - 1 :]
        line = np.polyfit(known, changes[known].reshape(len(known), -1), len(known) - 1)
        expected = sum(c * step ** (len(known) - 1 - i) for i, c in enumerate(line)).reshape(changes[0].shape)
        np.testing.assert_allclose(changes[step], expected, atol=1e-4)


def test_taylorseer_at_even_distances():
    assert TaylorSeerConfig(3).computed(12) == (0, 1, 2, 4, 7, 10)
    assert TaylorSeerConfig(3, spacing="even").computed(12) == (0, 3, 6, 9)


@pytest.mark.parametrize("text", ["taylorseer:3", "taylorseer:3:spacing=even"])
def test_taylorseer_computes_what_it_says(tiny_pipeline, text):
    _, numbers = watch(tiny_pipeline, text)
    computed = parse_method(text).cache.computed(STEPS)
    assert left_out(numbers) == [step not in computed for step in range(STEPS)]


def test_spectrum_computes_at_growing_distances():
    # 14 of 50 steps with alpha 0.75 and 10 with alpha 3, as the authors say
    assert len(SpectrumConfig(0.75).computed(50)) == 14 and len(SpectrumConfig(3.0).computed(50)) == 10
    assert SpectrumConfig(0.75).computed(20) == (0, 1, 2, 3, 4, 6, 8, 11, 15)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_spectrum_fits_chebyshev_polynomials_with_ridge(tiny_pipeline, weight):
    seen, numbers = watch(tiny_pipeline, f"spectrum:0.75:start=3:order=3:ridge=0.2:weight={weight}")
    computed = [step for step, skipped in enumerate(left_out(numbers)) if not skipped]
    left = seen["left"].reshape(STEPS, -1)
    for step in {*range(STEPS)} - {*computed}:
        known = [at for at in computed if at < step]
        tau = 2 * np.array([*known, step]) / STEPS - 1
        design = np.polynomial.chebyshev.chebvander(tau, 3)
        # ridge regression as least squares with lambda^(1/2) I below the design
        rows = np.concatenate([design[:-1], np.sqrt(0.2) * np.eye(4)])
        fit = np.linalg.lstsq(rows, np.concatenate([left[known], np.zeros((4, left.shape[1]))]), rcond=None)[0]
        before, last = known[-2:]
        line = left[last] + (step - last) / (last - before) * (left[last] - left[before])
        expected = weight * design[-1] @ fit + (1 - weight) * line
        np.testing.assert_allclose(left[step], expected, atol=1e-4)


def test_easycache_adds_up_predicted_change(tiny_pipeline):
    seen, numbers = watch(tiny_pipeline, "easycache:0.5:retention=0.3")
    latents, output = seen["latents"], seen["output"]
    channels = output.shape[2]
    ratio, total, last, expected = None, 0.0, None, []
    for step in range(STEPS):
        skips = False
        if 3 <= step < STEPS - 1:
            total += ratio * np.abs(latents[step] - latents[step - 1]).mean() / np.abs(output[last]).mean()
            skips = total < 0.5
        expected.append(skips)
        if skips:
            np.testing.assert_allclose(
                output[step] - latents[step][:, :channels], output[last] - latents[last][:, :channels], atol=1e-4
            )
            continue
        if last is not None:
            ratio = np.abs(output[step] - output[last]).mean() / np.abs(latents[step] - latents[last]).mean()
        total, last = 0.0, step
    assert left_out(numbers) == expected and any(expected)


def test_teacache_adds_up_the_change_its_polynomial_predicts(tiny_pipeline, monkeypatch, tmp_path):
    (tmp_path / "known.json").write_text(json.dumps({"tea_coefficients": [0.0, 0.0, 2.0, 1.0, 0.01]}))
    monkeypatch.setattr(teacache, "RATIOS", tmp_path / "known.json")
    seen, numbers = watch(tiny_pipeline, "teacache:2.5")
    embedding, changes = seen["embedding"], seen["left"] - seen["entered"]
    total, last, expected = 0.0, 0, [False]
    for step in range(1, STEPS - 1):
        moved = np.abs(embedding[step] - embedding[step - 1]).mean() / np.abs(embedding[step - 1]).mean()
        total += 2 * moved**2 + moved + 0.01
        expected.append(total < 2.5)
        if expected[-1]:
            np.testing.assert_allclose(changes[step], changes[last], atol=1e-4)
        else:
            total, last = 0.0, step
    assert left_out(numbers) == [*expected, False] and any(expected)


def test_coefficients_are_those_of_the_pairs_of_changes(tiny_pipeline):
    runs = [{"prompt": text, "guidance_scale": 1.0, **SIZES} for text in ("a red ball", "a blue cube")]
    for run in runs:
        run["generator"] = torch.Generator().manual_seed(0)
    found = np.poly1d(teacache.coefficients(tiny_pipeline, runs))
    pairs = []
    for text in ("a red ball", "a blue cube"):
        generator = torch.Generator().manual_seed(0)
        outputs, embeddings, model = [], [], tiny_pipeline.transformer
        handles = [
            model.blocks[0].register_forward_pre_hook(lambda module, args, into=embeddings: into.append(args[2])),
            model.register_forward_hook(lambda module, args, output, into=outputs: into.append(output[0])),
        ]
        tiny_pipeline(text, guidance_scale=1.0, generator=generator, **SIZES)
        for handle in handles:
            handle.remove()
        for values in zip(embeddings[1:], embeddings, outputs[1:], outputs, strict=False):
            e, before, o, earlier = (x.double() for x in values)
            pairs.append(
                ((e - before).abs().mean() / before.abs().mean(), (o - earlier).abs().mean() / earlier.abs().mean())
            )
    x, y = np.array(pairs).T
    expected = np.poly1d(np.polyfit(x, y, 4))
    np.testing.assert_allclose(found(x), expected(x), rtol=1e-3)


def test_attention_forecast_continues_the_outputs_of_the_refreshes(tiny_pipeline):
    outputs = []
    method = parse_method("attention-forecast:0.5")
    attention = tiny_pipeline.transformer.blocks[0].attn1
    with method.applied(tiny_pipeline, STEPS) as summarise:
        # before the output projection, where attention has just been computed
        handle = attention.to_out[0].register_forward_pre_hook(lambda module, args: outputs.append(args[0]))
        generator = torch.Generator().manual_seed(0)
        tiny_pipeline("a red ball", generator=generator, output_type="latent", guidance_scale=1.0, **SIZES)
        handle.remove()
        numbers = summarise()
    schedule = parse_method("token:0.5").config.schedule(STEPS)
    assert method.config.schedule(STEPS) == schedule
    refreshes = [step.index for step in schedule if step.kind == "refresh"]
    times = tiny_pipeline.scheduler.timesteps.tolist()  # along which it is continued
    for step in (step.index for step in schedule if step.kind == "reuse"):
        known = [at for at in refreshes if at < step][-2:]
        expected = outputs[known[-1]]
        if len(known) == 2:
            slope = (outputs[known[1]] - outputs[known[0]]) / (times[known[1]] - times[known[0]])
            expected = expected + (times[step] - times[known[1]]) * slope
        torch.testing.assert_close(outputs[step], expected, atol=1e-4, rtol=1e-4)
    assert numbers["saving"]["per_step"] == [float(step.kind == "reuse") for step in schedule]
    assert numbers["held_bytes"] > 0 and numbers["method"] == "attention-forecast-0.5"


def test_memory_of_caches_is_counted_and_added_to_that_of_reuse(tiny_pipeline):
    tokens, width, layers, floats = 2 * 4 * 6, 48, 2, 4
    held = {}
    for text in ("forecast:0.5:order=1", "token:0.5", "token:0.5+forecast:0.5:order=1"):
        _, numbers = watch(tiny_pipeline, text)
        held[text] = numbers["held_bytes"]
    assert held["forecast:0.5:order=1"] == 2 * tokens * width * floats  # the last two changes of one pass
    assert held["token:0.5"] >= 2 * layers * tokens * width * floats  # error and slope of every layer, and plans
    assert held["token:0.5+forecast:0.5:order=1"] > held["forecast:0.5:order=1"] + layers * tokens * width * floats
