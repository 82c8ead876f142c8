"""Every pipeline of the families, tiny and of its real class, generated as users do: sizes, inputs, steps, guidance."""

import json
import warnings
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline

from timeripple import cli, load
from timeripple.attention.method import ConfigError
from timeripple.bench.tiny import PIPELINES, PROMPT, SMALL, STEPS, inputs_for, small_request, tiny, wan_model
from timeripple.clips import pipelines
from timeripple.clips.compare import compare, read_settings
from timeripple.clips.generate import Cancelled, Request, generate
from timeripple.clips.methods import parse_method
from timeripple.clips.models import load_pipeline
from timeripple.clips.video import read_metadata, read_mp4

DENSE, TOKEN = map(parse_method, ("dense", "token:0.5"))
EVERY = pytest.mark.parametrize("name", PIPELINES)
JOINT = ["HunyuanVideoPipeline", "CogVideoXPipeline", "MochiPipeline", "HunyuanVideo15Pipeline"]
WITH_VIDEO = [name for name in PIPELINES if "VideoToVideo" in name]


@EVERY
def test_dense_clips_are_the_pipeline_s_own_and_reuse_saves(name, files):
    pipeline = tiny(name)
    request = small_request(pipeline, files)
    called = {"generator": torch.Generator().manual_seed(1), "prompt": PROMPT, "num_inference_steps": STEPS}
    called |= {n: getattr(request, n) for n in ("num_frames", "height", "width") if n in pipelines.parameters(pipeline)}
    if request.true_cfg_scale > 1:
        called["negative_prompt"] = ""
    if name == "LTXI2VLongMultiPromptPipeline":
        called["seed"] = 1
    called |= pipelines.inputs(pipeline, request.image, request.video, request.size)
    if name == "AllegroPipeline":
        pipeline.vae.enable_tiling()
    plain = pipeline(**called, output_type="np").frames[0]
    if name == "AllegroPipeline":
        pipeline.vae.disable_tiling()
    dense = generate(pipeline, request, DENSE)
    assert np.array_equal(dense.frames, (plain * 255).round().astype(np.uint8)) and dense.flaw is None
    assert dense.frames.shape[:3] == pipelines.made(pipeline, request.size)
    assert np.prod(dense.summary["grid"]) == request.tokens(pipeline) or name == "HunyuanVideoFramepackPipeline"
    reused = generate(pipeline, request, TOKEN)
    assert not np.array_equal(reused.frames, dense.frames) and max(reused.saving["per_step"]) > 0
    assert np.array_equal(generate(pipeline, request, DENSE).frames, dense.frames)
    assert "step" not in vars(pipeline.scheduler) and not getattr(pipeline.vae, "use_tiling", False)


@EVERY
def test_steps_are_told_and_a_run_can_be_stopped(name, files):
    pipeline, events = tiny(name), []
    request = small_request(pipeline, files)
    with pytest.raises(Cancelled):
        generate(pipeline, request, TOKEN, on_step=events.append, should_stop=lambda: len(events) == 3)
    left_out = 2 if name in WITH_VIDEO else 1 if name == "LTXI2VLongMultiPromptPipeline" else 0
    steps = STEPS - left_out  # video to video leaves out a fifth of them, and LTX' long clips the last one
    assert [(event.step, event.steps) for event in events] == [(i, steps) for i in (1, 2, 3)]
    assert not hasattr(pipelines.transformers(pipeline)[0], "_timeripple") and "step" not in vars(pipeline.scheduler)


ODD = [  # frames, height and width that are no multiples of anything, and what comes of them
    ("WanPipeline", (12, 70, 100), (13, 64, 96)),
    ("WanPipeline", (11, 64, 96), (9, 64, 96)),
    ("SkyReelsV2Pipeline", (12, 70, 100), (13, 64, 96)),
    ("HunyuanVideoPipeline", (12, 70, 100), (9, 64, 96)),
    ("HunyuanVideoImageToVideoPipeline", (12, 70, 100), (5, 64, 96)),
    ("HunyuanVideo15Pipeline", (12, 70, 100), (9, 64, 96)),
    ("HunyuanVideoFramepackPipeline", (34, 70, 100), (73, 64, 96)),
    ("CogVideoXPipeline", (12, 70, 100), (9, 64, 96)),
    ("LTXPipeline", (12, 70, 100), (9, 64, 96)),
    ("MochiPipeline", (12, 70, 100), (7, 64, 96)),
    ("AllegroPipeline", (30, 170, 250), (24, 160, 240)),
]


@pytest.mark.parametrize(("name", "size", "made"), ODD)
def test_sizes_are_rounded_as_the_pipeline_does_it_and_it_is_said(name, size, made, files, tmp_path):
    pipeline = tiny(name)
    given = dict(zip(("num_frames", "height", "width"), size, strict=True)) | inputs_for(name, files)
    with pytest.warns(UserWarning, match=f"{name} makes {made[0]} frames of {made[2]}x{made[1]}, where num_frames"):
        request = Request.for_pipeline(pipeline, PROMPT, steps=2, **given)
    request.check(pipeline)
    comparison = compare(pipeline, request, [DENSE])
    assert comparison.generations[0].frames.shape[:3] == made
    report = comparison.report(pipeline)
    assert report["made"] == dict(zip(("num_frames", "height", "width"), made, strict=True))
    assert bool(report["remarks"]) == (request.num_frames != made[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # what can be made is not spoken of
        wanted = {"num_frames": request.num_frames, "height": made[1], "width": made[2]} | inputs_for(name, files)
        if request.num_frames == made[0]:
            assert Request.for_pipeline(pipeline, PROMPT, steps=2, **wanted) == request


OWN = {
    "WanPipeline": (81, 480, 832, 50, 5.0),
    "SkyReelsV2DiffusionForcingPipeline": (97, 544, 960, 50, 6.0),
    "HunyuanVideoPipeline": (129, 720, 1280, 50, 6.0),
    "HunyuanVideo15Pipeline": (121, 64, 112, 50, 6.0),  # nearest to 16:9 at this tiny model's target of 96
    "CogVideoXPipeline": (9, 64, 96, 50, 6),
    "LTXPipeline": (161, 512, 704, 50, 3),
    "MochiPipeline": (19, 480, 848, 64, 4.5),
    "AllegroPipeline": (24, 160, 160, 100, 7.5),
}


@pytest.mark.parametrize("name", OWN)
def test_the_pipeline_s_own_defaults_are_taken(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        request = Request.for_pipeline(tiny(name), PROMPT, height=None)
    assert (*request.size, request.steps, request.guidance_scale) == OWN[name]


def test_the_size_of_a_picture_is_that_of_hunyuan_video_15(files):
    pipeline = tiny("HunyuanVideo15ImageToVideoPipeline")
    with pytest.warns(UserWarning, match="makes 9 frames of 112x80, where height 64 and width 96 was asked for"):
        request = Request.for_pipeline(pipeline, PROMPT, steps=1, image=files["image"], **SMALL)
    assert request.size == (9, 80, 112) == generate(pipeline, request, DENSE).frames.shape[:3]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("WanImageToVideoPipeline", {}, "begins with an image; give --image FILE"),
        ("LTXImageToVideoPipeline", {}, "begins with an image; give --image FILE"),
        ("WanVideoToVideoPipeline", {}, "begins with a video; give --video FILE"),
        ("CogVideoXPipeline", {"image": "picture"}, "CogVideoXPipeline takes no image; leave it out"),
        ("WanPipeline", {"video": "clip"}, "WanPipeline takes no video; leave it out"),
        ("LTXImageToVideoPipeline", {"image": "missing.png"}, "There is no file missing.png; give a picture"),
        ("HunyuanVideoPipeline", {"negative_prompt": "grey"}, "heeds a negative prompt only with true guidance"),
        ("HunyuanVideoPipeline", {"true_cfg_scale": 99.0}, "true guidance is 99.0; give 0 to 30"),
    ],
)
def test_what_is_missing_or_too_much_is_said_before_anything_runs(name, given, message):
    with pytest.raises(ValueError, match=message) as error:
        Request(PROMPT, **SMALL, **given).check(tiny(name))
    assert "\n" not in str(error.value)


def test_files_that_are_no_picture_and_no_video(files, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for name, what in (("WanImageToVideoPipeline", "image"), ("WanVideoToVideoPipeline", "video")):
        for path in (tmp_path / "text.png", tmp_path):
            with pytest.raises(ValueError, match=r"no picture|no video|cannot be read"):
                Request(PROMPT, **SMALL, **{what: str(path)}).check(tiny(name))


def test_what_else_a_pipeline_needs_is_named():
    class Animated(diffusers.WanPipeline):
        def __call__(self, prompt, pose_video, face_video, height=64, width=64):
            pass

    pipeline = Animated(**tiny("WanPipeline").components)
    with pytest.raises(ValueError, match="also needs pose_video, face_video, which cannot be given here"):
        Request(PROMPT, **SMALL).check(pipeline)


@pytest.mark.parametrize("name", ["WanVideoToVideoPipeline", "CogVideoXVideoToVideoPipeline", "MochiPipeline"])
def test_it_is_said_which_numbers_of_steps_are_too_few(name, files):
    pipeline = tiny(name)
    assert len(generate(pipeline, small_request(pipeline, files, steps=5), DENSE).summary["records"]) > 0
    with pytest.raises(ValueError, match=r"Of 1 steps .* makes none; give at least 2"):
        compare(pipeline, small_request(pipeline, files, steps=1), [DENSE])
    assert compare(pipeline, small_request(pipeline, files, steps=2), [DENSE]).generations  # warms up with as many


def test_the_video_decides_how_many_frames_there_are(files):
    pipeline = tiny("WanVideoToVideoPipeline")
    assert Request.for_pipeline(pipeline, PROMPT, **files | {"image": None}, height=64, width=96).num_frames == 9
    with pytest.warns(UserWarning, match="makes 5 frames"):
        assert Request.for_pipeline(pipeline, PROMPT, video=files["video"], num_frames=6).num_frames == 5


def test_a_picture_on_the_command_line_and_in_the_settings_of_the_clip(files, tmp_path, monkeypatch, capsys):
    pipeline = tiny("LTXImageToVideoPipeline")
    monkeypatch.setattr("timeripple.clips.models.load_pipeline", lambda *how: pipeline if "image" in how else None)
    command = ["compare", "--prompt", PROMPT, "--image", files["image"], "--frames", "12", "--size", "96x64"]
    with pytest.raises(SystemExit) as exit_:
        cli.main([*command, "--steps", "4", "--methods", "dense,token:0.5", "--out", str(tmp_path)])
    out, err = capsys.readouterr()
    assert exit_.value.code == 0 and "LTXImageToVideoPipeline makes 9 frames of 96x64" in err and "token-0.5" in out
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["image"] == files["image"] and report["made"]["num_frames"] == 9


def run_compare(capsys, *arguments):
    """The exit code of `compare` and what it printed."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["compare", "--prompt", "a red ball", "--device", "cpu", "--dtype", "float32", *arguments])
    return exit_.value.code, capsys.readouterr()


def test_a_video_and_a_strength_on_the_command_line(tiny_wan, files, tmp_path, capsys):
    """From the weights on disk to the files, at two strengths."""
    given = ["--model", str(tiny_wan), "--video", files["video"], "--size", "96x64", "--steps", "5"]
    reports = []
    for strength in ("0.8", "0.4"):
        out = tmp_path / strength
        code, printed = run_compare(
            capsys, *given, "--strength", strength, "--methods", "dense,token:0.5", "--out", str(out)
        )
        assert code == 0, printed.err
        reports.append(json.loads((out / "report.json").read_text(encoding="utf-8")))
        again, _ = read_settings(read_metadata(out / "dense.mp4"))
        assert (again.strength, again.video, again.num_frames) == (float(strength), files["video"], 9)
    steps = [len(report["methods"][1]["saving"]["per_step"]) for report in reports]
    assert steps == [4, 2] and reports[0]["model"] == tiny_wan.name
    weak, strong = (read_mp4(tmp_path / strength / "dense.mp4") for strength in ("0.4", "0.8"))
    assert weak.shape == strong.shape and not np.array_equal(weak, strong)


def test_the_strength_is_the_pipeline_s(files):
    pipeline = tiny("CogVideoXVideoToVideoPipeline")
    request = small_request(pipeline, files, strength=0.5)
    plain = pipeline(
        prompt=PROMPT, video=pipelines.read_video(files["video"], request.size), height=64, width=96, strength=0.5,
        num_inference_steps=STEPS, generator=torch.Generator().manual_seed(1), output_type="np",
    ).frames[0]  # fmt: skip
    assert np.array_equal(generate(pipeline, request, DENSE).frames, (plain * 255).round().astype(np.uint8))


@pytest.mark.parametrize("name", ["WanVideoToVideoPipeline", "CogVideoXVideoToVideoPipeline"])
def test_without_a_strength_it_is_the_pipeline_s_own(name, files, tmp_path):
    """0.8: of 10 steps 8 are made, whoever asks."""
    pipeline = tiny(name)
    assert small_request(pipeline, files).strength == 0.8
    request = replace(small_request(pipeline, files, steps=10), strength=None)
    token = parse_method("token:0.3")
    assert request.evaluations(pipeline, token) == 8 and "strength" not in request.arguments(pipeline)
    comparison = compare(pipeline, request, [DENSE, token])
    report = comparison.report(pipeline)
    assert [row["steps"] for row in report["methods"]] == [8, 8]
    assert len(comparison.generations[1].saving["per_step"]) == 8
    told = generate(pipeline, replace(request, strength=0.8), token)
    assert np.array_equal(comparison.generations[1].frames, told.frames)
    assert read_settings(json.loads(json.dumps(report)))[0] == request

    path = tmp_path / "tuned.json"
    path.write_text('{"method": "token:0.3+taylorseer:3:steps=10"}', encoding="utf-8")
    with load(pipeline, path) as tuned:
        pipeline(**request.arguments(pipeline) | {"num_inference_steps": tuned.steps})
    assert tuned.steps == 10 and tuned.summary()["saving"] == generate(pipeline, request, tuned.method).saving


def test_what_does_not_fit_the_steps_that_a_strength_leaves_is_refused_beforehand(files):
    pipeline = tiny("WanVideoToVideoPipeline")
    request = small_request(pipeline, files, steps=20, strength=0.1)  # 2 steps
    with pytest.raises(ConfigError, match="reuse window of 1 steps"):
        compare(pipeline, request, [DENSE, parse_method("token:0.5:refresh=1")])


@pytest.mark.parametrize(
    ("name", "strength", "message"),
    [
        ("WanPipeline", 0.5, "WanPipeline has no strength; leave it out"),
        ("WanVideoToVideoPipeline", 0.0, "The strength is 0.0; give a number above 0 and up to 1, such as 0.8"),
        ("WanVideoToVideoPipeline", float("nan"), "The strength is nan; give a number"),
        ("WanVideoToVideoPipeline", 0.1, "Of 5 steps WanVideoToVideoPipeline makes none; give at least 10"),
    ],
)
def test_a_strength_that_cannot_be(name, strength, message, files):
    video = files["video"] if "VideoToVideo" in name else ""
    with pytest.raises(ValueError, match=message):
        Request(PROMPT, steps=5, video=video, strength=strength, **SMALL).check(tiny(name))


def test_a_picture_on_the_command_line_with_weights_from_disk(tiny_wan, files, tmp_path, capsys):
    parts = WanPipeline.from_pretrained(tiny_wan).components
    parts |= {"transformer": wan_model(in_channels=12, text_dim=16), "image_encoder": None, "image_processor": None}
    folder = tmp_path / "wan-i2v"
    del parts["transformer_2"]
    WanImageToVideoPipeline(**parts).save_pretrained(folder)
    given = ["--model", str(folder), "--size", "96x64", "--frames", "9", "--steps", "4", "--out", str(tmp_path / "out")]
    code, printed = run_compare(capsys, *given, "--image", files["image"])
    assert code == 0, printed.err
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["image"] == files["image"] and report["methods"][1]["saving"]["all_steps"] > 0
    code, printed = run_compare(capsys, *given)
    assert code == 2 and printed.err.endswith("WanImageToVideoPipeline begins with an image; give --image FILE.\n")


def test_the_same_weights_serve_for_video_to_video(tiny_wan, files):
    pipeline = load_pipeline(str(tiny_wan), "cpu", "float32", "none", "video")
    assert type(pipeline).__name__ == "WanVideoToVideoPipeline"
    request = small_request(pipeline, files, prompt="a red ball")
    assert generate(pipeline, request, TOKEN).frames.shape == (9, 64, 96, 3)
