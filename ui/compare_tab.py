"""Compare: one prompt and seed, two methods, side by side while they run and measured when they are done."""

import random
import secrets

import gradio as gr

from timeripple.clips import figures
from timeripple.clips.compare import read_settings
from timeripple.clips.generate import Request
from timeripple.clips.video import read_metadata
from ui import markup
from ui.comparison import FEWEST_STEPS, GUIDANCE, References, describe, fill_form, fill_within, read_form, submit
from ui.form import (
    LATEST,
    PICK,
    POLL_SECONDS,
    QUEUED,
    QUIET,
    SIZES,
    one_sentence,
    remember,
    size_choices,
    size_text,
    sizes_of,
)
from ui.gpu import Works
from ui.method_form import method_form, read_method, strength_choices, strength_of, strength_values, title
from ui.player import player
from ui.result import Result, details, permalink, present, recorded_card, recorded_runs
from ui.runs import Run, Runs

PRESETS = {
    "Ball at sunset": "a red ball rolling left across the ocean at sunset",
    "Star by night": "a large golden star rising in the sky by night",
    "Fish in the sea": "a small purple fish swimming right through the sea",
    "Growing heart": "a pink heart growing over a meadow",
    "Bouncing ring": "a cyan ring bouncing in the desert by day",
    "Camera pan": "a green cube circling above the city while the camera pans right",
}
SHOW_STAGE = "() => innerWidth <= 768 && document.getElementById('stage').scrollIntoView({behavior: 'smooth'})"
"""On a phone the stage lies below the form."""
GONE = "This result is no longer kept; the form has its settings, so generate it again."
RESTARTED = "The app was started anew since this page was opened: its runs are gone, and the form is as you left it."
LOST = "The app was started anew since, or keeps the result no longer; the form is as it was, so generate it again."
CHANGED = "The form has changed since: this is still the result of what was asked for before."


def compare_tab(app: gr.Blocks, pipeline, works: Works, runs: Runs) -> tuple[gr.Dropdown, Run, str]:
    """Adds the content of the tab to `app`, which is being built; returns its choice of a size, and the run that it
    shows first with its headline."""
    # Of which run this page is; None: of the first recorded one. A gr.State would be gone with the server.
    run_id = gr.BrowserState(None, storage_key="timeripple-run", secret="timeripple")
    draft = gr.BrowserState(None, storage_key="timeripple-form", secret="timeripple")  # (this start of the app, form)
    started_as, references = secrets.token_hex(8), References()
    own, sizes = Request.for_pipeline(pipeline, "any"), sizes_of(pipeline)
    recorded = recorded_runs(runs, lambda *asked: fill_within(*asked, runs.limits))
    first = next(iter(recorded.values()))
    shown = gr.State([first.id, first.version, 0])
    timer = gr.Timer(POLL_SECONDS, active=False)
    opened = present_run(first)

    with gr.Row(elem_classes="tr-columns"):
        with gr.Column(scale=2, min_width=300, elem_classes="tr-controls", elem_id="form"):
            prompt = gr.Textbox(PRESETS["Ball at sunset"], lines=2, label="Prompt")
            gr.Examples(
                [[preset] for preset in PRESETS.values()], [prompt], label="Try one of these",
                example_labels=list(PRESETS), api_visibility="private",
            )  # fmt: skip
            size = gr.Dropdown(size_choices(sizes), value=size_text(sizes["Standard"]), label="Size", filterable=False)
            strength = gr.Radio(strength_choices(), value=strength_choices()[1][1], label="Strength")
            with gr.Row(elem_classes="tr-tight tr-actions"):
                generate = gr.Button("Generate", variant="primary", size="lg", scale=3, min_width=120)
                cancel = gr.Button("Cancel", variant="stop", size="lg", scale=1, min_width=90, interactive=False)
            with gr.Accordion("Advanced", open=False):
                method_a, method_b = method_form("A", "dense"), method_form("B", "token", strength.value)
                most = runs.limits.max_steps
                highest = max(FEWEST_STEPS, most)
                steps = gr.Slider(FEWEST_STEPS, highest, value=min(own.steps, most), step=1, label="Denoising steps")
                with gr.Row(elem_classes="tr-tight"):
                    seed = gr.Number(0, label="Seed", precision=0, min_width=120, scale=3)
                    dice = gr.Button("⚄ Random", scale=1, min_width=130, elem_classes="tr-dice")
                guidance = gr.Slider(
                    *GUIDANCE, value=min(GUIDANCE[1], own.guidance_scale), step=0.5, label="Guidance",
                    info="How strictly the prompt is kept",
                )  # fmt: skip
                negative = gr.Textbox("", label="Negative prompt", info="What to steer away from; may stay empty")
                with gr.Accordion("Schedule", open=False):
                    schedule = gr.Plot(show_label=False, elem_classes="tr-plot")
                    schedule_note = gr.HTML()
                video = gr.File(label="Settings from an mp4 that TimeRipple wrote", file_types=[".mp4"], height=130)
        with gr.Column(scale=5, min_width=320, elem_classes="tr-stage"):
            gone, note = (gr.HTML(elem_classes="tr-maybe") for _ in range(2))
            stage = gr.HTML(visible=False, elem_id="stage")
            with gr.Column(elem_id="result") as results:
                heading = gr.HTML(opened[0])
                with gr.Row(elem_classes="tr-first"):
                    with gr.Column(scale=3, min_width=320):
                        video_player = player(elem_id="player", value=opened[1])
                    with gr.Column(scale=1, min_width=220):
                        numbers = gr.HTML(opened[2])
                steps_seen = gr.HTML(opened[3], js_on_load=markup.STEPS_JS)
                with gr.Accordion("More about this run: time, savings, files", open=False) as more:
                    with gr.Row():
                        plots = [
                            gr.Plot(show_label=False, visible=False, min_width=320, elem_classes="tr-plot")
                            for _ in "12"
                        ]
                    with gr.Row():
                        plots += [
                            gr.Plot(show_label=False, visible=False, min_width=320, elem_classes="tr-plot")
                            for _ in "AB"
                        ]
                    with gr.Row():
                        files = [gr.DownloadButton(f"Download {side}.mp4", min_width=200) for side in "AB"]
                        for name in ("side_by_side.mp4", "report.json", "report.html"):
                            files.append(gr.DownloadButton(f"Download {name}", min_width=200))
            gallery = gr.HTML(markup.recorded([recorded_card(run) for run in recorded.values()]), js_on_load=PICK)

    form = [prompt, seed, size, steps, guidance, negative, *method_a, *method_b]
    outcome = [heading, video_player, numbers, steps_seen]
    view = [stage, results, *outcome, generate, cancel, timer, shown]

    def find(id: str | None) -> Run | None:
        return runs.find(id) if id else first

    def filled_by(run: Run) -> list:
        """The form as the run asked; of a model that has other sizes it stays as it is."""
        fits = run.id not in recorded or sizes == SIZES
        return [*run.settings] if fits else [gr.skip()] * len(form)

    def start(*settings):
        """Queues the run the form asks for."""
        with one_sentence():
            run = submit(pipeline, works, runs, *read_form(settings), settings, references)
        return run.id, gr.Timer(active=True), None, "", ""

    def restore(saved, kept, page: gr.Request):
        """After a reload, or by a link: the form as it was, the timer that shows the run if it is still kept, and a
        word on what is gone."""
        link = dict(page.query_params)
        only_settings = "prompt" in link and "run" not in link
        id, empty = link.get("run", saved), [gr.skip()] * len(form)
        run = None if only_settings or not id else find(id)
        if run and len(run.settings) == len(form):  # and not a run of another tab
            return [run.id, *filled_by(run), gr.Timer(active=True), None, ""]
        missing = markup.remark(GONE) if "run" in link else ""
        if "prompt" in link:
            return [None, *fill_from(link), gr.Timer(active=True), None, missing]
        mine = kept and len(kept[1]) == len(form)
        if mine:
            gone = missing if kept[0] == started_as else markup.remark(RESTARTED)
            return [None, *kept[1], gr.Timer(active=False), gr.skip(), gone]
        return [None, *empty, gr.Timer(active=False), gr.skip(), ""]

    def pick_recorded(event: gr.EventData):
        run = recorded[event.recorded]
        return run.id, *filled_by(run), gr.Timer(active=True), None, ""

    def fill_from(source: dict | str) -> list:
        """The form from a link's query, or from the mp4 at a path."""
        with one_sentence():
            values = read_metadata(source) if isinstance(source, str) else source
            return fill_form(*read_settings(values), runs.limits, sizes)

    def changed(id, *settings):
        """Keeps what is in the form, and marks a result that is no longer what it asks for."""
        run = find(id)
        same = not id or id in recorded or run is None or not run.finished or [*run.settings] == [*settings]
        return [started_as, list(settings)], "" if same else markup.remark(CHANGED)

    def draw_schedule(steps, *values):
        """The schedules of both methods, or why there is none."""
        half, drawn, notes = len(method_a), [], []
        for side, chosen in (("A", values[:half]), ("B", values[half:])):
            try:
                method = read_method(chosen, int(steps))
                if method.config is not None and method.cache is None:
                    drawn.append((f"{side} · {title(method)}", method.config.schedule(method.evaluations(int(steps)))))
            except ValueError as error:
                notes.append(f"{side}: {error}")
        return figures.schedule_curve(drawn), markup.facts(notes)

    def show(id, already_shown):
        """Everything that depends on the run, from its present state; nothing if nothing has changed."""
        run = find(id)
        if run is None:
            lost, idle = gr.HTML(markup.notice("This run is gone", LOST), visible=True), gr.Timer(active=False)
            skipped = [gr.skip()] * len(outcome)
            return [lost, gr.Column(visible=False), *skipped, gr.Button(interactive=True), gr.Button(), idle, None]
        ahead = runs.ahead(run)
        now = [run.id, run.version, ahead]
        if now == already_shown:
            return [gr.skip()] * len(view)
        done, busy = run.state == "done", not run.finished
        return [
            gr.HTML("" if done else describe(run, ahead), visible=not done),
            gr.Column(visible=done),
            *(present_run(run) if done else [gr.skip()] * len(outcome)),
            gr.Button(interactive=not busy),
            gr.Button(interactive=busy and not run.stop.is_set()),
            gr.Timer(active=busy),
            now,
        ]

    def know_more(id):
        run = find(id)
        return details(result_of(run), run.folder) if run and run.state == "done" else [gr.skip()] * 9

    methods = [steps, *method_a, *method_b]
    gr.on([app.load, *(control.change for control in methods)], draw_schedule, methods, [schedule, schedule_note],
          **LATEST)  # fmt: skip
    strength.input(strength_values, strength, method_b, **LATEST)
    gr.on([control.input for control in method_b], lambda: gr.Radio(value=None), None, strength, **QUIET)
    gr.on([control.change for control in form], changed, [run_id, *form], [draft, note], **LATEST)
    filled = [run_id, *form, timer, shown, gone]
    uploaded = video.upload(fill_from, video, form, **QUEUED)
    dice.click(lambda: random.randrange(10_000), None, seed, **QUIET)
    for trigger in (generate.click, prompt.submit):
        started = trigger(start, form, [run_id, timer, shown, gone, note], **QUEUED)
        started.success(show, [run_id, shown], view, **QUIET).then(None, run_id, None, js=remember("run"))
        started.success(None, js=SHOW_STAGE)
    picked = gallery.select(pick_recorded, None, filled, **QUIET)
    picked.success(show, [run_id, shown], view, **QUIET).then(None, run_id, None, js=remember("run"))
    cancel.click(runs.cancel, run_id, None, **QUIET).then(show, [run_id, shown], view, **QUIET)
    timer.tick(show, [run_id, shown], view, trigger_mode="once", **QUIET)
    for wanted in (more.expand, heading.change):
        wanted(know_more, run_id, [*plots, *files], **QUIET)
    restored = app.load(restore, [run_id, draft], filled, **QUEUED)
    restored.success(None, run_id, None, js=remember("run"))
    for form_filled in (picked, uploaded, restored):
        form_filled.success(strength_of, method_b, strength, **QUIET)
    return size, first, opened[0]


def result_of(run: Run) -> Result:
    return Result(*read_form(run.settings), run.result)


def present_run(run: Run) -> list:
    """What is seen first of a finished run."""
    return present(result_of(run), run.folder, permalink(run.result, run.id))
