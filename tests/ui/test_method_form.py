"""The controls of a method, without the page: what they ask for, and how a method fills them."""

import json
from dataclasses import replace

import pytest

from timeripple.attention.config import ReuseConfig
from timeripple.attention.method import ConfigError
from timeripple.clips.compare import compare
from timeripple.clips.generate import Request
from timeripple.clips.methods import SETTINGS, parse_method
from ui.method_form import VALUES, fill_method, read_method, title

TEXTS = [
    "dense",
    "token",
    "token:0.72",
    "token:theta=0.4:axes=tx",
    "token:speedup=1.5:refresh=3",
    "token:0.6:refresh=none:dense_first=0.2:dense_last=1:ramp=0.1",
    "token:0.7:refresh=9:metric=rms:extrapolate=no",
    "tile:0.5:query_tile=2x4x4",
    "channel:0.75:window=4",
    "channel:theta=0.3:refresh=3",
    "skip:0.7:refresh=5:ramp=0.2",
    "output-cache:0.67:dense_first=0:dense_last=2",
    "svg:0.6:dense_first=0.1",
    "svg2",
    "svg2:0.5:query_cluster=128",
    "skip:theta=0.3:dense_first=0.1",
    "token-merge:0.5:dense_last=1",
    "taylorseer:3:order=2",
    "pab",
    "token:0.5+taylorseer:3",
    "dense:steps=10:solver=euler",
    "token:0.5:steps=14:solver=dpm+++taylorseer:3",
    "channel:0.5:axes=ty+skip:0.5",
]


def changed(name, **changes):
    return list((dict(zip(VALUES, fill_method(parse_method(name), 20), strict=True)) | changes).values())


@pytest.mark.parametrize("text", TEXTS)
def test_a_method_fills_the_controls_that_ask_for_it(text):
    method = parse_method(text)
    again = read_method(fill_method(method, 20), 20)
    assert replace(again, text="") == replace(method, text="")


@pytest.mark.parametrize("target", ["40", "36", "34"])
def test_a_quality_target_takes_the_calibrated_settings(target):
    method = read_method(changed("token", by="Quality target", target=target), 20)
    assert method.config == ReuseConfig.load(SETTINGS / f"pond-{target}dB.json")


@pytest.mark.parametrize("text", ["dense:steps=3", "token:0.5:steps=4+forecast:0.7", "hsa:0.25:steps=5:solver=unipc"])
def test_a_quality_target_takes_what_tune_wrote(tiny_pipeline, tmp_path, monkeypatch, text):
    """Fewer steps, a stack or a peer: it is compared, in its own steps, and comes back to the form."""
    (tmp_path / "pond-36dB.json").write_text(json.dumps({"method": text, "seconds": 1.0, "psnr": 36.4}))
    monkeypatch.setattr("timeripple.clips.methods.SETTINGS", tmp_path)
    method = read_method(changed("token", by="Quality target", target="36"), 6)
    assert method == parse_method(text) and title(method)
    assert replace(read_method(fill_method(method, 6), 6), text="") == replace(method, text="")
    request = Request("a red ball", steps=6, num_frames=5, height=32, width=32)
    report = compare(tiny_pipeline, request, [parse_method("dense"), method]).report(tiny_pipeline)
    assert [entry["steps"] for entry in report["methods"]] == [6, method.steps]
    assert report["methods"][1]["method"] == text and report["methods"][1]["quality"]["psnr"] > 10


def test_steps_of_the_form_are_steps_of_the_schedule():
    values = changed("tile", dense_first="3", dense_last="2", ramp="5", refresh="none", budget=0.6)
    schedule = read_method(values, 16).config.schedule(16)
    assert [step.index for step in schedule if step.in_window] == list(range(3, 14))
    thetas = [step.saving_target for step in schedule if step.in_window]
    assert thetas[0] == pytest.approx(0.4 * thetas[5]) and thetas[4] < thetas[5] == thetas[10]


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("token", {"axes": []}, "are not distinct axes"),
        ("token", {"others": "nonsense"}, "is not a value of budget|is given twice"),
        ("token", {"others": "colour=red"}, "'colour' .* is unknown"),
        ("skip", {"others": "axes=tyx"}, "'axes' .* is unknown"),
        ("token", {"by": "Threshold θ", "theta": -1}, "theta -1.0 is negative"),
        ("channel", {"budget": 0.99}, "above the ceiling"),
    ],
)
def test_what_makes_no_method_is_one_sentence(name, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        read_method(changed(name, **changes), 20)


def test_titles():
    texts = (
        "dense", "token:0.75", "channel:theta=0.3", "output-cache:0.5", "token:0.5+taylorseer:3", "dense:steps=9",
        "token:speedup=1.5",
    )  # fmt: skip
    assert [title(parse_method(text)) for text in texts] == [
        "Dense", "Token reuse · 75%", "Channel (paper) · θ 0.3", "Output cache (PAB) · 50%",
        "Token reuse · 50% + TaylorSeer · 3", "Dense · steps 9", "Token reuse · 1.5×",
    ]  # fmt: skip
