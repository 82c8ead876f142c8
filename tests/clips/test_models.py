"""Models other than Pond: a tiny Wan pipeline on disk, generated, compared and looked into; what cannot be loaded."""

import json
import subprocess
import sys
from types import SimpleNamespace

import httpx
import huggingface_hub
import numpy as np
import psutil
import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline, WanTransformer3DModel
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from timeripple.attention.config import ReuseConfig
from timeripple.attention.method import ConfigError
from timeripple.bench.work import machine
from timeripple.clips import interleaved
from timeripple.clips.compare import compare, save
from timeripple.clips.generate import Cancelled, Request, generate
from timeripple.clips.methods import parse_method
from timeripple.clips.models import load_pipeline, load_pond, parameter_counts
from timeripple.clips.video import read_mp4
from timeripple.inspection.laboratory import laboratory_report
from timeripple.inspection.probe import inspect_request
from timeripple.inspection.reports import probe_report

SMALL = {"num_frames": 9, "height": 64, "width": 96, "steps": 4}
PROMPT = "a red ball"


@pytest.fixture(scope="module")
def wan(tiny_wan):
    return load_pipeline(str(tiny_wan), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def request_(wan):
    return Request.for_pipeline(wan, PROMPT, seed=1, **SMALL)


def test_the_pipelines_own_settings_are_the_defaults(wan):
    request = Request.for_pipeline(wan, PROMPT, seed=3, height=None)
    assert (request.height, request.width, request.num_frames, request.steps) == (480, 832, 81, 50)
    assert request.guidance_scale == 5.0 and request.seed == 3


def test_dense_frames_are_those_of_the_plain_pipeline(tiny_wan, wan, request_):
    plain = WanPipeline.from_pretrained(tiny_wan)
    plain.set_progress_bar_config(disable=True)
    video = plain(
        PROMPT, num_frames=9, height=64, width=96, num_inference_steps=4, guidance_scale=5.0,
        generator=torch.Generator().manual_seed(1), output_type="np",
    ).frames[0]  # fmt: skip
    generation = generate(wan, request_, parse_method("dense"))
    assert generation.frames.shape == (9, 64, 96, 3)
    assert np.array_equal(generation.frames, (video * 255).round().astype(np.uint8))
    assert generation.summary["grid"] == [3, 4, 6] and generation.saving is None
    seconds = generation.seconds
    assert seconds["total"] == pytest.approx(seconds["text"] + seconds["denoise"] + seconds["decode"])
    assert 0 < seconds["attention"] < seconds["denoise"] and min(seconds["text"], seconds["decode"]) > 0


@pytest.mark.parametrize(
    "text", ["token:0.5", "svg:0.5", "first-block-cache:0.5", "taylorseer:2", "token:0.5+taylorseer:2"]
)
def test_methods_save_and_leave_nothing_behind(wan, request_, text):
    dense = generate(wan, request_, parse_method("dense"))
    fast = generate(wan, request_, parse_method(text))
    assert fast.saving["all_steps"] > 0 and not np.array_equal(fast.frames, dense.frames)
    assert np.array_equal(generate(wan, request_, parse_method("dense")).frames, dense.frames)


def test_steps_are_reported_without_a_preview_and_a_run_can_be_stopped(wan, request_):
    events = []
    with pytest.raises(Cancelled):
        generate(wan, request_, parse_method("token:0.5"), on_step=events.append, should_stop=lambda: len(events) == 2)
    assert [(event.step, event.steps, event.preview) for event in events] == [(1, 4, None), (2, 4, None)]
    assert not hasattr(wan.transformer, "_diffusers_hook")


def test_compare_saves_videos_and_a_report(wan, request_, tmp_path):
    comparison = compare(wan, request_, [parse_method("dense"), parse_method("token:0.5")])
    save(comparison, tmp_path, wan)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["grid"] == [3, 4, 6] and report["methods"][1]["saving"]["kind"] == "realised"
    assert read_mp4(tmp_path / "dense.mp4").shape == (9, 256, 384, 3)  # small clips are written enlarged


def test_the_command_line_offline(tiny_wan, tmp_path):
    command = [
        sys.executable, "-m", "timeripple", "compare", "--model", str(tiny_wan), "--prompt", PROMPT, "--methods",
        "dense,token:0.5", "--frames", "9", "--size", "96x64", "--steps", "4", "--dtype", "float32",
        "--out", str(tmp_path),
    ]  # fmt: skip
    alone = {"HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=alone, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["width"], report["height"], report["num_frames"], report["guidance_scale"]) == (96, 64, 9, 5.0)
    assert [method["label"] for method in report["methods"]] == ["dense", "token-0.5"]
    assert (tmp_path / "side_by_side.mp4").stat().st_size > 1000


def test_probing_and_the_laboratory_work_on_it(wan, request_, tmp_path):
    report = probe_report(wan, request_, {1})
    assert len(report["channels"]) == 24 and {row["layer"] for row in report["rows"]} == {
        "blocks.0.attn1", "blocks.1.attn1"
    }  # fmt: skip
    assert laboratory_report(wan, request_, {1}, ReuseConfig(budget=0.5))["rows"]
    seen = inspect_request(wan, request_, {0, 3}, tmp_path)
    assert seen.grid.shape == (3, 4, 6) and seen.frames.shape == (9, 64, 96, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"num_frames": 0}, "frames is 0"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_bad_requests(wan, change, message):
    with pytest.raises(ValueError, match=message):
        Request.for_pipeline(wan, **{"prompt": PROMPT, **SMALL, **change}).check(wan)


def test_a_size_that_cannot_be_made_is_refused(wan):
    with pytest.raises(ValueError, match="height is 50 pixels, which WanPipeline cannot make; give 48"):
        Request(PROMPT, **SMALL | {"height": 50}).check(wan)


def test_parameters_are_counted_from_configurations_alone(tiny_wan, wan):
    counts = parameter_counts(tiny_wan)
    assert counts == {
        name: sum(p.numel() for p in getattr(wan, name).parameters()) for name in ("text_encoder", "transformer", "vae")
    }


def test_a_model_larger_than_the_memory_is_refused_before_it_is_loaded(tiny_wan, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000))
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(
        ValueError, match=r"needs about 0\.\d GB of memory in float32, and 0.0 GB are free; try a smaller"
    ):
        load_pipeline(str(tiny_wan), device="cpu", dtype="float32")


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_autoencoder_stays_in_float32(tiny_wan, dtype, expected):
    pipeline = load_pipeline(str(tiny_wan), device="cpu", dtype=dtype)
    assert pipeline.transformer.blocks[0].attn1.to_q.weight.dtype == expected
    assert pipeline.text_encoder.encoder.block[0].layer[0].SelfAttention.q.weight.dtype == expected
    assert pipeline.vae.decoder.conv_in.weight.dtype == torch.float32


def refused(status, kind):
    response = httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co"))
    return kind("refused", response=response)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (refused(403, GatedRepoError), "is gated: accept its licence"),
        (refused(404, RepositoryNotFoundError), "has no model someone/something"),
        (EntryNotFoundError("no"), "has no model_index.json"),
        (LocalEntryNotFoundError("offline"), "the hub cannot be reached"),
        (OSError("strange"), "cannot be found on the hub: strange"),
    ],
)
def test_names_on_the_hub_that_cannot_be_had(monkeypatch, error, message):
    def download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ValueError, match=message) as raised:
        load_pipeline("someone/something", device="cpu")
    assert "\n" not in str(raised.value)


def test_a_name_on_the_hub_is_loaded_from_its_cache(tiny_wan, monkeypatch):
    """The hub's part is played by a folder: the name is looked up, then everything else is the real code."""
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *name: asked.append(name))
    for kind in (DiffusionPipeline,):
        plain_config, plain_load = kind.load_config, kind.from_pretrained
        monkeypatch.setattr(kind, "load_config", lambda name, plain=plain_config: plain(tiny_wan))
        monkeypatch.setattr(
            kind, "from_pretrained", lambda name, plain=plain_load, **how: plain(tiny_wan, dtype=how["dtype"])
        )
    monkeypatch.setattr("timeripple.clips.models._check_memory", lambda *_: None)
    assert isinstance(load_pipeline("someone/tiny-wan", device="cpu", dtype="float32"), WanPipeline)
    assert asked == [("someone/tiny-wan", "model_index.json")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "nowhere at all"}, "There is no model at nowhere at all"),
        ({"model": "pond", "dtype": "int8"}, "dtype is 'int8'; choose from auto, bfloat16"),
        ({"model": "pond", "offload": "disk"}, "offload is 'disk'; choose from none"),
        ({"model": "pond", "offload": "model", "device": "cpu"}, "needs a GPU"),
        ({"model": "pond", "device": "warp"}, "device 'warp'"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_pipeline(**arguments)
    assert "\n" not in str(raised.value)


def test_what_is_no_video_pipeline(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32, 32), layers_per_block=1,
                       down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a DDPMPipeline, in which no video transformer was found"):
        load_pipeline(str(tmp_path), device="cpu")


def test_benchmarks_need_pond(tiny_wan):
    with pytest.raises(ValueError, match="this needs Pond's prompts and sizes"):
        load_pond(str(tiny_wan))


def test_compiling_without_a_compiler_or_blocks_is_one_sentence(tiny_wan, monkeypatch):
    monkeypatch.setattr("timeripple.clips.models.shutil.which", lambda name: None)
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler, and there is none; install g\\+\\+"):
        load_pipeline(str(tiny_wan), device="cpu", compile=True)
    monkeypatch.setattr("timeripple.clips.models.shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(WanTransformer3DModel, "_repeated_blocks", [])
    with pytest.raises(ValueError, match="Of WanTransformer3DModel, diffusers knows no blocks to compile"):
        load_pipeline(str(tiny_wan), device="cpu", compile=True)


def test_a_compiled_model_compares_without_compiling_again(tiny_wan, monkeypatch):
    """Warmed up, so that no method pays for it; and it can be cancelled, which hooks of blocks would keep it from."""
    plain = WanTransformer3DModel.compile_repeated_blocks
    monkeypatch.setattr(
        WanTransformer3DModel,
        "compile_repeated_blocks",
        lambda self, **how: plain(self, backend="aot_eager", dynamic=False, **how),
    )
    request = Request(PROMPT, **SMALL | {"steps": 4})
    methods = [parse_method(text) for text in ("dense", "token:0.5", "tile:0.4:refresh=none")]
    pipeline = load_pipeline(str(tiny_wan), device="cpu", dtype="float32")
    eager = compare(pipeline, request, methods)
    compiled_pipeline = load_pipeline(str(tiny_wan), device="cpu", dtype="float32", compile=True)
    generate_plainly = interleaved.generate

    def generate_compiled(*args, **kwargs):
        with torch._dynamo.config.patch(error_on_recompile=True):
            return generate_plainly(*args, **kwargs)

    monkeypatch.setattr(interleaved, "generate", generate_compiled)
    compiled = compare(compiled_pipeline, request, methods, should_stop=lambda: False)
    said = [each.report(which)["environment"]["compiled"] for each, which in
            ((eager, pipeline), (compiled, compiled_pipeline))]  # fmt: skip
    assert said == [False, True] and machine(compiled_pipeline) == f"{machine(pipeline)}, compiled"
    for own, other in zip(compiled.generations, eager.generations, strict=True):
        assert abs(own.frames.astype(int) - other.frames).max() <= 1
    with pytest.raises(ConfigError, match="taylorseer-2 steps into blocks of the transformer, which are compiled"):
        compare(compiled_pipeline, request, [methods[0], parse_method("token:0.4+taylorseer:2")])
    with pytest.raises(Cancelled):
        stops = iter([False, False, True])
        generate_plainly(compiled_pipeline, request, methods[0], should_stop=lambda: next(stops))
