"""The one list of what can be set: its values, its tables, and what it refuses before anything is queued."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from timeripple.bench.attention import request_for
from timeripple.clips.generate import Request
from timeripple.clips.methods import parse_method
from ui.form import SIZES
from ui.limits import FIXED_SECONDS, SECONDS_PER_TERAFLOP, Limits, check_server, seconds_needed, table, written

ROOT = Path(__file__).parents[2]
REQUEST = Request("a red ball", steps=20, num_frames=61, height=128, width=128)


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md"])
def test_the_tables_are_those_of_the_list(name):
    text = (ROOT / name).read_text()
    assert written(text) == text and table() in text


def test_a_text_without_a_place_for_the_table_is_one_sentence():
    with pytest.raises(ValueError, match="has no place for the table"):
        written("nothing")


def test_every_limit_can_be_set_and_none_can_be_nothing():
    for each in fields(Limits):
        variable = f"TIMERIPPLE_{each.name.upper()}"
        assert getattr(Limits.from_environment({variable: "7"}), each.name) == 7 and each.metadata["meaning"]
        least = 4 if each.name == "max_steps" else 1  # the form of Look inside begins there
        with pytest.raises(ValueError, match=f"{each.name} is {least - 1}; give {least} to"):
            replace(Limits(), **{each.name: least - 1})


@pytest.mark.parametrize("text", ["0", "-3", "many", "1.5", "", "9" * 400, "٣", "1e3", "inf", "nan"])
def test_a_bad_limit_is_one_sentence(text):
    with pytest.raises(
        ValueError, match=r"^TIMERIPPLE_MAX_TOKENS is .{,50}; give a whole number of at least 1, such as"
    ):
        Limits.from_environment({"TIMERIPPLE_MAX_TOKENS": text})


def test_fewer_steps_than_the_forms_begin_with_are_one_sentence():
    assert Limits.from_environment({"TIMERIPPLE_MAX_STEPS": "4"}).max_steps == 4
    with pytest.raises(
        ValueError, match=r"^TIMERIPPLE_MAX_STEPS is '3'; give a whole number of at least 4, such as 50"
    ):
        Limits.from_environment({"TIMERIPPLE_MAX_STEPS": "3"})


def test_a_name_that_is_no_setting_is_said():
    with pytest.raises(ValueError, match=r"TIMERIPPLE_MAX_TOKEN is no setting; is TIMERIPPLE_MAX_TOKENS meant\?"):
        Limits.from_environment({"TIMERIPPLE_MAX_TOKEN": "7"})
    with pytest.raises(ValueError, match="TIMERIPPLE_COLOUR is no setting; see the README"):
        Limits.from_environment({"TIMERIPPLE_COLOUR": "7"})
    assert Limits.from_environment({"TIMERIPPLE_MODEL": "pond", "PATH": "/bin"}) == Limits()


@pytest.mark.parametrize("root", ["timeripple", "/timeripple/", "/a b", '/"><script>', "ftp://host/app"])
def test_a_bad_root_path_is_one_sentence(root):
    with pytest.raises(ValueError, match=r"^GRADIO_ROOT_PATH is .*; begin with / and end without, such as /timeripple"):
        check_server({"GRADIO_ROOT_PATH": root})


def test_a_root_path_and_a_port():
    assert check_server({"GRADIO_ROOT_PATH": "/timeripple", "GRADIO_SERVER_PORT": "80"}) == 80
    assert check_server({"GRADIO_ROOT_PATH": "https://example.org/timeripple"}) == 7860
    for port in ("0", "65536", "-1", "7860.0", "9" * 30):
        with pytest.raises(ValueError, match="give a port from 1 to 65535"):
            check_server({"GRADIO_SERVER_PORT": port})


def test_compiling_is_yes_or_no():
    assert check_server({"TIMERIPPLE_COMPILE": "yes"}) == check_server({"TIMERIPPLE_COMPILE": "no"}) == 7860
    with pytest.raises(ValueError, match=r"^TIMERIPPLE_COMPILE is 'true'; give yes or no\.$"):
        check_server({"TIMERIPPLE_COMPILE": "true"})


def test_the_estimate_counts_every_product(tiny_pipeline):
    """Two layers of two heads of 24, 4096 tokens, two passes: 4 N^2 d + 24 N d^2 operations a layer."""
    tokens, width = 16 * 16 * 16, 48
    teraflops = 2 * 2 * (4 * tokens**2 * width + 24 * tokens * width**2) * 20 / 1e12
    expected = FIXED_SECONDS + SECONDS_PER_TERAFLOP["cpu"] * teraflops
    assert expected <= seconds_needed(tiny_pipeline, REQUEST) <= expected + 1
    assert seconds_needed(tiny_pipeline, REQUEST, 40) > seconds_needed(tiny_pipeline, REQUEST)


def test_what_the_form_offers_is_allowed():
    """Every size of Pond's in its own number of steps, and but for the largest in all steps, with two methods."""
    from timeripple.clips.models import load_pond

    pond, limits, methods = load_pond(), Limits(), [parse_method("dense"), parse_method("token:0.75")]
    for name, (frames, height, width) in SIZES.items():
        steps = REQUEST.steps if name == "Large" else limits.max_steps
        limits.check_comparison(pond, Request("a ball", "", 0, steps, frames, height, width), methods)


def test_too_many_steps_of_the_largest_size_names_how_many_fit():
    from timeripple.clips.models import load_pond

    pond, methods, size = load_pond(), [parse_method("dense"), parse_method("token:0.75")], SIZES["Large"]
    with pytest.raises(ValueError, match=r"so ask for at most \d+ steps, fewer methods or a smaller size") as refused:
        Limits().check_comparison(pond, Request("a ball", "", 0, 50, *size), methods)
    fitting = int(re.search(r"at most (\d+) steps", str(refused.value))[1])
    assert REQUEST.steps <= fitting < 50
    Limits().check_comparison(pond, Request("a ball", "", 0, fitting, *size), methods)
    with pytest.raises(ValueError, match="This would take about"):
        Limits().check_comparison(pond, Request("a ball", "", 0, fitting + 1, *size), methods)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 51}, "These are 51 steps; the limit here is 50"),
        ({"num_frames": 797}, "This size is 51,200 tokens; the limit here is 16,384"),
        ({"prompt": "a red ball " * 200}, "This prompt has 2,200 characters; the limit here is 2,000"),
        ({"negative_prompt": "x" * 2_001}, "This prompt has 2,001 characters"),
    ],
)
def test_what_is_too_large_is_one_sentence(tiny_pipeline, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Limits().check(tiny_pipeline, replace(REQUEST, **change))


def test_methods_together_are_one_estimate(tiny_pipeline):
    methods = [parse_method(f"token:0.{number}") for number in range(1, 9)]
    alone = seconds_needed(tiny_pipeline, REQUEST)
    limits = Limits(max_run_seconds=alone)
    limits.check_comparison(tiny_pipeline, REQUEST, methods[:1])
    with pytest.raises(ValueError, match=rf"about \d+ seconds; the limit here is {alone}, so ask for "):
        limits.check_comparison(tiny_pipeline, REQUEST, methods)
    with pytest.raises(ValueError, match="These are 301 methods; the limit here is 8"):
        Limits().check_number(301)


def test_q_k_and_v_to_look_at_are_bounded(tiny_pipeline):
    """4 bytes of 3 x 2 layers x 4096 tokens x 48 channels: 4.7 MB a step."""
    Limits(max_captured_megabytes=5).check_captured(tiny_pipeline, REQUEST, 1)
    with pytest.raises(ValueError, match="Looking at 2 steps of this size takes 9 MB; the limit here is 5"):
        Limits(max_captured_megabytes=5).check_captured(tiny_pipeline, REQUEST, 2)


def test_measurements_are_bounded(tiny_pipeline):
    with pytest.raises(ValueError, match="These are 9 numbers of tokens; the limit here is 8"):
        Limits().check_lengths(tiny_pipeline, [request_for(256 * n) for n in range(1, 10)])


def test_on_a_lent_gpu_the_limit_is_the_quota_s(tiny_pipeline, monkeypatch):
    monkeypatch.setattr("ui.limits.gpu_is_lent", lambda: True)
    needed = seconds_needed(tiny_pipeline, REQUEST)
    Limits(max_gpu_seconds=needed).check(tiny_pipeline, REQUEST)
    with pytest.raises(ValueError, match=rf"about {needed} seconds of a lent GPU; the limit here is {needed - 1}"):
        Limits(max_gpu_seconds=needed - 1).check(tiny_pipeline, REQUEST)
