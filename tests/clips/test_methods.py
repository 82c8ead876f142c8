"""Methods by name, end to end in a tiny pipeline."""

import re

import pytest
import torch

from timeripple.attention.config import ReuseConfig
from timeripple.attention.method import ConfigError
from timeripple.baselines import ATTENTION, STEP_CACHES
from timeripple.bench.tiny import tiny
from timeripple.clips.methods import METHODS, calibrated_methods, parse_method

TEXTS = {
    "dense": "dense",
    "channel:0.5": "channel-0.5",
    "token:0.75": "token-0.75",
    "tile:theta=0.5:refresh=none": "tile-theta=0.5-refresh=none",
    "output-cache:0.67": "output-cache-0.67",
    "output-cache:0.5+taylorseer:2": "output-cache-0.5+taylorseer-2",
    "output-cache:0.5+mag-cache:0.06": "output-cache-0.5+mag-cache-0.06",
    "skip:0.7:refresh=5": "skip-0.7-refresh=5",
    "svg": "svg-0.75",
    "compact:0.5": "compact-0.5",
    "ditfastattn:0.5": "ditfastattn-0.5",
    "re-ttention:0.5": "re-ttention-0.5",
    "token-merge:0.5": "token-merge-0.5",
    "channel:0.5+skip:0.5": "channel-0.5+skip-0.5",
    "token:0.5+first-block-cache:0.1": "token-0.5+first-block-cache-0.1",
    "dense:steps=10": "dense-steps=10",
    "token:0.5:solver=dpm++:steps=10+taylorseer:3": "token-0.5+taylorseer-3-steps=10-solver=dpm++",
}


def generate(pipeline):
    generator = torch.Generator().manual_seed(0)
    sizes = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 10}
    return pipeline("a red ball", generator=generator, output_type="latent", **sizes).frames


@pytest.mark.parametrize("text", TEXTS)
def test_labels_are_file_names_and_texts_are_kept(text):
    method = parse_method(f" {text} ")
    assert method.text == text and method.label == TEXTS[text]
    assert re.fullmatch(r"[\w.=+-]+", method.label)
    assert parse_method(text) == method


def test_every_name_has_defaults():
    assert ("dense", "channel", "token", "tile", *ATTENTION, *STEP_CACHES) == METHODS
    assert len({parse_method(name).label for name in METHODS}) == len(METHODS)
    assert parse_method("dense").config is None and parse_method("token").config == ReuseConfig()


@pytest.mark.parametrize("text", TEXTS)
def test_applied_and_gone(tiny_pipeline, text):
    dense, method = generate(tiny_pipeline), parse_method(text)
    with method.applied(tiny_pipeline, 10) as summarise:
        frames = generate(tiny_pipeline)
        inside = summarise()
    assert summarise() == inside and inside["method"] == method.label
    plain = text.startswith("dense")
    assert (inside["saving"] is None) == plain and len(inside["records"]) == 10 * 2 * 2
    assert torch.equal(frames, dense) == plain
    assert torch.equal(generate(tiny_pipeline), dense)
    assert not tiny_pipeline.transformer._diffusers_hook.hooks


def test_gone_after_an_error(tiny_pipeline):
    with pytest.raises(ZeroDivisionError), parse_method("token").applied(tiny_pipeline, 10):
        raise ZeroDivisionError
    assert not hasattr(tiny_pipeline.transformer, "_diffusers_hook")


@pytest.mark.parametrize("text", ["", "wan", "Dense", "tokens:0.5"])
def test_unknown_names_list_the_known_ones(text):
    with pytest.raises(ConfigError, match="choose from dense, channel, token, tile, output-cache, attention-forecast"):
        parse_method(text)


def test_dense_has_no_settings():
    with pytest.raises(ConfigError, match="dense has no settings"):
        parse_method("dense:0.5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dense:steps=0", "steps=0 is not a number of steps"),
        ("token:0.5:steps=2.5", "steps=2.5"),
        ("dense:solver=rk4", "solver 'rk4' is unknown; choose from unipc, euler"),
        ("token:0.5:steps=3+taylorseer:3:steps=4", "'steps' is given twice"),
        ("token:0.97:refresh=1:steps=4", "out of reach"),
    ],
)
def test_steps_and_solvers_that_cannot_be(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_method(text).check(20)


def test_own_steps_count_in_the_schedule():
    method = parse_method("token:0.5:steps=14")
    assert (method.evaluations(20), parse_method("token").evaluations(20)) == (14, 20)
    assert parse_method("token:0.5:steps=7:solver=heun").evaluations(20) == 13


def test_shipped_settings_save_more_as_they_keep_less():
    methods = calibrated_methods()
    assert list(methods) == sorted(methods, reverse=True) and len(methods) >= 3
    configs = [method.config for method in methods.values()]
    savings = [config.budget * sum(step.in_window for step in config.schedule(20)) for config in configs]
    assert savings == sorted(savings)
    assert all(parse_method(method.text).config == method.config for method in methods.values())


@pytest.mark.parametrize("in_place", [True, False])
def test_step_caches_are_refused_where_the_whole_transformer_is_compiled(in_place):
    pipe = tiny("WanVideoToVideoPipeline")
    if in_place:
        pipe.transformer.compile(backend="aot_eager")
    else:
        pipe.transformer = torch.compile(pipe.transformer, backend="aot_eager")
    parse_method("token:0.5").check_pipeline(pipe)
    for text in ("taylorseer:2", "token:0.5+forecast:0.5"):
        with pytest.raises(ConfigError, match="steps into blocks of the transformer, which are compiled"):
            parse_method(text).check_pipeline(pipe)
