"""enable, disable and summary on tiny random transformers."""

import subprocess
import sys
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch

from tests.hooks.wan import LAYERS, SHAPE, STEPS, denoise, inputs, make_transformer
from timeripple import ReuseConfig, disable, enable, summary
from timeripple.attention.grid import TokenGrid
from timeripple.attention.method import ConfigError
from timeripple.hooks import FAMILIES
from timeripple.hooks.families import _patches
from timeripple.hooks.processor import ReuseProcessor

TOKEN = ReuseConfig("token", theta=1.0, refresh=2, dense_first=0.25, dense_last=1)


@pytest.fixture
def transformer():
    return make_transformer()


@dataclass
class Spy:
    """A config whose runs leave attention alone and note what they are told."""

    label: str = "spy"
    granularity: str = "spy"
    forwards: list = field(default_factory=list)
    calls: list = field(default_factory=list)
    records = steps = ()
    held_bytes = 0
    kind = "realised"

    def start(self, num_inference_steps):
        self.forwards.append(num_inference_steps)
        return self

    def begin_forward(self, name, step):
        self.forwards.append((name, step))

    def attention(self, layer, call):
        self.calls.append((layer, call.value, call.grid))
        return torch.nn.functional.scaled_dot_product_attention(call.query, call.key, call.value, scale=call.scale)

    def end_forward(self):
        pass


def hooked_modules(transformer):
    return [
        name
        for name, module in transformer.named_modules()
        if hasattr(module, "_diffusers_hook")
        or "forward" in vars(module)
        or module._forward_pre_hooks
        or module._forward_hooks
        or isinstance(getattr(module, "processor", None), ReuseProcessor)
    ]


def test_disable_restores_the_model_exactly(transformer):
    dense = denoise(transformer)
    del transformer._diffusers_hook  # cache_context made it
    enable(transformer, TOKEN)
    assert hooked_modules(transformer) == ["", *LAYERS]
    denoise(transformer)
    disable(transformer)
    assert hooked_modules(transformer) == []
    assert torch.equal(denoise(transformer), dense)
    disable(transformer)  # nothing to do


@pytest.mark.parametrize("config", [TOKEN, ReuseConfig("tile", refresh=None), ReuseConfig("channel", theta=0.5)])
def test_output_differs_once_reuse_begins(transformer, config):
    dense = denoise(transformer)
    enable(transformer, config)
    reused = denoise(transformer)
    assert torch.equal(reused[0], dense[0]) and torch.equal(reused[-1], dense[-1])
    assert not torch.equal(reused[1:-1], dense[1:-1])
    assert torch.nn.functional.mse_loss(reused, dense) < 0.1 * dense.var()


@pytest.mark.parametrize("config", [None, ReuseConfig(theta=0), ReuseConfig(budget=0)])
def test_nothing_to_reuse_is_exact(transformer, config):
    dense = denoise(transformer)
    enable(transformer, config)
    assert torch.equal(denoise(transformer), dense)


def test_tiny_threshold_only_rounds(transformer):
    dense = denoise(transformer)
    enable(transformer, ReuseConfig(theta=1e-6))
    torch.testing.assert_close(denoise(transformer), dense)


def test_passes_do_not_see_each_other(transformer):
    enable(transformer, TOKEN)
    alone = denoise(transformer, ["cond"])
    both = denoise(transformer)
    assert torch.equal(both[:, 0], alone[:, 0])
    assert not torch.equal(both[:, 1], alone[:, 0])


@pytest.mark.parametrize("stop", [None, 1, 3])
def test_runs_do_not_see_each_other(transformer, stop):
    enable(transformer, TOKEN)
    first = denoise(transformer)
    denoise(transformer, ["uncond", "cond"], stop=stop)  # complete or abandoned
    denoise(transformer, shape=(1, 4, 2, 4, 4), stop=2)
    assert torch.equal(denoise(transformer), first)


def test_transformers_do_not_share_state():
    pipe = SimpleNamespace(components={"transformer": make_transformer(0), "other": make_transformer(1), "vae": None})
    first, second = pipe.components["transformer"], pipe.components["other"]
    enable(first, TOKEN)
    alone = denoise(first)
    of_first = summary(first)
    enable(pipe, TOKEN)
    denoise(first, stop=2)
    denoise(second)
    assert torch.equal(denoise(first), alone)
    both = summary(pipe)
    assert both["layers"] == 4 and len(both["records"]) == len(of_first["records"])  # of the clip made last
    disable(pipe)
    assert hooked_modules(first) == hooked_modules(second) == []


def test_two_transformers_that_take_turns_count_steps_together():
    pipe = SimpleNamespace(
        components={"transformer": make_transformer(0), "other": make_transformer(1)}, num_timesteps=4
    )
    enable(pipe, TOKEN)
    with torch.no_grad():
        for step in range(STEPS):
            pipe.components["transformer" if step < 2 else "other"](**inputs("cond", step))
    assert [record["step"] for record in summary(pipe)["records"]] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(summary(pipe)["saving"]["per_step"]) == STEPS


def test_exception_in_a_forward_pass_leaves_a_clean_state(transformer):
    enable(transformer, TOKEN)
    first = denoise(transformer)
    calls = []

    def fail_late(module, args):
        calls.append(module)
        if len(calls) == 5:
            raise KeyboardInterrupt

    with transformer.blocks[1].register_forward_pre_hook(fail_late), pytest.raises(KeyboardInterrupt):
        denoise(transformer)
    assert torch.equal(denoise(transformer), first)
    disable(transformer)
    assert hooked_modules(transformer) == []


def test_tensors_are_released_and_numbers_kept(transformer):
    enable(transformer, TOKEN)
    denoise(transformer, stop=STEPS)
    during = summary(transformer)
    hook = transformer._diffusers_hook.get_hook("timeripple")
    assert hook.run is not None
    transformer._reset_stateful_cache()
    assert hook.run is None
    assert summary(transformer) == during
    tokens, rows = 3 * 4 * 6, 2 * 2 * 3  # every window is one row
    tensor = tokens * 48 * 4  # channels, float32
    plan = tokens + (tokens + 1) + 2  # which tokens by row and where rows begin, int32, and their number, int64
    packed = 2 * tokens + 2 * rows  # tokens by row and rows by token, where rows begin and their sizes, int32
    plan = 2 * 2 * (plan + packed) * 4  # two sides, two heads
    assert during["held_bytes"] == len(LAYERS) * (2 * 2 * tensor + plan)  # passes, an error and its slope


def test_enabling_again_replaces(transformer):
    enable(transformer, ReuseConfig("tile"))
    enable(transformer, TOKEN)
    first = denoise(transformer)
    assert summary(transformer)["method"] == TOKEN.label
    assert len(summary(transformer)["records"]) == STEPS * 2 * len(LAYERS)
    disable(transformer)
    enable(transformer, TOKEN)
    assert torch.equal(denoise(transformer), first)


def test_every_attention_is_intercepted_once(transformer):
    enable(transformer, None)
    denoise(transformer)
    calls = [(r["step"], r["pass"], r["layer"]) for r in summary(transformer)["records"]]
    assert calls == [(step, name, layer) for step in range(STEPS) for name in ("cond", "uncond") for layer in LAYERS]


@pytest.mark.parametrize("position", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (2, 3, 5)])
def test_a_marked_token_is_where_the_grid_says(transformer, position):
    spy = Spy()
    enable(transformer, spy)
    t, y, x = position
    marked = inputs("cond", 0) | {"hidden_states": torch.zeros(SHAPE)}
    marked["hidden_states"][:, :, t, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] = 1
    with torch.no_grad(), transformer.cache_context("cond", step_index=0, num_inference_steps=1):
        transformer(**marked)
    grid = spy.calls[0][2]
    assert grid == TokenGrid(3, 4, 6)
    value = grid.unflatten(spy.calls[0][1])[0, 0]  # of the first layer, where only the marked token differs
    differs = (value - value.flatten(0, 2).median(0).values).abs().amax(-1) > 1e-6
    assert differs.nonzero().tolist() == [list(position)]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("source", ["argument", "pipeline"])
def test_steps_are_counted_when_the_pipeline_does_not_tell(transformer, named, source):
    enable(transformer, TOKEN)
    told = denoise(transformer)
    if source == "argument":
        enable(transformer, TOKEN, num_inference_steps=STEPS)
    else:
        enable(SimpleNamespace(components={"transformer": transformer}, num_timesteps=STEPS), TOKEN)
    assert torch.equal(denoise(transformer, told=False, named=named), told)
    denoise(transformer, told=False, named=named, stop=3)
    assert torch.equal(denoise(transformer, told=False, named=named), told)
    assert [r["step"] for r in summary(transformer)["records"]] == [step for step in range(STEPS) for _ in range(4)]


@pytest.mark.filterwarnings("error::UserWarning")
def test_told_runs_do_not_warn(transformer):
    enable(transformer, TOKEN)
    denoise(transformer)


@pytest.mark.parametrize("reason", ["unknown", "more than 2 steps", "gradients", "is not the grid"])
def test_dense_with_one_warning_where_reuse_is_not_possible(transformer, reason, monkeypatch):
    dense = denoise(transformer)
    if reason == "is not the grid":
        family = replace(
            FAMILIES["WanTransformer3DModel"],
            grid=lambda module, arguments, tokens: _patches((1, 1, 1), (1, 1, 1), tokens, "none"),
        )
        monkeypatch.setitem(FAMILIES, "WanTransformer3DModel", family)
    enable(transformer, TOKEN, num_inference_steps=2 if reason == "more than 2 steps" else None)
    with pytest.warns(UserWarning, match=reason) as warnings:
        if reason == "gradients":
            with torch.enable_grad():
                outputs = transformer(**inputs("cond", 0))[0], transformer(**inputs("cond", 0))[0]
            assert torch.equal(outputs[0], dense[0, 0]) and torch.equal(outputs[1], dense[0, 0])
        elif reason == "more than 2 steps":
            with torch.no_grad():
                for step in (2, 3):
                    with transformer.cache_context("cond", step_index=step):
                        assert torch.equal(transformer(**inputs("cond", step))[0], dense[step, 0])
        else:
            assert torch.equal(denoise(transformer, told=reason != "unknown"), dense)
    assert len([w for w in warnings if "stays dense" in str(w.message)]) == 1
    assert summary(transformer)["records"] == []


def test_other_attention_backends_are_refused(transformer):
    enable(transformer, TOKEN)
    processor = transformer.blocks[0].attn1.processor
    transformer.blocks[0].attn1.processor = lambda attention, hidden_states, *args: hidden_states
    with pytest.raises(RuntimeError, match=r"blocks.0.attn1 called .* 0 times"):
        denoise(transformer)
    transformer.blocks[0].attn1.processor = processor
    denoise(transformer)


def test_summary_adds_up(transformer):
    enable(transformer, TOKEN)
    denoise(transformer)
    numbers = summary(transformer)
    records, saving = numbers["records"], numbers["saving"]
    assert numbers["method"] == TOKEN.label and numbers["granularity"] == "token" and numbers["layers"] == 2
    plan = sum(record["plan_seconds"] for record in records)
    assert 0 < plan <= numbers["seconds"]["plan"] < numbers["seconds"]["attention"]
    spent = sum(record["attention_seconds"] for record in records)
    assert numbers["seconds"]["attention"] == pytest.approx(numbers["seconds"]["plan"] + spent)
    assert saving["kind"] == "realised" and len(saving["per_step"]) == STEPS
    assert saving["all_steps"] == pytest.approx(sum(saving["per_step"]) / STEPS)
    assert saving["reuse_steps"] == pytest.approx(sum(saving["per_step"][1:-1]) / (STEPS - 2))
    of_step = [s for record in records if record["step"] == 1 for s in record["saving"]]
    assert saving["per_step"][1] == pytest.approx(sum(of_step) / len(of_step))


def test_summary_of_dense_and_before_a_run(transformer):
    enable(transformer, TOKEN)
    numbers = summary(transformer)
    assert numbers["saving"] is None and numbers["records"] == [] and numbers["seconds"] == {"attention": 0, "plan": 0}
    enable(transformer, None)
    denoise(transformer)
    numbers = summary(transformer)
    assert numbers["method"] == "dense" and numbers["granularity"] is None and numbers["saving"] is None
    assert numbers["seconds"]["attention"] > 0 and numbers["held_bytes"] == 0


def test_errors(transformer):
    with pytest.raises(ConfigError, match="Nothing is enabled"):
        summary(transformer)
    with pytest.raises(ConfigError, match="Linear has no supported transformer"):
        enable(torch.nn.Linear(1, 1), TOKEN)
    enable(transformer, ReuseConfig(budget=0.9, refresh=2))
    with pytest.raises(ConfigError, match="out of reach"):
        denoise(transformer)
    enable(transformer, TOKEN)
    denoise(transformer)


def test_in_a_pipeline(tiny_pipeline):
    def generate():
        generator = torch.Generator().manual_seed(0)
        sizes = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 5}
        return tiny_pipeline("a red ball", generator=generator, output_type="latent", **sizes).frames

    dense = generate()
    enable(tiny_pipeline, ReuseConfig(refresh=2, budget=0.4))
    reused = generate()
    assert not torch.equal(reused, dense) and torch.equal(generate(), reused)
    numbers = summary(tiny_pipeline)
    assert numbers["saving"]["reuse_steps"] == pytest.approx(0.4, abs=0.1)
    assert len(numbers["records"]) == 5 * 2 * 2
    disable(tiny_pipeline)
    assert torch.equal(generate(), dense)


def test_under_compile(transformer):
    enable(transformer, TOKEN)
    eager = denoise(transformer)
    enable(transformer, TOKEN)
    compiled = torch.compile(transformer, backend="eager")
    torch.testing.assert_close(denoise(compiled), eager)
    assert len(summary(compiled)["records"]) == STEPS * 2 * len(LAYERS)
    torch._dynamo.reset()


def test_the_package_imports_nothing_heavy():
    code = "import sys, timeripple; assert not {'torch', 'diffusers'} & set(sys.modules); timeripple.ReuseConfig"
    subprocess.run([sys.executable, "-c", code], check=True)
