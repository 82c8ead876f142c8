"""What the tabs that look inside share: a recorded run, a dense run of a prompt, or a visitor's clip, whose q, k and v
are kept; and the step, layer, head and token that all of them show."""

import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import gradio as gr

from timeripple.clips.generate import MAX_SEED, Request
from timeripple.clips.video import FPS, read_clip
from timeripple.inspection import views
from timeripple.inspection.attention_maps import standing_out
from timeripple.inspection.probe import Inspection
from timeripple.pond.pipeline import PondPipeline
from ui import markup
from ui.compare_tab import PRESETS
from ui.form import (
    LATEST,
    POLL_SECONDS,
    QUEUED,
    QUIET,
    failure,
    one_sentence,
    queue_note,
    read_request,
    remember,
    size_choices,
    size_text,
    sizes_of,
)
from ui.gpu import Works
from ui.runs import Run, Runs

INSPECTIONS = Path(__file__).parents[1] / "assets" / "inspection"
RECORDED, PROMPT, CLIP = "recorded", "prompt", "clip"
KINDS = [("Red ball (recorded)", RECORDED), ("A new prompt", PROMPT), ("My own clip", CLIP)]
CLIP_FILES = [".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif"]
ABOUT = "One dense run is made, or your clip is encoded; Q, K and V are kept at five denoising steps."
GONE = "What you looked into is no longer kept; look into it again."


class Source(NamedTuple):
    """The bar on top of the tabs, and what is picked in it for all of them. opened: the tab that is seen; channel,
    place: what was picked in a tab."""

    run_id: gr.BrowserState
    step: gr.Dropdown
    layer: gr.Dropdown
    head: gr.Dropdown
    channel: gr.State
    place: gr.State
    size: gr.Dropdown
    wire: Callable


class View(NamedTuple):
    """What a tab draws: `draw(*values of inputs)` gives the values of outputs; inputs begin with the run's id."""

    name: str
    tab: gr.Tab
    inputs: list
    outputs: list
    draw: Callable


def source_bar(app: gr.Blocks, opened: gr.Tab, pipeline, works: Works, runs: Runs, run_id: gr.BrowserState) -> Source:
    """Adds the bar to what is being built; its `wire(views)` brings it and the tabs below it to life.

    opened: the tab that holds all of it; run_id: remembers what is looked into, None the recorded run.
    """
    shown_id, tab_name = gr.State(""), gr.State("")
    channel, place = gr.State(0), gr.State((0, 0, 0))
    is_pond, sizes = isinstance(pipeline, PondPipeline), sizes_of(pipeline)
    threading.Thread(target=warm_recorded, daemon=True).start()  # so that the first look need not wait
    with gr.Row(elem_classes="tr-tight tr-source"):
        kinds = [pair for pair in KINDS if is_pond or pair[1] != CLIP]
        kind = gr.Dropdown(kinds, value=RECORDED, label="Look into", filterable=False, min_width=260, scale=2)
        step = gr.Dropdown([], label="Denoising step", filterable=False, min_width=125)
        layer = gr.Dropdown([], label="Layer", filterable=False, min_width=70)
        head = gr.Dropdown([], label="Head", filterable=False, min_width=70)
    with gr.Row(elem_classes="tr-tight", visible=False) as made:
        prompt = gr.Textbox(PRESETS["Ball at sunset"], label="Prompt", min_width=260, scale=3)
        clip = gr.File(
            label="Clip: MP4, WebM, MKV, AVI or GIF, of which the first seconds are used", file_types=CLIP_FILES,
            height=110, visible=False, scale=2, min_width=260,
        )  # fmt: skip
        camera = gr.Video(
            label="Or record one", sources=["webcam"], visible=False, height=180, min_width=200,
            webcam_options=gr.WebcamOptions(mirror=False), buttons=[],
        )  # fmt: skip
        size = gr.Dropdown(size_choices(sizes), value=size_text(sizes["Standard"]), label="Size", filterable=False,
                           min_width=220)  # fmt: skip
        steps = gr.Number(
            20, label="Denoising steps", precision=0, minimum=4, maximum=runs.limits.max_steps, min_width=110
        )
        seed = gr.Number(0, label="Seed", precision=0, min_width=90)
        with gr.Column(min_width=200):
            look = gr.Button("Look inside", variant="primary")
            cancel = gr.Button("Cancel", variant="stop")
    note = gr.HTML(elem_id="source-note")
    form = [kind, prompt, clip, camera, size, steps, seed]

    def start(kind, prompt, clip, camera, size, steps, seed) -> str:
        """Queues the run the form asks for."""
        with one_sentence():
            request = read_request(prompt, seed, size, steps or 0)
            if kind == PROMPT:
                run = submit_request(pipeline, works, runs, request)
            else:
                run = submit_clip(pipeline, works, runs, clip or camera, request)
        return run.id

    def follow(id: str | None, shown: str | None) -> Iterator[list]:
        """How far the run is; ends with what can be picked. Nothing where it is shown already."""
        run = runs.find(id)
        if id == shown:
            yield [gr.skip()] * 7
            return
        while run and not runs.wait(run, POLL_SECONDS):
            yield [markup.facts([waiting(run, runs.ahead(run))]), *[gr.skip()] * 5, ""]
        if run and run.state == "failed":
            raise failure(run.error)
        if run and run.state == "cancelled":
            yield [markup.facts(["The run has stopped."]), *[gr.skip()] * 6]
            return
        yield [*described(runs, id), id]

    def restore(saved, page: gr.Request) -> list:
        """The run that this page showed before, and the form as it was asked."""
        id = dict(page.query_params).get("look", saved)
        run = runs.find(id)
        if run is None or not isinstance(run.settings[-1], dict):
            return [None, *[gr.skip()] * 5]
        asked = run.settings[-1]
        return [run.id, asked["kind"], asked["prompt"], asked["size"], asked["steps"], asked["seed"]]

    def choose(kind: str) -> list:
        showing = [gr.Row(visible=kind != RECORDED), gr.Textbox(visible=kind == PROMPT)]
        return [*showing, gr.File(visible=kind == CLIP), gr.Video(visible=kind == CLIP)]

    def wire(drawn: list[View]) -> None:
        outputs = [component for view in drawn for component in view.outputs]
        inputs = [component for view in drawn for component in view.inputs]

        def draw(seen_tab, *values) -> list:
            """What the tab that is seen shows; the others stay as they are until they are."""
            changes, at = [], 0
            for view in drawn:
                own, at = values[at : at + len(view.inputs)], at + len(view.inputs)
                changes += view.draw(*own) if view.name == seen_tab else [gr.skip()] * len(view.outputs)
            return changes

        all_of = [draw, [tab_name, *inputs], outputs]
        picked = [note, step, layer, head, channel, place, shown_id]
        ready = [run_id, shown_id]
        gr.on([step.input, layer.input, head.input], *all_of, **LATEST)
        for view in drawn:
            view.tab.select(lambda name=view.name: name, None, tab_name, **QUIET).then(*all_of, **QUIET)
        asked = look.click(start, form, run_id, **QUEUED)
        asked.success(None, run_id, None, js=remember("look"))
        recorded = kind.input(lambda kind: None if kind == RECORDED else gr.skip(), kind, run_id, **LATEST)
        for begin in (asked.success, opened.select, recorded.then):
            begin(follow, ready, picked, **QUEUED).then(
                lambda name: name or drawn[0].name, tab_name, tab_name, **QUIET
            ).then(*all_of, **QUIET)
        kind.change(choose, kind, [made, prompt, clip, camera], **QUIET)
        cancel.click(runs.cancel, run_id, None, **QUIET)
        app.load(restore, run_id, [run_id, kind, prompt, size, steps, seed], **QUIET).then(
            None, run_id, None, js=remember("look")
        )

    return Source(run_id, step, layer, head, channel, place, size, wire)


@cache
def recorded_inspection() -> Inspection | None:
    """The run that comes with the app."""
    folders = sorted(path.parent for path in INSPECTIONS.glob("*/inspection.json"))
    return Inspection.load(folders[0]) if folders else None


def warm_recorded() -> None:
    if seen := recorded_inspection():
        views.warm(seen, first_step(seen))


def first_step(seen: Inspection) -> int:
    """Of those that were kept, the one to begin with."""
    return seen.kept[len(seen.kept) // 2]


def inspected(runs: Runs, id: str | None) -> Inspection | None:
    """What a run has kept, or without an id the recorded one; None while there is nothing to see."""
    if not id:
        return recorded_inspection()
    run = runs.find(id)
    return run.result if run and isinstance(run.result, Inspection) else None


def waiting(run: Run, ahead: int) -> str:
    done, total = run.progress.get("step", (0, 0))
    if ahead:
        return queue_note(ahead)
    return f"Step {done} of {total}." if total else "Starting."


def described(runs: Runs, id: str | None) -> list:
    """Note, steps, layers, heads, channel and place for a run: those where the effect is strongest."""
    seen, run = inspected(runs, id), runs.find(id)
    if seen is None:
        return [markup.facts([GONE if id else ABOUT]), *[gr.skip()] * 5]
    step = first_step(seen)
    views.warm(seen, step)
    layer, head, channel = views.strongest_effect(seen, step)
    title = run.settings[0] if run else f"{KINDS[0][0]}, kept in 8 bits"
    grid = "×".join(map(str, seen.grid.shape))
    line = f"{title}: {seen.grid.tokens:,} tokens in {grid} (time × height × width), {len(seen.frames)} frames."
    asked = int(run.settings[-1]["size"].split("x")[0]) if run else len(seen.frames)
    if len(seen.frames) < asked:
        line += f" The clip has no more at {FPS} a second, where {asked} were asked for."
    pointer = f"The effect is strongest in layer {layer}, head {head}, channel {channel}, where the views begin"
    if seen.channels:
        group = seen.channels[channel][0]
        pointer += f": the channel belongs to RoPE's group {group} ({markup.AXIS_NAMES[group]})"
    choices = [(f"{index + 1} of {seen.steps}", index) for index in seen.kept]
    return [
        markup.facts([line, pointer + "."]),
        gr.Dropdown(choices, value=step),
        gr.Dropdown(list(range(len(seen.layers))), value=layer),
        gr.Dropdown(list(range(seen.heads)), value=head),
        channel,
        standing_out(seen.frames, seen.grid),
    ]


def submit_request(pipeline, works: Works, runs: Runs, request: Request) -> Run:
    """Queues a dense run that is looked into. Raises ValueError, one sentence, for what cannot be generated."""
    request.check(pipeline)
    runs.limits.check(pipeline, request)
    kept, settings = _kept(request.steps), (f"“{request.prompt}”, seed {request.seed}", _asked(PROMPT, request))
    return runs.submit(lambda run: works.inspect_request(run, request, kept, run.folder), settings)


def submit_clip(pipeline, works: Works, runs: Runs, path: str | None, request: Request) -> Run:
    """Queues a look into the clip at `path`, at the request's size, steps and seed. Raises ValueError, one sentence."""
    if not path:
        raise ValueError("There is no clip yet; upload one or record one, or look into a prompt.")
    if not 0 <= request.seed <= MAX_SEED:
        raise ValueError(f"The seed is {request.seed}; give a whole number from 0 to {MAX_SEED}.")
    runs.limits.check(pipeline, request)

    def work(run: Run) -> Inspection:
        clip = read_clip(path, request.num_frames, request.height, request.width, runs.limits.clip)
        return works.inspect_clip(run, clip, request.steps, _kept(request.steps), request.seed, run.folder)

    return runs.submit(work, ("Your own clip", _asked(CLIP, request)))


def _asked(kind: str, request: Request) -> dict:
    """What the form was when this was asked for."""
    size = size_text((request.num_frames, request.height, request.width))
    return {"kind": kind, "prompt": request.prompt, "size": size, "steps": request.steps, "seed": request.seed}


def _kept(steps: int) -> list[int]:
    """Five steps, from the first to the last."""
    return sorted({round(share * (steps - 1)) for share in (0, 0.25, 0.5, 0.75, 1)})
