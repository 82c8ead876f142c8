"""The cache of attention outputs against what PAB says it does."""

import pytest
import torch

from timeripple import ReuseConfig, disable, enable, summary
from timeripple.baselines import OutputCacheConfig


def generate(pipeline, steps=10):
    generator = torch.Generator().manual_seed(0)
    sizes = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": steps}
    return pipeline("a red ball", generator=generator, output_type="latent", **sizes).frames


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
@pytest.mark.parametrize("budget", [0, 0.5, 0.67, 0.75, 0.9])
def test_schedule(steps, budget):
    schedule = OutputCacheConfig(budget).schedule(steps)
    window = [step for step in schedule if step.in_window]
    assert [s.in_window for s in schedule] == [s.in_window for s in ReuseConfig(theta=1, refresh=None).schedule(steps)]
    cached = [step.kind == "reuse" for step in schedule]
    assert sum(cached) == len(window) - round((1 - budget) * len(window))
    assert all(step.in_window for step, reuse in zip(schedule, cached, strict=True) if reuse)


def test_computed_steps_lie_evenly():
    kinds = "".join(step.kind[0] for step in OutputCacheConfig(0.75, dense_first=0.1, dense_last=1).schedule(10))
    assert kinds == "drrdrrdrrd"  # eight steps in the window, two of them computed


def test_cached_steps_run_no_projection_and_return_the_last_output(tiny_pipeline):
    attention = tiny_pipeline.transformer.blocks[1].attn1
    outputs, projections = [], []
    enable(tiny_pipeline, OutputCacheConfig(0.5))
    with (
        attention.to_q.register_forward_hook(lambda *_: projections.append(len(outputs))),
        attention.register_forward_hook(lambda module, args, output: outputs.append(output)),
    ):
        generate(tiny_pipeline)
    disable(tiny_pipeline)
    kinds = [step.kind for step in OutputCacheConfig(0.5).schedule(10) for _ in ("cond", "uncond")]
    assert projections == [call for call, kind in enumerate(kinds) if kind == "dense"]
    for call, kind in enumerate(kinds):
        if kind == "reuse":
            assert torch.equal(outputs[call], outputs[call - 2])  # of the same pass, one step earlier
            assert not torch.equal(outputs[call], outputs[call - 1])


def test_numbers(tiny_pipeline):
    dense = generate(tiny_pipeline)
    enable(tiny_pipeline, OutputCacheConfig(0.57))
    cached = generate(tiny_pipeline)
    numbers = summary(tiny_pipeline)
    disable(tiny_pipeline)
    saving = numbers["saving"]
    assert saving["kind"] == "realised" and saving["reuse_steps"] == pytest.approx(4 / 7)
    assert saving["all_steps"] == pytest.approx(0.4)
    assert saving["per_step"] == [step.kind == "reuse" for step in OutputCacheConfig(0.57).schedule(10)]
    assert len(numbers["records"]) == 10 * 2 * 2
    assert numbers["held_bytes"] == 2 * 2 * (2 * 4 * 6) * 48 * 4  # passes, layers, tokens, channels, float32
    assert not torch.equal(cached, dense) and torch.equal(generate(tiny_pipeline), dense)


def test_parse_and_label():
    assert OutputCacheConfig.parse("output-cache:0.67") == OutputCacheConfig(0.67)
    config = OutputCacheConfig.parse("output-cache:dense_first=0.1:dense_last=2:budget=0.5")
    assert config == OutputCacheConfig(0.5, 0.1, 2)
    assert config.label == "output-cache-0.5-dense_first=0.1-dense_last=2"
