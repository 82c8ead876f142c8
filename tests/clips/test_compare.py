import base64
import errno
import json
import os
import re

import numpy as np
import pytest
import torch

from tests.attention.test_cost import FAST
from timeripple.attention import cost
from timeripple.attention.method import ConfigError
from timeripple.clips import compare as comparing
from timeripple.clips import interleaved
from timeripple.clips.compare import check_folder, compare, read_settings, save
from timeripple.clips.generate import Cancelled, Request
from timeripple.clips.methods import parse_method
from timeripple.clips.quality import PSNR_CAP, psnr
from timeripple.clips.report import html_report
from timeripple.clips.video import AMPLIFICATIONS, read_metadata, read_mp4

REQUEST = Request("a green cube", seed=3, steps=5, num_frames=9, height=32, width=40)
METHODS = ("dense", "token:0.6", "channel:0.6")


@pytest.fixture(scope="module")
def comparison(tiny_pipeline):
    return compare(tiny_pipeline, REQUEST, [parse_method(text) for text in METHODS])


def test_every_method_starts_from_the_same_noise(tiny_pipeline):
    inputs = []
    hook = tiny_pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(kwargs["hidden_states"].clone()), with_kwargs=True
    )
    try:
        compare(tiny_pipeline, REQUEST, [parse_method(text) for text in METHODS])
    finally:
        hook.remove()
    per_step = 2  # guidance passes
    runs = inputs[per_step : 4 * per_step : per_step]  # after the warm-up, the first step of each
    assert len(runs) == 3 and all(torch.equal(run, runs[0]) for run in runs)


def test_dense_against_dense_is_identical(tiny_pipeline):
    result = compare(tiny_pipeline, REQUEST, [parse_method("dense"), parse_method("channel:0")])
    first, second = result.generations
    assert np.array_equal(first.frames, second.frames)
    none, quality = result.quality
    expected = {"psnr": PSNR_CAP, "ssim": pytest.approx(1), "vmaf": pytest.approx(97.5, abs=2.5)}
    assert none is None and quality.scores == expected
    assert quality.per_frame["psnr"] == [PSNR_CAP] * REQUEST.num_frames


def test_report(tiny_pipeline, comparison):
    report = json.loads(json.dumps(comparison.report(tiny_pipeline), allow_nan=False))
    assert {name: report[name] for name in ("prompt", "seed", "steps", "grid")} == {
        "prompt": "a green cube",
        "seed": 3,
        "steps": 5,
        "grid": [3, 4, 5],
    }
    assert {"model", "environment", "versions"} <= report.keys()
    dense, token, channel = report["methods"]
    assert (dense["saving"], dense["quality"], dense["budget"], dense["speedup"]) == (None, None, None, 1)
    assert (token["method"], token["label"], token["budget"], token["theta"]) == ("token:0.6", "token-0.6", 0.6, None)
    assert token["saving"]["kind"] == "realised" and channel["saving"]["kind"] == "theoretical"
    assert set(token["saving"]) == {"kind", "reuse_steps", "all_steps", "per_step"}
    assert set(token["quality"]) == set(token["per_frame"]) == {"psnr", "ssim", "vmaf"}
    assert {len(values) for values in token["per_frame"].values()} == {9}
    for name in ("ssim", "vmaf"):
        assert np.mean(token["per_frame"][name]) == pytest.approx(token["quality"][name])
    assert (dense["per_frame"], dense["amplification"]) == (None, None) and token["amplification"] in AMPLIFICATIONS
    shares = list(token["saving_by_head"].values())
    assert np.mean(shares) == pytest.approx(token["saving"]["all_steps"]) and np.shape(shares) == (2, 2)
    assert dense["saving_by_head"] is None
    assert {"total", "denoise", "attention", "plan", "decode"} <= token["seconds"].keys()
    assert token["speedup"] == pytest.approx(dense["seconds"]["total"] / token["seconds"]["total"])


def luma(clip):
    """BT.709, uint8 [F, H, W, 1]."""
    return np.dot(clip, (0.2126, 0.7152, 0.0722))[..., None].round().astype(np.uint8)


def test_saved_files(tiny_pipeline, comparison, tmp_path):
    folder = tmp_path / "new" / "run"
    paths = save(comparison, folder, tiny_pipeline)
    videos = ["channel-0.6.mp4", "dense.mp4", "player.mp4", "side_by_side.mp4", "token-0.6.mp4"]
    assert (
        [path.name for path in paths] == sorted(os.listdir(folder)) == sorted([*videos, "report.html", "report.json"])
    )
    assert os.listdir(tmp_path) == ["new"]
    assert read_mp4(folder / "dense.mp4").shape == (9, 128, 160, 3)
    assert read_mp4(folder / "side_by_side.mp4").shape == (9, 160, 3 * 160 + 2 * 8, 3)
    player = read_mp4(folder / "player.mp4")
    assert player.shape == (9, 128, 5 * (160 + 16), 3)
    for number, label in enumerate(("dense", "token-0.6")):
        left = number * 176 + 8
        shown, alone = player[:, :, left : left + 160], read_mp4(folder / f"{label}.mp4")
        assert psnr(luma(shown), luma(alone)) > 35  # colours are kept at half the size


def test_one_method_alone_has_no_player(tiny_pipeline, tmp_path):
    save(compare(tiny_pipeline, REQUEST, [parse_method("dense")]), tmp_path, tiny_pipeline)
    assert (tmp_path / "dense.mp4").exists() and not (tmp_path / "player.mp4").exists()


def test_settings_travel_in_every_video(tiny_pipeline, comparison, tmp_path):
    paths = save(comparison, tmp_path, tiny_pipeline)
    videos = [path for path in paths if path.suffix == ".mp4"]
    assert len(videos) >= 4
    for path in videos:
        assert read_settings(read_metadata(path)) == (REQUEST, [parse_method(text) for text in METHODS])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "name no prompt"),
        ({"prompt": "  "}, "name no prompt"),
        ({"prompt": "a ball", "seed": "many"}, "seed is 'many'; give a number"),
        ({"prompt": "a ball", "steps": [1, 2]}, "steps is '\\[1, 2\\]'; give a number"),
        ({"prompt": "a ball", "compared": ["dense"]}, "give names with commas"),
        ({"prompt": "a ball", "compared": "dense,<b>"}, "method '<b>' is unknown"),
    ],
)
def test_foreign_settings_are_one_sentence(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_settings(values)


def test_settings_as_texts_with_names_nobody_knows():
    values = {"prompt": "a ball", "seed": "7", "guidance_scale": "2.5", "__theme": "dark", "compared": "dense,tile:0.5"}
    request, methods = read_settings(values)
    assert request == Request("a ball", seed=7, guidance_scale=2.5)
    assert methods == [parse_method("dense"), parse_method("tile:0.5")]


def test_the_report_as_a_page_is_complete_and_escapes(tiny_pipeline, comparison, tmp_path):
    save(comparison, tmp_path, tiny_pipeline)
    page = (tmp_path / "report.html").read_text()
    assert "a green cube" in page and not re.search(r"<(script|link|img|video)[^>]*(src|href)=.https?:", page)
    for label in ("dense", "token-0.6", "channel-0.6"):
        assert base64.b64encode((tmp_path / f"{label}.mp4").read_bytes()).decode() in page
    assert "saved (realised)" in page and "saved (theoretical)" in page
    report = comparison.report(tiny_pipeline) | {"prompt": "<script>alert(1)</script>"}
    assert "<script>alert(1)" not in html_report(report, tmp_path)


def test_saving_twice_replaces_and_spares_other_files(tiny_pipeline, comparison, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "report.json").write_text("old")
    save(comparison, tmp_path, tiny_pipeline)
    assert len(list(tmp_path.iterdir())) == 8 and (tmp_path / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "report.json").read_text())["seed"] == 3


@pytest.mark.parametrize("existing", [True, False])
def test_disk_full_while_saving_leaves_nothing(tiny_pipeline, comparison, tmp_path, monkeypatch, existing):
    folder = tmp_path / "run"
    if existing:
        folder.mkdir()
    write = comparing.write_mp4

    def fail_at_the_last(path, *args, **kwargs):
        write(path, *args, **kwargs)
        if path.name == "side_by_side.mp4":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(comparing, "write_mp4", fail_at_the_last)
    with pytest.raises(OSError) as error:
        save(comparison, folder, tiny_pipeline)
    assert str(error.value) == f"Cannot write to {folder}: no space left on device."
    assert [path for path in tmp_path.rglob("*") if path != folder] == [] and folder.exists() == existing


def test_check_folder(tmp_path):
    check_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(OSError, match="Cannot write to"):
            check_folder(folder)


def test_what_is_checked_before_anything_is_computed(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(comparing, "generate_all", lambda *args, **kwargs: pytest.fail("computed"))
    with pytest.raises(ValueError, match="no method"):
        compare(tiny_pipeline, REQUEST, [])
    with pytest.raises(ValueError, match=r"token-0\.75 is given twice"):
        compare(tiny_pipeline, REQUEST, [parse_method("token"), parse_method("token:0.75")])
    with pytest.raises(ConfigError, match="out of reach"):
        compare(tiny_pipeline, REQUEST, [parse_method("dense"), parse_method("token:0.95:refresh=1")])
    with pytest.raises(Cancelled):
        compare(tiny_pipeline, REQUEST, [parse_method("dense")], should_stop=lambda: True)


def test_cancel_on_the_way(tiny_pipeline):
    events = []
    with pytest.raises(Cancelled):
        compare(
            tiny_pipeline,
            REQUEST,
            [parse_method("dense"), parse_method("token:0.6")],
            on_step=events.append,
            should_stop=lambda: len(events) == 7,
        )
    assert [event.method for event in events] == ["dense", "token-0.6"] * 3 + ["dense"]


def test_a_reference_of_before_is_not_computed_again(tiny_pipeline):
    methods, events = [parse_method("dense"), parse_method("token:0.5")], []
    first = compare(tiny_pipeline, REQUEST, methods)
    again = compare(tiny_pipeline, REQUEST, methods, first.generations[0], on_step=events.append)
    assert {event.method for event in events} == {"token-0.5"} and again.generations[0] is first.generations[0]
    assert again.quality[1] == first.quality[1]


def test_what_calls_of_attention_take_is_found_out_before_anything_is_timed(tiny_pipeline, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured, before = [], []
    monkeypatch.setattr(cost, "_measured", lambda call, method: measured.append(call) or FAST)
    plain = interleaved.generate
    monkeypatch.setattr(
        interleaved, "generate", lambda *args, **how: (before.append(len(measured)), plain(*args, **how))[1]
    )
    compare(tiny_pipeline, REQUEST, [parse_method("dense"), parse_method("token:speedup=1.2:steps=8")])
    assert before == [1, 1] and len(measured) == 1
