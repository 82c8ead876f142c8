"""The app as programs see it, and how it starts."""

import json
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import httpx
import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

import app
from timeripple.clips.generate import Request
from timeripple.clips.methods import parse_method
from timeripple.pond.prompts import parse_prompt
from ui.build import build_app, launch_options
from ui.compare_tab import PRESETS, present_run
from ui.comparison import fill_form, fill_within, read_form
from ui.result import EXAMPLES, Result, headline, recorded_runs
from ui.runs import Limits, Runs

ROOT = Path(__file__).parents[2]
SMALL = {"num_frames": 9, "pixels": 64, "steps": 4}


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


def test_compare_over_the_api(client):
    job = client.submit("a red ball rolling left", "dense,token:0.75", seed=3, **SMALL, api_name="/compare")
    report, video = job.result(timeout=120)
    assert [method["label"] for method in report["methods"]] == ["dense", "token-0.75"]
    assert (report["seed"], report["grid"]) == (3, [3, 8, 8]) and report["methods"][1]["quality"]["psnr"] > 0
    assert Path(video).stat().st_size > 1000


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompt": ""}, "The prompt is empty"),
        ({"prompt": "a zebra"}, 'does not know the word "zebra"'),
        ({"prompt": "a ball " * 700}, "shorten it to at most"),
        ({"seed": -1}, "The seed is -1"),
        ({"steps": 0}, "give 1 to"),
        ({"steps": 41}, "the limit here is 40"),
        ({"pixels": 60}, "give a multiple of 8"),
        ({"num_frames": 901}, "the limit here is 14,000"),
        ({"methods": "dense,magic"}, "'magic' is unknown"),
        ({"methods": "dense,token:1.5"}, "budget 1.5 is not a share"),
        ({"methods": "dense,dense"}, "given twice"),
        ({"methods": ""}, "is unknown"),
    ],
)
def test_bad_input_is_one_sentence(client, change, sentence):
    with pytest.raises(AppError) as error:
        client.predict(**{"prompt": "a red ball", **SMALL, **change}, api_name="/compare")
    assert sentence in str(error.value) and "Traceback" not in str(error.value)


@pytest.mark.parametrize("preset", PRESETS.values())
def test_presets_say_what_pond_understands(preset):
    assert parse_prompt(preset).motion


def test_the_names_of_the_api_are_stable(client):
    names = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert sorted(names) == ["/attention", "/compare", "/laboratory", "/probe", "/timing"]


def test_probe_over_the_api(client):
    report = client.predict("a red ball", "1,4", **SMALL, api_name="/probe")
    assert {row["step"] for row in report["rows"]} == {0, 3} and len(report["channels"]) == 24
    assert all(0 < row["entropy"] <= 1 for row in report["heads"]) and len(report["heads"]) == 2 * 2 * 2
    for change, sentence in [
        ({"at": "5"}, "from 1 to 4"),
        ({"at": "soon"}, "are 'soon'"),
        ({"prompt": ""}, "is empty"),
    ]:
        with pytest.raises(AppError, match=sentence):
            client.predict(**{"prompt": "a red ball", **SMALL, **change}, api_name="/probe")


@pytest.mark.parametrize("path", ["/etc/passwd", str(ROOT / "app.py"), "../../etc/passwd"])
def test_no_file_outside_the_cache_is_served(url, path):
    with pytest.raises(HTTPError) as error:
        urlopen(f"{url}gradio_api/file={path}")
    assert error.value.code in (403, 404)


@pytest.mark.parametrize("variable", ["GRADIO_SERVER_PORT", "TIMERIPPLE_MAX_TOKENS", "TIMERIPPLE_MAX_QUEUE"])
def test_a_bad_setting_ends_the_start_with_one_sentence(variable, monkeypatch):
    monkeypatch.setenv(variable, "plenty")
    with pytest.raises(SystemExit, match=f"^TimeRipple cannot start: {variable} is 'plenty'; give [^.]*[.]$"):
        app.main()


@pytest.mark.parametrize("given", ["option", "variable"])
def test_a_model_that_is_not_there_ends_the_start_with_one_sentence(given, monkeypatch):
    if given == "variable":
        monkeypatch.setenv("TIMERIPPLE_MODEL", "nowhere at all")
    with pytest.raises(SystemExit, match=r"^TimeRipple cannot start: There is no model at nowhere at all; give"):
        app.main(["--model", "nowhere at all"] if given == "option" else [])


REQUEST = Request("a red ball", "by night", 7, 8, 9, 64, 64, 2.5)
METHODS = [parse_method(text) for text in ("token:0.5:axes=ty", "skip:0.7")]


def test_a_machine_too_busy_to_answer_in_time_starts_all_the_same(tiny_pipeline, monkeypatch):
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    limits = Limits()
    demo = build_app(tiny_pipeline, limits)
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options(demo))
    try:
        assert urlopen(url).status == 200
    finally:
        demo.runs.close()
        demo.close()


def test_the_form_asks_for_what_filled_it():
    request, methods = read_form(tuple(fill_form(REQUEST, METHODS, Limits())))
    assert request == REQUEST and [m.config for m in methods] == [m.config for m in METHODS]


@pytest.mark.parametrize(
    ("request_", "methods", "sentence"),
    [
        (replace(REQUEST, width=72), METHODS, "9 frames of 72 × 64, which the form does not offer"),
        (REQUEST, METHODS[:1], "compare 1 methods; the form compares two"),
        (replace(REQUEST, steps=60), METHODS, "60 steps; the limit here is 50"),
    ],
)
def test_settings_the_form_cannot_show_are_one_sentence(request_, methods, sentence):
    with pytest.raises(ValueError, match=sentence):
        fill_form(request_, methods, Limits())


def test_the_form_takes_the_reference_that_runs_along_for_granted():
    filled = fill_form(REQUEST, [parse_method("dense"), *METHODS], Limits())
    assert filled == fill_form(REQUEST, METHODS, Limits())


@pytest.mark.parametrize(
    ("psnr", "claim"),
    [(36.0, "Same noise, same video: "), (20.0, "Same noise, another video: "), (None, "Same noise: ")],
)
def test_only_a_clip_that_was_judged_is_called_the_same_video(psnr, claim):
    report = json.loads((EXAMPLES / "ball" / "report.json").read_text())
    report["methods"][1]["quality"]["psnr"] = psnr
    methods = [parse_method(row["method"]) for row in report["methods"]]
    assert claim in headline(Result(Request(report["prompt"]), methods, report), "?run=x")


def test_recorded_comparisons_fit_a_form_of_fewer_steps(tmp_path):
    limits = Limits(max_steps=5)
    recorded = recorded_runs(Runs(limits, tmp_path), lambda *asked: fill_within(*asked, limits))
    assert recorded and {run.settings[3] for run in recorded.values()} == {5}


def test_recorded_examples_say_where_they_were_made(tmp_path):
    recorded = recorded_runs(Runs(Limits(), tmp_path), lambda *asked: fill_form(*asked, Limits()))
    assert len(recorded) == len(list(EXAMPLES.glob("*/report.json"))) > 0
    for run in recorded.values():
        folder = EXAMPLES / run.id.removeprefix("recorded-")
        report = json.loads((folder / "report.json").read_text())
        assert run.state == "done" and run.result["kind"].startswith("recorded on ")
        assert report["environment"]["date"][:10] in run.result["kind"]
        request, methods = read_form(run.settings)
        assert request.prompt == report["prompt"]
        assert [m.config for m in methods] == [parse_method(m["method"]).config for m in report["methods"]]
        headline, played, numbers, _ = present_run(run)
        seconds = [f"{row['seconds']['total']:.1f}" for row in report["methods"]]
        assert f"{seconds[0]} → {seconds[1]} s" in headline and "measured here" not in headline + numbers
        assert played["kind"] == run.result["kind"] and played["shown"] == [0, 1]
        assert (run.folder / "report.html").stat().st_size > 1_000_000


def test_the_page_is_sent_packed_and_streams_are_not(url):
    with httpx.Client() as visitor:
        plain = visitor.get(url, headers={"accept-encoding": "identity"})
        packed = visitor.get(url, headers={"accept-encoding": "gzip"})
        beat = {"accept-encoding": "gzip"}
        with visitor.stream("GET", f"{url}gradio_api/heartbeat/any", headers=beat) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert "content-encoding" not in stream.headers
    assert packed.headers["content-encoding"] == "gzip" and "content-encoding" not in plain.headers
    assert packed.num_bytes_downloaded < 0.7 * plain.num_bytes_downloaded and packed.text[:100] == plain.text[:100]


def test_attention_over_the_api(client):
    report = client.predict("a red ball", "2,3,4", at=2, layer=1, head=1, **SMALL, api_name="/attention")
    planes = {name: np.array(report[name]) for name in ("dense", "reuse", "sharing")}
    assert all(plane.shape == (3, 8, 8) for plane in planes.values())
    assert planes["dense"].sum() == pytest.approx(1, abs=1e-4) == planes["reuse"].sum()
    assert planes["sharing"].min() >= 1 and np.array(report["map"]).mean() == pytest.approx(1 / 192, rel=1e-3)
    assert (report["head"]["layer"], report["head"]["head"]) == ("blocks.1.attn1", 1)
    for change, sentence in [
        ({"token": "9,1,1"}, "the grid is"),
        ({"token": "<b>"}, "give its t,y,x"),
        ({"layer": 7}, "The layer is 7"),
        ({"method": "skip:0.5"}, "reuses nothing"),
    ]:
        with pytest.raises(AppError, match=sentence):
            client.predict("a red ball", **SMALL, **{"at": 2, **change}, api_name="/attention")


def test_laboratory_over_the_api(client):
    report = client.predict("a red ball", "token:0.5", "1,4", **SMALL, api_name="/laboratory")
    assert len(report["rows"]) == 2 * 2 * 2 and report["kind"] == "measured here"
    with pytest.raises(AppError, match="reuses nothing"):
        client.predict("a red ball", "dense", "1", **SMALL, api_name="/laboratory")


def test_timing_over_the_api(client):
    report = client.predict([256], 0.5, api_name="/timing")
    assert [row["method"].split(":")[0] for row in report["rows"]] == ["dense", "token", "tile", "token, all merged"]
    for tokens, sentence in [([], "choose at least one"), ([90_000], "the limit here is"), ([7], "7")]:
        with pytest.raises(AppError, match=sentence):
            client.predict(tokens, 0.5, api_name="/timing")
