"""A broken clip is never a result: numbers that are not finite, clips that show nothing, metrics that fail."""

import ast
import errno
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from timeripple.clips import quality
from timeripple.clips.compare import Comparison, check_folder, compare, read_settings, save
from timeripple.clips.generate import BrokenClip, Generation, Request, generate
from timeripple.clips.methods import parse_method
from timeripple.clips.models import load_pipeline
from timeripple.clips.quality import PSNR_CAP, flaw, judge
from timeripple.clips.video import read_metadata, read_mp4

REQUEST = Request("a green cube", seed=3, steps=5, num_frames=9, height=32, width=40)
PASSES = 2
ROOT = Path(__file__).parents[2]
DENSE, TOKEN, TILE = map(parse_method, ("dense", "token:0.6", "tile:0.3"))


@contextmanager
def hooked(module, hook):
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def breaking(number, value=float("nan")):
    """Puts one such value into what a module gives from its call of this number on, counted from 1."""
    calls = 0

    def hook(module, args, output):
        nonlocal calls
        calls += 1
        if calls >= number:
            (output[0] if isinstance(output, tuple) else output)[..., 0] = value

    return hook


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", [DENSE, TOKEN])
def test_the_step_and_the_method_are_named_where_numbers_are_not_finite(tiny_pipeline, method, value):
    third = 2 * PASSES + 1
    with hooked(tiny_pipeline.transformer, breaking(third, value)), pytest.raises(BrokenClip) as error:
        generate(tiny_pipeline, REQUEST, method)
    assert str(error.value).startswith(
        f"{method.label} gave numbers that are not finite (NaN or infinite) at step 3 of 5"
    )
    assert not hasattr(tiny_pipeline.transformer, "_timeripple") and not tiny_pipeline.vae.decoder._forward_hooks
    assert np.isfinite(generate(tiny_pipeline, REQUEST, method).frames).all()  # what follows is whole


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_decoding_is_named_where_it_breaks(tiny_pipeline, value):
    with hooked(tiny_pipeline.vae.decoder, breaking(1, value)), pytest.raises(BrokenClip, match=r"token.* in decoding"):
        generate(tiny_pipeline, REQUEST, TOKEN)


def test_half_precision_that_overflows_is_said(tiny_wan):
    pipeline = load_pipeline(str(tiny_wan), device="cpu", dtype="float16")
    pipeline.transformer.proj_out.weight.data.fill_(60_000)
    request = Request.for_pipeline(pipeline, "a red ball", num_frames=9, height=64, width=96, steps=2)
    with pytest.raises(BrokenClip, match=r"dense gave .* at step 1 of 2, .*try another dtype, such as float32"):
        generate(pipeline, request, DENSE)


def test_a_method_that_breaks_costs_no_other_clip(tiny_pipeline, tmp_path):
    steps_before = 1 + 3 * (REQUEST.steps - 1) + 1  # the warm-up, all but the last of each, and the last of dense
    breaks, calls = breaking(1), 0

    def hook(*given):
        nonlocal calls
        calls += 1
        if calls == PASSES * steps_before + 1:
            breaks(*given)

    with hooked(tiny_pipeline.transformer, hook):
        comparison = compare(tiny_pipeline, REQUEST, [DENSE, TOKEN, TILE])
    assert [generation.method for generation in comparison.generations] == [DENSE, TILE]
    assert list(comparison.broken) == ["token-0.6"] and "step 5 of 5" in comparison.broken["token-0.6"]
    names = {path.name for path in save(comparison, tmp_path, tiny_pipeline)}
    assert {"dense.mp4", "tile-0.3.mp4"} <= names and "token-0.6.mp4" not in names
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [row["label"] for row in report["methods"]] == ["dense", "tile-0.3"] and report[
        "broken"
    ] == comparison.broken
    assert "step 5 of 5" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_without_a_reference_there_is_nothing_to_compare(tiny_pipeline):
    with hooked(tiny_pipeline.transformer, breaking(PASSES + 1)), pytest.raises(BrokenClip, match="dense gave"):
        compare(tiny_pipeline, REQUEST, [DENSE, TOKEN])


def plain(colour, frames=4):
    return np.full((frames, 64, 64, 3), colour, np.uint8)


def noise(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)


def some_black():
    clip = noise()
    clip[1:3] = 0
    return clip


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        (plain(0), "all 4 frames are black"),
        (plain(255), "all 4 frames are one colour"),
        (plain((10, 200, 30)), "all 4 frames are one colour"),
        (some_black(), "2 of 4 frames are black"),
        (noise(), None),
        (noise() // 16, None),  # dark, but it shows something
    ],
)
def test_frames_that_show_nothing_are_flagged(clip, said):
    assert flaw(clip) == said


@pytest.mark.parametrize(("clip", "reference"), [(plain(0), plain(255)), (plain(0), noise()), (noise(), some_black())])
def test_vmaf_is_not_given_where_it_means_nothing(clip, reference):
    judged = judge(clip, reference)
    assert judged.scores["vmaf"] is None and judged.per_frame["vmaf"] is None and list(judged.missing) == ["vmaf"]
    error = ((clip.astype(float) - reference) ** 2).mean()
    assert judged.scores["psnr"] == pytest.approx(10 * np.log10(255**2 / error))


def test_a_clip_that_shows_something_has_every_metric():
    judged = judge(noise(), noise())
    assert judged.scores["psnr"] == PSNR_CAP and judged.scores["ssim"] == pytest.approx(1) and not judged.missing
    assert judged.scores["vmaf"] == pytest.approx(np.mean(judged.per_frame["vmaf"]))


SUMMARY = {"grid": [4, 8, 8], "held_bytes": 0, "records": [], "saving": None}
SECONDS = dict.fromkeys(("total", "text", "denoise", "attention", "plan", "decode"), 1.0)


def compared(*clips):
    methods = DENSE, TOKEN
    made = [Generation(m, clip, SECONDS, None, SUMMARY, flaw(clip)) for m, clip in zip(methods, clips, strict=True)]
    request = replace(REQUEST, num_frames=4, height=64, width=64)
    return Comparison(request, made, [None, judge(clips[1], clips[0])], {})


def test_flags_and_missing_metrics_are_in_report_page_and_files(tiny_pipeline, tmp_path):
    comparison = compared(noise(), plain(0))
    save(comparison, tmp_path, tiny_pipeline)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    row = report["methods"][1]
    assert row["flaw"] == "all 4 frames are black" and row["quality"]["vmaf"] is None and row["quality"]["psnr"] < 10
    assert report["remarks"] == ["token-0.6: all 4 frames are black.",
                                 "token-0.6: VMAF says nothing of frames that show one colour."]  # fmt: skip
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "all 4 frames are black" in page and "<td>–</td>" in page


def no_libvmaf(monkeypatch, tmp_path):
    program = tmp_path / "ffmpeg"
    real = imageio_ffmpeg.get_ffmpeg_exe()
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *libvmaf*) echo "No such filter: libvmaf" >&2; exit 1;; esac\n{real} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(program))
    return "No such filter: libvmaf"


def full_disk(monkeypatch, tmp_path):
    def write(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(quality.Path, "write_bytes", write)
    return "No space left on device"


def no_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(quality.tempfile, "tempdir", str(tmp_path / "missing"))
    return "No such file"


def wild_metric(monkeypatch, tmp_path):
    def fails(*given):
        raise RuntimeError("strange")

    monkeypatch.setattr(quality, "vmaf_per_frame", fails)
    return "strange"


@pytest.mark.parametrize("trouble", [no_libvmaf, full_disk, no_temporary_folder, wild_metric])
def test_metrics_that_fail_cost_the_metric_and_not_the_clips(tiny_pipeline, tmp_path, monkeypatch, trouble):
    clips = noise(), noise(1)
    with monkeypatch.context() as inside:
        reason = trouble(inside, tmp_path)
        comparison = compared(*clips)
    judged = comparison.quality[1]
    assert judged.scores["vmaf"] is None and reason in judged.missing["vmaf"]
    assert judged.missing["vmaf"].startswith("VMAF cannot be measured: ") and judged.missing["vmaf"].endswith(".")
    assert judged.scores["psnr"] == pytest.approx(quality.psnr(*clips)) and judged.scores["ssim"] is not None
    assert (tmp_path / "out").exists() is False
    names = {path.name for path in save(comparison, tmp_path / "out", tiny_pipeline)}
    assert {"dense.mp4", "token-0.6.mp4", "report.json"} <= names


def test_clips_too_small_for_a_metric_have_the_others():
    judged = judge(noise()[:, :8, :8], noise(1)[:, :8, :8])
    assert judged.scores["ssim"] is None and judged.scores["psnr"] is not None and "ssim" in judged.missing


def no_program():
    raise RuntimeError("No ffmpeg exe could be found.")


@pytest.mark.parametrize("found", [no_program, lambda: "/nowhere/ffmpeg", lambda: "/bin/false"])
def test_without_ffmpeg_only_vmaf_is_missing(tiny_pipeline, tmp_path, monkeypatch, found):
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", found)
    check_folder(tmp_path)
    comparison = compared(noise(), noise(1))
    names = {path.name for path in save(comparison, tmp_path, tiny_pipeline)}
    assert {"dense.mp4", "token-0.6.mp4", "side_by_side.mp4", "player.mp4"} <= names
    assert read_mp4(tmp_path / "dense.mp4").shape[0] == len(noise())
    [remark] = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["remarks"]
    assert remark.startswith("token-0.6: VMAF cannot be measured: ") and "ffmpeg" in remark and remark.endswith(".")


@pytest.mark.parametrize("argument", ["--help", "bench"])
def test_output_that_cannot_be_written_is_one_sentence(argument):
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "timeripple", argument]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE)
    said = done.stderr.decode()
    assert done.returncode == 2 and said.count("\n") == 1
    assert said.startswith("The output cannot be written: no space left on device")


SURROGATE = "a red ball \udcff \ud83c\udf0a"  # a byte that is no UTF-8, and one character in two halves


def test_lone_surrogates_are_replaced(tiny_pipeline, tmp_path):
    request = replace(REQUEST, prompt=SURROGATE, negative_prompt="a cube \ud800")
    assert (request.prompt, request.negative_prompt) == ("a red ball � 🌊", "a cube �")
    comparison = replace(compared(noise(), noise(1)), request=request)
    save(comparison, tmp_path, tiny_pipeline)
    assert read_settings(read_metadata(tmp_path / "dense.mp4"))[0] == request
    assert "a red ball � 🌊" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_files_are_utf_8_whatever_the_locale(tmp_path):
    command = [
        sys.executable, "-m", "timeripple", "compare", "--prompt", b"a red ball \xff \xf0\x9f\x8c\x8a", "--frames", "2",
        "--size", "40x32", "--steps", "4", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | locale, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads((tmp_path / "out" / "report.json").read_bytes().decode("utf-8"))
    page = (tmp_path / "out" / "report.html").read_bytes().decode("utf-8")
    assert "red ball" in report["prompt"] and "×" in page and report["methods"][1]["quality"]["vmaf"] is not None
    assert b"token-0.75" in done.stdout


def speaks_locale(call):
    """Whether a call reads or writes text without saying in what encoding."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    named = {keyword.arg for keyword in call.keywords}
    modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    of_bytes = ast.unparse(call.func) in ("Image.open", "av.open", "os.open") or any("b" in mode for mode in modes)
    opens = name == "open" and not of_bytes
    return (name in ("run", "Popen") and "text" in named) or (
        (opens or name in ("read_text", "write_text")) and "encoding" not in named
    )


def test_every_text_file_says_its_encoding():
    silent = []
    for path in (ROOT / "app.py", *(ROOT / "timeripple").rglob("*.py"), *(ROOT / "ui").rglob("*.py")):
        calls = (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call))
        silent += [
            f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}" for call in calls if speaks_locale(call)
        ]
    assert silent == []
