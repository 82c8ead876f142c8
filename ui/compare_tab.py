"""Compare: one prompt and seed, two methods, side by side while they run and measured when they are done."""

import json
import random
from pathlib import Path
from urllib.parse import urlencode

import gradio as gr

from timeripple.clips import figures
from timeripple.clips.compare import check, read_settings, save
from timeripple.clips.generate import MAX_SEED, Request
from timeripple.clips.methods import Method
from timeripple.clips.report import html_report
from timeripple.clips.video import read_metadata, read_mp4
from timeripple.pond.pipeline import PondPipeline
from ui import markup
from ui.form import (
    PICK,
    POLL_SECONDS,
    QUEUED,
    QUIET,
    SIZES,
    one_sentence,
    read_request,
    size_choices,
    size_of,
    size_text,
    sizes_of,
)
from ui.gpu import Works
from ui.method_form import fill_method, method_form, read_method, title
from ui.player import played, player
from ui.runs import Limits, Run, Runs

PRESETS = {
    "Ball at sunset": "a red ball rolling left across the ocean at sunset",
    "Star by night": "a large golden star rising in the sky by night",
    "Fish in the sea": "a small purple fish swimming right through the sea",
    "Growing heart": "a pink heart growing over a meadow",
    "Bouncing ring": "a cyan ring bouncing in the desert by day",
    "Camera pan": "a green cube circling above the city while the camera pans right",
}
EXAMPLES = Path(__file__).parents[1] / "assets" / "examples"
MEASURED = "measured here"
FEWEST_STEPS, GUIDANCE = 2, (1, 8)  # what the form holds
GONE = (
    "The server keeps results for a while only. What the form asks for is as it was: press Generate to make it again."
)
SHOW_STAGE = "() => innerWidth <= 768 && document.getElementById('stage').scrollIntoView({behavior: 'smooth'})"
"""On a phone the stage lies below the form."""


def compare_tab(app: gr.Blocks, pipeline, works: Works, runs: Runs) -> None:
    """Adds the content of the tab to `app`, which is being built."""
    saved_id = gr.BrowserState(None, storage_key="timeripple-run", secret="timeripple")
    own, is_pond, sizes = Request.for_pipeline(pipeline, "any"), isinstance(pipeline, PondPipeline), sizes_of(pipeline)
    shown, recorded = gr.State(None), examples() if is_pond else []
    timer = gr.Timer(POLL_SECONDS, active=False)

    with gr.Row(elem_classes="tr-columns"):
        with gr.Column(scale=2, min_width=320, elem_classes="tr-controls"):
            prompt = gr.Textbox(
                PRESETS["Ball at sunset"], lines=2, label="Prompt", info="A subject: how it looks and moves, and where."
            )
            gr.Examples(
                [[preset] for preset in PRESETS.values()], [prompt], label="Try one of these",
                example_labels=list(PRESETS), api_visibility="private",
            )  # fmt: skip
            with gr.Row(elem_classes="tr-tight tr-actions"):
                generate = gr.Button("Generate", variant="primary", size="lg", scale=3, min_width=140)
                cancel = gr.Button("Cancel", variant="stop", size="lg", scale=1, min_width=110, interactive=False)
            method_a, method_b = method_form("A", "dense"), method_form("B", "token")
            size = gr.Dropdown(size_choices(sizes), value=size_text(sizes["Standard"]), label="Size", filterable=False)
            most = runs.limits.max_steps
            steps = gr.Slider(
                FEWEST_STEPS, max(FEWEST_STEPS, most), value=min(own.steps, most), step=1, label="Denoising steps"
            )
            with gr.Row(elem_classes="tr-tight"):
                seed = gr.Number(0, label="Seed", precision=0, min_width=120, scale=3)
                dice = gr.Button("⚄ Random", scale=1, min_width=120, elem_classes="tr-dice")
            with gr.Accordion("Schedule", open=False):
                schedule = gr.Plot(show_label=False, elem_classes="tr-plot")
                schedule_note = gr.HTML()
            with gr.Accordion("Guidance and negative prompt", open=False):
                guidance = gr.Slider(
                    *GUIDANCE,
                    value=min(GUIDANCE[1], own.guidance_scale),
                    step=0.5,
                    label="Guidance",
                    info="How strictly the prompt is kept",
                )
                negative = gr.Textbox("", label="Negative prompt", info="What to steer away from; may stay empty")
            with gr.Accordion("Settings from a video", open=False):
                video = gr.File(label="An mp4 that TimeRipple wrote", file_types=[".mp4"], height=110)
        with gr.Column(scale=5, min_width=320, elem_classes="tr-stage"):
            welcome = markup.welcome([example_card(folder) for folder in recorded])
            stage = gr.HTML(welcome, elem_id="stage", js_on_load=PICK)
            with gr.Column(visible=False) as results:
                heading = gr.HTML()
                video_player = player(elem_id="player")
                numbers = gr.HTML()
                with gr.Row():
                    seconds = gr.Plot(show_label=False, min_width=320, elem_classes="tr-plot")
                    saving = gr.Plot(show_label=False, min_width=320, elem_classes="tr-plot")
                with gr.Row():
                    by_head = [gr.Plot(show_label=False, min_width=320, elem_classes="tr-plot") for _ in "AB"]
                with gr.Row():
                    side_files = [gr.DownloadButton(f"Download {side}.mp4", min_width=220) for side in "AB"]
                with gr.Row():
                    video_file = gr.DownloadButton("Download side_by_side.mp4", min_width=220)
                    report_file = gr.DownloadButton("Download report.json", min_width=220)
                    page_file = gr.DownloadButton("Download report.html", min_width=220)

    form = [prompt, seed, size, steps, guidance, negative, *method_a, *method_b]
    outcome = [heading, video_player, numbers, seconds, saving, *by_head]
    outcome += [*side_files, video_file, report_file, page_file]
    view = [stage, results, *outcome, generate, cancel, timer, shown]

    def start(*settings):
        """Queues the run the form asks for: its id, and the timer that shows it."""
        with one_sentence():
            run = submit(pipeline, works, runs, *read_form(settings), settings)
        return run.id, gr.Timer(active=True), None

    def restore(run_id, page: gr.Request):
        """After a reload, or by a link: the form as it was, and the timer that shows the run if it is still kept."""
        link = dict(page.query_params)
        run = runs.find(link.get("run", run_id))
        if run and len(run.settings) == len(form):  # and not a run of another tab
            return [run.id, *run.settings, gr.Timer(active=True), None]
        filled = fill_from(link) if "prompt" in link else [gr.skip()] * len(form)
        if "run" in link:
            gr.Info(GONE, title="This result is gone")
        return [None, *filled, gr.Timer(active=False), None]

    def pick_example(event: gr.EventData):
        run = open_example(runs, recorded[int(event.example)])
        return run.id, *run.settings, gr.Timer(active=True), None

    def fill_from(source: dict | str) -> list:
        """The form from a link's query, or from the mp4 at a path."""
        with one_sentence():
            values = read_metadata(source) if isinstance(source, str) else source
            return fill_form(*read_settings(values), runs.limits, sizes)

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

    def show(run_id, already_shown):
        """Everything that depends on the run, from its present state; nothing if nothing has changed."""
        run = runs.find(run_id)
        now = run and [run.id, run.version, runs.ahead(run)]
        if run and now == already_shown:
            return [gr.skip()] * len(view)
        done, busy = bool(run and run.state == "done"), bool(run and not run.finished)
        missing = markup.notice("This result is gone", GONE) if run_id else welcome
        return [
            gr.HTML(describe(run, runs.ahead(run)) if run else missing, visible=not done),
            gr.Column(visible=done),
            *(present(run) if done else [gr.skip()] * len(outcome)),
            gr.Button(interactive=not busy),
            gr.Button(interactive=busy and not run.stop.is_set()),
            gr.Timer(active=busy),
            now,
        ]

    methods = [steps, *method_a, *method_b]
    gr.on([app.load, *(control.change for control in methods)], draw_schedule, methods, [schedule, schedule_note],
          trigger_mode="always_last", **QUIET)  # fmt: skip
    video.upload(fill_from, video, form, **QUEUED)
    dice.click(lambda: random.randrange(10_000), None, seed, **QUIET)
    for trigger in (generate.click, prompt.submit):
        started = trigger(start, form, [saved_id, timer, shown], **QUEUED)
        started.success(show, [saved_id, shown], view, **QUIET).then(None, js=SHOW_STAGE)
    stage.select(pick_example, None, [saved_id, *form, timer, shown], **QUIET).success(
        show, [saved_id, shown], view, **QUIET
    )
    cancel.click(runs.cancel, saved_id, None, **QUIET).then(show, [saved_id, shown], view, **QUIET)
    timer.tick(show, [saved_id, shown], view, trigger_mode="once", **QUIET)
    app.load(restore, saved_id, [saved_id, *form, timer, shown], **QUEUED)


def read_form(settings: tuple) -> tuple[Request, list[Method]]:
    """What the form asks for. Raises ValueError, one sentence, for values that are missing or make no method."""
    prompt, seed, size, steps, guidance, negative, *methods = settings
    request = read_request(prompt, seed, size, steps, negative, guidance)
    half = len(methods) // 2
    return request, [read_method(methods[:half], request.steps), read_method(methods[half:], request.steps)]


def fill_form(request: Request, methods: list[Method], limits: Limits, sizes: dict = SIZES) -> list:
    """The values of the form that ask for this. Raises ValueError, one sentence, for what the form cannot ask for."""
    if len(methods) != 2:
        raise ValueError(f"These settings compare {len(methods)} methods; the form compares two.")
    limits.check_steps(request)
    for name, value, (low, high) in (
        ("seed", request.seed, (0, MAX_SEED)),
        ("number of steps", request.steps, (FEWEST_STEPS, limits.max_steps)),
        ("guidance", request.guidance_scale, GUIDANCE),
    ):
        if not low <= value <= high:
            raise ValueError(f"The {name} is {str(value)[:40]}; the form holds {low} to {high}.")
    filled = [value for method in methods for value in fill_method(method, request.steps)]
    size = size_of(request, sizes)
    return [request.prompt, request.seed, size, request.steps, request.guidance_scale, request.negative_prompt, *filled]


def submit(pipeline, works: Works, runs: Runs, request: Request, methods: list[Method], settings: tuple = ()) -> Run:
    """Queues a comparison. Raises ValueError, one sentence, for what is out of bounds or cannot be generated."""
    runs.limits.check_number(len(methods))
    check(pipeline, request, methods)
    runs.limits.check_comparison(pipeline, request, methods)

    def work(run: Run) -> dict:
        comparison = works.compare(run, request, methods)
        if comparison.broken:
            raise ValueError(" ".join(comparison.broken.values()))
        save(comparison, run.folder, pipeline)
        return comparison.report(pipeline)

    return runs.submit(work, settings)


def describe(run: Run, ahead: int) -> str:
    """The stage of a run that has no result to show."""
    if run.state == "cancelled":
        return markup.notice("Cancelled", "The run has stopped. Change what you like and generate again.")
    if run.state == "failed":
        return markup.notice("This run did not finish", run.error, alert=True)
    _, methods = read_form(run.settings)
    events = [run.progress.get(method.label) for method in methods]
    if run.stop.is_set():
        note = "Cancelling: the run stops after this step."
    elif ahead:
        note = f"Waiting: {ahead} {'run comes' if ahead == 1 else 'runs come'} first."
    elif not any(events):
        note = "Warming up: one step that is not timed."
    elif all(event and event.step == event.steps for event in events):
        note = "Decoding the videos and measuring how close they are."
    else:
        note = f"Method {'B' if events[1] or events[0].step == events[0].steps else 'A'} is running."
    return markup.progress(note, [(title(method), event) for method, event in zip(methods, events, strict=True)])


def present(run: Run) -> list:
    """The result: heading, player, cards, plots and files, from the run's report."""
    request, methods = read_form(run.settings)
    rows, kind = run.result["methods"], run.result.get("kind", MEASURED)
    names = [f"{side} · {title(method)}" for side, method in zip("AB", methods, strict=True)]
    size = run.result.get("made", run.result)
    detail = f"{size['num_frames']} frames of {size['width']} × {size['height']} · {request.steps} steps"
    steps = [method.evaluations(request.steps) for method in methods]
    savings = [
        row["saving"] or {"kind": "no reuse", "per_step": [0] * count} for row, count in zip(rows, steps, strict=True)
    ]
    curves = [(f"{name} ({saving['kind']})", saving["per_step"]) for name, saving in zip(names, savings, strict=True)]
    return [
        markup.heading(request.prompt, f"{detail} · seed {request.seed}", permalink(run)),
        played(run.folder / "player.mp4", [title(method) for method in methods], rows[1], kind),
        markup.cards(measured(rows, kind)) + markup.facts(run.result.get("remarks", [])),
        figures.seconds_by_stage([(side, row["seconds"]) for side, row in zip("AB", rows, strict=True)], kind),
        figures.saving_per_step(curves),
        *(
            gr.Plot(figures.saving_heatmap(row["saving_by_head"], name, row["saving"]["kind"]), visible=True)
            if row["saving"]
            else gr.Plot(visible=False)
            for name, row in zip(names, rows, strict=True)
        ),
        *(gr.DownloadButton(f"Download {row['label']}.mp4", run.folder / f"{row['label']}.mp4") for row in rows),
        *(gr.DownloadButton(value=run.folder / name) for name in ("side_by_side.mp4", "report.json", "report.html")),
    ]


def examples() -> list[Path]:
    """Folders of comparisons that were recorded before."""
    return sorted(path.parent for path in EXAMPLES.glob("*/report.json"))


def example_card(folder: Path) -> tuple[str, str, object]:
    """What the welcome shows of a recorded comparison: prompt, what came of it, and the first frame."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    second = report["methods"][1]
    numbers = f"{second['speedup']:.2f}× at {second['quality']['psnr']:.1f} dB"
    return report["prompt"], f"{second['method']}: {numbers}, recorded", read_mp4(folder / "dense.mp4")[0]


def open_example(runs: Runs, folder: Path) -> Run:
    """A recorded comparison as a finished run of the visitor's own."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    machine, date = report["environment"]["cpu"], report["environment"]["date"][:10]
    settings = tuple(fill_form(*read_settings(report), runs.limits))
    run = runs.adopt(folder, report | {"kind": f"recorded on {machine}, {date}"}, settings)
    if not (page := run.folder / "report.html").exists():
        page.write_text(html_report(report, run.folder), encoding="utf-8")
    return run


def permalink(run: Run) -> str:
    """Query of the page that shows this result, and its settings once the result is gone."""
    names = [*Request.__dataclass_fields__, "compared"]
    return "?" + urlencode({"run": run.id} | {name: run.result[name] for name in names if name in run.result})


QUALITY = (
    ("psnr", "{:.1f} dB", "; higher is closer"),
    ("ssim", "{:.3f}", "; 1 is identical"),
    ("vmaf", "{:.1f}", " as people would see it; 100 is best"),
)


def measured(rows: list[dict], kind: str) -> list[tuple[str, str, str, str]]:
    """The numbers of the cards, each with its kind and what it means."""
    seconds, quality = [row["seconds"] for row in rows], rows[1]["quality"]
    took = f"A took {seconds[0]['total']:.1f} s, B {seconds[1]['total']:.1f} s, from prompt to pixels"
    numbers = [
        ("Speed-up", f"{rows[1]['speedup']:.2f}×", kind, took),
    ]
    for name, form, meaning in QUALITY:
        if quality[name] is not None:
            numbers.append((name.upper(), form.format(quality[name]), kind, f"B against A{meaning}"))
    for side, saving in zip("AB", (row["saving"] for row in rows), strict=True):
        if saving:
            meaning = f"{side}, on the steps that reuse; {saving['all_steps']:.0%} of all steps together"
            numbers.append(("Attention saved", f"{saving['reuse_steps']:.0%}", saving["kind"], meaning))
    if rows[0]["saving"] is None:
        share = seconds[0]["attention"] / seconds[0]["total"]
        meaning = f"the speed-up if attention cost nothing: it is {share:.0%} of A's time"
        numbers.append(("Amdahl's limit", f"{1 / (1 - share):.2f}×", "theoretical", meaning))
    return numbers
