"""What the tabs that look inside share: a dense run of a prompt, or a visitor's clip, whose q, k and v are kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import gradio as gr

from timeripple.clips.generate import MAX_SEED, Request
from timeripple.clips.video import read_clip
from timeripple.inspection.probe import Inspection
from timeripple.pond.pipeline import PondPipeline
from ui import markup
from ui.compare_tab import PRESETS
from ui.form import POLL_SECONDS, QUEUED, QUIET, failure, one_sentence, read_request, size_choices, size_text, sizes_of
from ui.gpu import Works
from ui.runs import Run, Runs

FIRST_NOTE = "One dense run is made, or your clip is encoded; Q, K and V are kept at five denoising steps."
PROMPT, CLIP = "A prompt", "My own clip"


class SourceForm(NamedTuple):
    """Components of the form, see `source_form`."""

    kind: gr.Radio
    prompt: gr.Textbox
    clip: gr.Video
    size: gr.Dropdown
    steps: gr.Slider
    seed: gr.Number
    look: gr.Button
    cancel: gr.Button
    note: gr.HTML


def source_form(pipeline, runs: Runs) -> SourceForm:
    """Adds the form to the column that is being built; `wire_source` brings it to life."""
    is_pond, sizes = isinstance(pipeline, PondPipeline), sizes_of(pipeline)
    small = {name: sizes[name] for name in ("Tiny", "Small") if name in sizes}
    kind = gr.Radio([PROMPT, CLIP] if is_pond else [PROMPT], value=PROMPT, label="Look into")
    prompt = gr.Textbox(
        PRESETS["Ball at sunset"], lines=2, label="What to look into", info="A dense run of this prompt"
    )
    clip = gr.Video(
        label="Clip, of which the first two seconds are used", sources=["upload", "webcam"], visible=False,
        webcam_options=gr.WebcamOptions(mirror=False), buttons=[],
    )  # fmt: skip
    size = gr.Dropdown(size_choices(small), value=size_text(small["Small"]), label="Clip size", filterable=False)
    steps = gr.Slider(4, runs.limits.max_steps, value=20, step=1, label="Steps in all")
    seed = gr.Number(0, label="Noise number", precision=0)
    with gr.Row(elem_classes="tr-tight tr-actions"):
        look = gr.Button("Look inside", variant="primary", size="lg", scale=3, min_width=140)
        cancel = gr.Button("Stop", variant="stop", size="lg", scale=1, min_width=90)
    return SourceForm(kind, prompt, clip, size, steps, seed, look, cancel, gr.HTML(markup.facts([FIRST_NOTE])))


@contextmanager
def looked_inside(pipeline, runs: Runs):
    """A tab that looks inside a run: the form of what to look into, and beside it what is built inside the block, which
    is hidden until there is a run. Yields the form and that stage."""
    with gr.Row(elem_classes="tr-columns"):
        with gr.Column(scale=2, min_width=320, elem_classes="tr-controls"):
            form = source_form(pipeline, runs)
        with gr.Column(scale=5, min_width=320, elem_classes="tr-stage", visible=False) as stage:
            yield form, stage


def wire_source(
    app: gr.Blocks,
    tab: gr.Tab,
    form: SourceForm,
    pipeline,
    works: Works,
    runs: Runs,
    run_id: gr.BrowserState,
    stage: gr.Column,
    step: gr.Dropdown,
    draw: Callable,
    picked: list,
    shown: list,
) -> None:
    """Runs what the form asks for and shows it.

    run_id: remembers the run, for all tabs; stage: becomes visible, and step gets its choices, once there is something
    to see; then, and when the tab is opened, `draw(run_id, step, ...)` of `picked` fills `shown`.
    """

    def start(kind, prompt, clip, size, steps, seed) -> str:
        """Queues the run the form asks for."""
        with one_sentence():
            request = read_request(prompt, seed, size, steps)
            run = (
                submit_request(pipeline, works, runs, request)
                if kind == PROMPT
                else submit_clip(pipeline, works, runs, clip, request)
            )
        return run.id

    def follow(id: str | None, shown_id: str | None) -> Iterator[list]:
        """How far the run is; ends with the steps that can be looked at. Nothing where it is shown already."""
        run = runs.find(id)
        if run and id == shown_id:
            yield [gr.skip()] * 4
            return
        while run and not runs.wait(run, POLL_SECONDS):
            done, total = run.progress.get("step", (0, 0))
            line = f"Step {done} of {total}." if total else f"Waiting: {runs.ahead(run)} to come first."
            yield [markup.facts([line]), gr.skip(), gr.skip(), None]
        if run and run.state == "failed":
            raise failure(run.error)
        yield [*restored(run), id]

    def restored(run: Run | None) -> list:
        """Note, stage and steps for a run, or as on the first visit."""
        if run is None or run.state != "done":
            line = "The run has stopped." if run and run.state == "cancelled" else FIRST_NOTE
            return [markup.facts([line]), gr.Column(visible=False), gr.skip()]
        seen: Inspection = run.result
        grid = "×".join(map(str, seen.grid.shape))
        line = f"{run.settings[0]}: {seen.grid.tokens} tokens in {grid} (t×y×x)."
        choices = [(f"{index + 1} of {seen.steps}", index) for index in seen.kept]
        middle = seen.kept[len(seen.kept) // 2]
        return [markup.facts([line]), gr.Column(visible=True), gr.Dropdown(choices, value=middle)]

    def choose(kind: str) -> list:
        return [gr.Textbox(visible=kind == PROMPT), gr.Video(visible=kind == CLIP)]

    shown_id = gr.State(None)
    outcome = [form.note, stage, step, shown_id]
    form.kind.input(choose, form.kind, [form.prompt, form.clip], **QUIET)
    started = form.look.click(start, list(form[:6]), run_id, **QUEUED)
    for ready in (started.success, tab.select, app.load):
        ready(follow, [run_id, shown_id], outcome, **QUEUED).then(draw, picked, shown, **QUIET)
    form.cancel.click(runs.cancel, run_id, None, **QUIET)


def inspected(runs: Runs, id: str | None) -> Inspection | None:
    """What a run has kept; None while there is nothing to see."""
    run = runs.find(id)
    return run.result if run and isinstance(run.result, Inspection) else None


def submit_request(pipeline, works: Works, runs: Runs, request: Request) -> Run:
    """Queues a dense run that is looked into. Raises ValueError, one sentence, for what cannot be generated."""
    request.check(pipeline)
    runs.limits.check(pipeline, request)
    title = f"“{request.prompt}”, seed {request.seed}"
    kept = _kept(request.steps)
    return runs.submit(lambda run: works.inspect_request(run, request, kept, run.folder), (title,))


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

    return runs.submit(work, ("Your own clip",))


def _kept(steps: int) -> list[int]:
    """Five steps, from the first to the last."""
    return sorted({round(share * (steps - 1)) for share in (0, 0.25, 0.5, 0.75, 1)})
