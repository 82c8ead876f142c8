"""What hostile visitors send, over the app's own HTTP, without a browser: every case is answered in a sentence, and
after every group the app still generates."""

import json

import pytest

from timeripple.bench.load import SIZE, generate, result_of
from timeripple.bench.visitor import Said, Visitor
from ui.runs import Limits

LIMITS = Limits(max_tokens=10_000, max_steps=40)
HUGE, DEEP = "9" * 400, "[" * 5000 + "]" * 5000
MARKUP = '<img src=x onerror="alert(1)">'
SMALL = {"prompt": "a red ball", "seed": 3, "steps": 3, "num_frames": 9, "pixels": 64}


def still_generates(app) -> bool:
    """Whether a new visitor's run is done, and is the one that was asked for."""
    visitor = Visitor(app.url)
    generate(visitor, "a blue cube", 11, SIZE, 3)
    heading = result_of(visitor)
    visitor.close()
    return "a blue cube" in heading and "seed 11" in heading


def sentence_of(error) -> str:
    """The one sentence of an answer, which says nothing of our insides."""
    text = str(error.value)
    assert 10 < len(text) < 400 and text.rstrip()[-1] in ".?" and "Traceback" not in text and "/tmp" not in text, text
    return text


def call(visitor: Visitor, name: str, **given):
    """An endpoint's answer, from arguments as JSON may hold them."""
    event = next(each for each in visitor.config["dependencies"] if each["api_name"] == name)
    info = visitor.http.get("/gradio_api/info").json()["named_endpoints"][f"/{name}"]["parameters"]
    data = [given.get(each["parameter_name"], each.get("parameter_default")) for each in info]
    return visitor.streamed(
        {"data": data, "fn_index": event["id"], "session_hash": visitor.session, "event_data": None, "trigger_id": None}
    )


WRONG_TYPES = [None, [], {}, True, [[[]]]]
COMPARED = [
    *(({"prompt": value}, "give a text") for value in (None, 7, [], {})),
    *(({"seed": value}, "give a whole number") for value in (*WRONG_TYPES, "7", 1.5, MARKUP)),
    *(({"steps": value}, "give a whole number") for value in (*WRONG_TYPES, "20", 2.5)),
    *(({"pixels": value}, "give a whole number") for value in (None, "64", 64.5)),
    *(({"num_frames": value}, "give a whole number") for value in (None, "8", [8])),
    ({"prompt": ""}, "The prompt is empty"),
    ({"prompt": " \n\t"}, "The prompt is empty"),
    ({"prompt": MARKUP}, "does not know"),
    ({"prompt": "a ball " * 5000}, "shorten it|characters"),
    ({"prompt": "\0"}, "names no subject"),
    ({"seed": -1}, "The seed is -1"),
    ({"seed": 10**30}, "The seed is"),
    ({"steps": 0}, "give 1 to"),
    ({"steps": -5}, "give 1 to"),
    ({"steps": 41}, "the limit here is 40"),
    ({"steps": 10**20}, "give 1 to"),
    ({"pixels": 0}, "pixels|size|multiple"),
    ({"pixels": -64}, "pixels|size|multiple"),
    ({"pixels": 60}, "multiple of 8"),
    ({"pixels": 8 * 10**6}, "are 3000000000000 tokens"),
    ({"num_frames": 0}, "frames"),
    ({"num_frames": 16}, "give a multiple of 4 plus 1"),
    ({"num_frames": 10**9 + 1}, "are 16000000064 tokens"),
    ({"methods": ",".join(f"token:0.{n:03}" for n in range(1, 302))}, "301 methods; the limit here is 8"),
    ({"methods": "," * 100_000}, "100001 methods; the limit here is 8"),
    ({"methods": ""}, "is unknown"),
    ({"methods": "dense,dense"}, "given twice"),
    ({"methods": f"dense,{MARKUP}"}, "is unknown"),
    ({"methods": "dense,token:nan"}, "is not a share"),
    ({"methods": "dense,token:inf"}, "is not a share"),
    ({"methods": "dense,channel:theta=inf"}, "theta inf is no number"),
    ({"methods": "dense,channel:theta=nan"}, "theta nan is"),
    ({"methods": f"dense,token:0.5:steps={HUGE}"}, "steps"),
    ({"methods": f"dense:steps={10**9}"}, "steps"),
    ({"methods": "dense,token:0.5:refresh=-1"}, "refresh"),
    ({"methods": "dense,token:0.5" + "+token:0.5" * 50}, "stacks too much"),
    ({"methods": 7}, "give a text"),
]


@pytest.mark.parametrize(("change", "sentence"), COMPARED, ids=[str(change)[:40] for change, _ in COMPARED])
def test_compare(visitor, change, sentence):
    with pytest.raises(Said, match=sentence) as error:
        call(visitor, "compare", **{**SMALL, **change})
    sentence_of(error)


def test_after_the_comparisons_it_still_generates(app):
    assert still_generates(app)


LOOKED = [
    ("probe", {"at": "0"}, "from 1 to 3"),
    ("probe", {"at": "4"}, "from 1 to 3"),
    ("probe", {"at": HUGE}, "from 1 to 3"),
    ("probe", {"at": "1;2"}, "from 1 to 3"),
    ("probe", {"at": None}, "give a text"),
    ("probe", {"at": MARKUP}, "from 1 to 3"),
    ("laboratory", {"method": "dense"}, "reuses nothing"),
    ("laboratory", {"method": "token:9"}, "is not a share"),
    ("laboratory", {"method": MARKUP}, "unknown|reuses nothing"),
    ("laboratory", {"at": ""}, "from 1 to 3"),
    ("attention", {"token": "9,9,9"}, "the grid is"),
    ("attention", {"token": "0,0,0"}, "counted from 1"),
    ("attention", {"token": "1,1"}, "counted from 1"),
    ("attention", {"token": "1,1,1,1"}, "counted from 1"),
    ("attention", {"token": f"{HUGE},1,1"}, "The token is"),
    ("attention", {"token": "٣,1,1"}, "counted from 1"),
    ("attention", {"token": [1, 1, 1]}, "give a text"),
    ("attention", {"layer": 2}, "The layer is 2; give one from 0 to 1"),
    ("attention", {"layer": -1}, "The layer is -1"),
    ("attention", {"head": 10**12}, "The head is"),
    ("attention", {"at": 9}, "from 1 to 3"),
    ("attention", {"at": "1"}, "give a whole number"),
    ("timing", {"tokens": []}, "choose at least one"),
    ("timing", {"tokens": [10_000] * 500}, "given twice"),
    ("timing", {"tokens": [256 * n for n in range(1, 12)]}, "11 numbers of tokens; the limit here is 8"),
    ("timing", {"tokens": [16_384]}, "the limit here is 10,000"),
    ("timing", {"tokens": [7]}, "give at least 256"),
    ("timing", {"tokens": [-4096]}, "give at least 256|number of tokens"),
    ("timing", {"tokens": [10**30]}, "the limit here is"),
    ("timing", {"tokens": ["256"]}, "give a list of whole numbers"),
    ("timing", {"tokens": [256.5]}, "give a list of whole numbers"),
    ("timing", {"tokens": 256}, "give a list of whole numbers"),
    ("timing", {"tokens": None}, "give a list of whole numbers"),
    ("timing", {"tokens": [256], "saving": 7}, "The saving is 7; give a share"),
    ("timing", {"tokens": [256], "saving": -1}, "The saving is -1; give a share"),
    ("timing", {"tokens": [256], "saving": "0.5"}, "give a number"),
    ("timing", {"tokens": [256], "saving": None}, "give a number"),
]


@pytest.mark.parametrize(
    ("name", "change", "sentence"), LOOKED, ids=[f"{name} {str(change)[:30]}" for name, change, _ in LOOKED]
)
def test_endpoints_check_before_they_queue(app, visitor, name, change, sentence):
    with pytest.raises(Said, match=sentence) as error:
        call(
            visitor,
            name,
            **(change if name == "timing" else {**SMALL, "at": 1 if name == "attention" else "1", **change}),
        )
    assert sentence_of(error) and app.runs.idle(0)


def test_after_the_endpoints_it_still_generates(app):
    assert still_generates(app)


def restored(visitor: Visitor, **query) -> list:
    """What a page that is opened by a link shows of its form: the page sends its query along."""
    visitor.http.params = query
    try:
        restore = next(each["id"] for each in visitor.config["dependencies"] if each["api_name"] == "restore")
        return visitor.fire(restore)
    finally:
        visitor.http.params = {}


NO_NUMBERS = {
    "seed": (HUGE, "9" * 5000, "inf", "1.5"),
    "steps": (HUGE,),
    "guidance_scale": ("inf", "nan"),
    "width": (HUGE,),
}
LINKED = [
    *(({name: text}, "give a number") for name, texts in NO_NUMBERS.items() for text in texts),
    ({"prompt": ""}, "name no prompt"),
    ({"seed": MARKUP}, "seed is '&lt;img src=x"),
    ({"seed": "4294967296"}, "The seed is 4294967296; the form holds 0 to 4294967295"),
    ({"steps": "1"}, "The number of steps is 1; the form holds 2 to 40"),
    ({"steps": "41"}, "41 steps; the limit here is 40"),
    ({"steps": "-3"}, "the form holds 2 to 40"),
    ({"guidance_scale": "0"}, "The guidance is 0.0; the form holds 1 to 8"),
    ({"guidance_scale": "1e300"}, "the form holds 1 to 8"),
    ({"num_frames": "0"}, "which the form does not offer"),
    ({"width": "72"}, "which the form does not offer"),
    ({"compared": "dense"}, "compare 1 methods; the form compares two"),
    ({"compared": ",".join(["dense"] * 5000)}, "the form compares two"),
    ({"compared": f"dense,{MARKUP}"}, "&lt;img"),
    ({"compared": "dense,token:0.1"}, r"The budget is 0\.1; the form holds 0\.3 to 0\.95"),
    ({"compared": "dense,channel:theta=inf"}, "theta inf is no number"),
    ({"compared": "dense,token:1e400"}, "is not a share"),
]


@pytest.mark.parametrize(("change", "sentence"), LINKED, ids=[str(change)[:40] for change, _ in LINKED])
def test_links(visitor, change, sentence):
    link = {"prompt": "a red ball", "num_frames": 9, "width": 64, "height": 64, "compared": "dense,token:0.5"}
    with pytest.raises(Said, match=sentence) as error:
        restored(visitor, **{**link, **change})
    assert "<img" not in sentence_of(error)


def test_a_threshold_of_a_million_comes_back_from_its_link(visitor):
    link = {"prompt": "a red ball", "num_frames": 9, "width": 64, "height": 64, "compared": "dense,channel:theta=1e6"}
    assert 1e6 in restored(visitor, **link)


def test_a_link_to_a_result_that_is_gone_fills_the_form(visitor):
    link = {
        "run": "gone",
        "prompt": "a red ball",
        "num_frames": 9,
        "width": 64,
        "height": 64,
        "compared": "dense,token",
    }
    data = restored(visitor, **link)
    assert data[0] is None and data[1] == "a red ball"


def test_after_the_links_it_still_generates(app):
    assert still_generates(app)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../etc/passwd", "app.py", "/proc/self/environ", "index/runs-0.sqlite"]
)
def test_no_file_but_results_and_uploads_is_served(app, visitor, path):
    assert visitor.file(path).status_code in (403, 404)


def test_the_index_of_all_results_is_not_served(app, visitor):
    for path in (index := app.runs._folder.parent / "index", index / "runs-0.sqlite"):
        assert path.exists()
        for way in (path, app.runs._folder / ".." / "index" / path.name):
            assert visitor.file(str(way)).status_code in (403, 404)


@pytest.mark.parametrize("path", ["monitoring", "monitoring/summary", "gradio_api/monitoring/summary"])
def test_no_traffic_monitor(visitor, path):
    assert visitor.http.get(f"/{path}").status_code in (403, 404)


def test_after_the_paths_it_still_generates(app):
    assert still_generates(app)


BODIES = {
    "no JSON": b"{",
    "not ours": b"[]",
    "deep": b'{"data": ' + DEEP.encode() + b', "fn_index": 1}',
    "large": b'{"data": ["' + b"x" * 2_000_000 + b'"]}',
    "no data": b'{"fn_index": 1, "session_hash": "x"}',
    "a function that is none": b'{"data": [], "fn_index": 1000000, "session_hash": "x"}',
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", ["run/predict", "queue/join"])
def test_bodies_that_are_no_calls(visitor, name, path):
    headers = {"content-type": "application/json", "connection": "close"}
    response = visitor.http.post(f"/gradio_api/{path}", content=BODIES[name], headers=headers)
    assert 400 <= response.status_code <= 500 and "Traceback" not in response.text


@pytest.mark.parametrize("api", ["start", "show", "cancel", "follow", "draw", "pick_channel", "pick_head", "pick"])
@pytest.mark.parametrize(
    "data", [[], [None] * 40, [DEEP, MARKUP], [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}] * 6]
)
def test_private_events_take_nothing_unexpected(visitor, api, data):
    event = next(each for each in visitor.config["dependencies"] if each["api_name"] == api)
    body = {"data": data, "fn_index": event["id"], "session_hash": visitor.session, "event_data": {"layer": MARKUP}}
    try:
        answer = visitor.streamed(body) if event["queue"] else visitor.answered(body)
    except Said as error:
        answer = str(error)
    assert "root:" not in json.dumps(answer) and "Traceback" not in json.dumps(answer)


@pytest.mark.parametrize("run", ["' or 1=1 --", "../..", "recorded-", "", 7, ["a"], {"a": 1}, MARKUP, "x" * 10_000])
def test_ids_that_are_none_find_nothing(visitor, run):
    show = next(each["id"] for each in visitor.config["dependencies"] if each["api_name"] == "show")
    try:
        stage = str(visitor.fire(show, inputs=[run, None])[0])
    except Said:
        return
    assert MARKUP not in stage and ("This run is gone" in stage or "tr-welcome" in stage or "__type__" in stage)


def test_after_the_bodies_and_private_events_it_still_generates(app):
    assert still_generates(app)
