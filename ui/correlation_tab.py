"""Correlations: which channels of Q and K repeat themselves along time, height and width, in one dense run."""

from collections.abc import Iterator

import gradio as gr
import torch

from timeripple import figures
from timeripple.generate import Request
from timeripple.grid import AXES, TokenGrid
from timeripple.hooks.families import FAMILIES
from timeripple.probe import capture, load_layer, rope_frequencies, save_captures
from timeripple.similarity import correlation_table, deviation_table, reuse_mask
from ui import markup
from ui.compare_tab import PRESETS
from ui.form import POLL_SECONDS, QUEUED, QUIET, read_request, size_choices
from ui.runs import Run, Runs

FIRST_NOTE = "One dense run is made; its Q and K are kept at five of its steps."
LAGS = (1, 2, 3, 4)
WINDOWS = (2, 4, 8)
SIDES = {"Queries": 0, "Keys": 1}
VALUES = {"Correlation": "correlation", "Deviation Δ (Eq. 3)": "deviation"}
PICK = """element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button) trigger('select', {...button.dataset});
});"""
"""A click on a button of an HTML component tells Python its data attributes."""


def correlation_tab(app: gr.Blocks, pipeline, runs: Runs, run_id: gr.BrowserState) -> None:
    """Adds the content of the tab to `app`, which is being built; run_id remembers the run that is looked into."""
    layer, head, channel = gr.State(0), gr.State(0), gr.State(0)

    with gr.Row(elem_classes="tr-columns"):
        with gr.Column(scale=2, min_width=320, elem_classes="tr-controls"):
            prompt = gr.Textbox(
                PRESETS["Ball at sunset"], lines=2, label="What to look into", info="A dense run of this prompt"
            )
            size = gr.Dropdown(size_choices("Tiny", "Small"), value="Small", label="Clip", filterable=False)
            steps = gr.Slider(4, runs.limits.max_steps, value=20, step=1, label="Steps in all")
            seed = gr.Number(0, label="Noise number", precision=0)
            with gr.Row(elem_classes="tr-tight tr-actions"):
                look = gr.Button("Look inside", variant="primary", size="lg", scale=3, min_width=140)
                cancel = gr.Button("Stop", variant="stop", size="lg", scale=1, min_width=90)
            note = gr.HTML(markup.facts([FIRST_NOTE]))
        with gr.Column(scale=5, min_width=320, elem_classes="tr-stage", visible=False) as stage:
            with gr.Row(elem_classes="tr-tight"):
                step = gr.Dropdown([], label="Denoising step", filterable=False, min_width=140)
                side = gr.Radio(list(SIDES), value="Queries", label="Of", min_width=160)
                value = gr.Radio(list(VALUES), value="Correlation", label="Shown", min_width=240)
                theta = gr.Slider(0.05, 1, value=0.3, step=0.05, label="θ of the mask", min_width=160)
            with gr.Row():
                with gr.Column(scale=3, min_width=320):
                    heads = gr.HTML(js_on_load=PICK, elem_id="correlation-heads")
                    summary = gr.HTML()
                    strip = gr.Plot(show_label=False, elem_classes="tr-plot")
                    channel_facts = gr.HTML()
                with gr.Column(scale=2, min_width=320):
                    table = gr.HTML(js_on_load=PICK, elem_id="correlation-table")

    picked = [run_id, step, layer, head, side, value, channel, theta]
    details = [table, strip, channel_facts]
    shown = [heads, summary, *details]

    def start(prompt, size, steps, seed) -> str:
        """Queues the run the form asks for."""
        try:
            return submit(pipeline, runs, read_request(prompt, seed, size, steps)).id
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def follow(id: str) -> Iterator[list]:
        """How far the run is; ends with the steps that can be looked at."""
        run = runs.find(id)
        while run and not runs.wait(run, POLL_SECONDS):
            done, total = run.progress.get("step", (0, run.settings[1][-1] + 1))
            yield [gr.HTML(markup.facts([f"Step {done} of {total}."])), gr.skip(), gr.skip()]
        if run and run.state == "failed":
            raise gr.Error(run.error, print_exception=False)
        yield restored(run)

    def restored(run: Run | None) -> list:
        """Note, stage and steps for a run, or as on the first visit."""
        if run is None or run.state != "done":
            line = "The run has stopped." if run and run.state == "cancelled" else FIRST_NOTE
            return [markup.facts([line]), gr.Column(visible=False), gr.skip()]
        request, kept = run.settings
        grid = "×".join(map(str, run.result.shape))
        line = f"“{request.prompt}”, seed {request.seed}: {run.result.tokens} tokens in {grid} (t×y×x)."
        choices = [(f"{index + 1} of {request.steps}", index) for index in kept]
        return [markup.facts([line]), gr.Column(visible=True), gr.Dropdown(choices, value=kept[len(kept) // 2])]

    def draw_details(id, *chosen) -> list:
        """What depends on channel and θ; nothing while there is no run."""
        run = runs.find(id)
        return describe_head(pipeline, run, *chosen) if run and run.state == "done" else [gr.skip()] * len(details)

    def draw(id, *chosen) -> list:
        """Everything that depends on what is picked; nothing while there is no run."""
        run = runs.find(id)
        if run is None or run.state != "done":
            return [gr.skip()] * len(shown)
        *place, _, _ = chosen
        return [*describe_heads(pipeline, run, *place), *describe_head(pipeline, run, *chosen)]

    def pick_head(event: gr.EventData) -> tuple[int, int]:
        return int(event.layer), int(event.head)

    def pick_channel(event: gr.EventData) -> int:
        return int(event.channel)

    outcome = [note, stage, step]
    started = look.click(start, [prompt, size, steps, seed], run_id, **QUIET)
    started.success(follow, run_id, outcome, **QUEUED).then(draw, picked, shown, **QUIET)
    app.load(follow, run_id, outcome, **QUEUED).then(draw, picked, shown, **QUIET)
    cancel.click(runs.cancel, run_id, None, **QUIET)
    heads.select(pick_head, None, [layer, head], **QUIET).then(draw, picked, shown, **QUIET)
    table.select(pick_channel, None, channel, **QUIET).then(draw_details, picked, details, **QUIET)
    for control in (step, side, value):
        control.input(draw, picked, shown, **QUIET)
    theta.input(draw_details, picked, details, **QUIET)


def submit(pipeline, runs: Runs, request: Request) -> Run:
    """Queues a dense run whose q, k and v are kept at five steps. Raises ValueError for what cannot be generated."""
    request.check(pipeline)
    runs.limits.check(request)
    kept = sorted({round(share * (request.steps - 1)) for share in (0, 0.25, 0.5, 0.75, 1)})

    def work(run: Run) -> TokenGrid:
        def on_step(done: int, total: int) -> None:
            run.progress = {"step": (done, total)}
            run.changed()

        captures = capture(pipeline, request, kept, on_step=on_step, should_stop=run.stop.is_set)
        save_captures(captures, run.folder)
        return captures[0].grid

    return runs.submit(work, (request, kept))


def describe_heads(pipeline, run: Run, step: int, layer: int, head: int, side: str, value: str) -> list:
    """Grid of all heads and, for correlations, a summary of the picked one."""
    layers = FAMILIES[type(pipeline.transformer).__name__].attention_modules(pipeline.transformer)
    tables = [table_of(load_layer(run.folder, step, name)[SIDES[side]], run.result, value) for name in layers]
    columns, picked = tables[layer][0], tables[layer][1][head]
    pictures = paint(torch.stack([values for _, values in tables]), picked, value)
    summary = group_summary(columns, picked, rope_frequencies(pipeline.transformer)) if is_signed(value) else []
    return [markup.head_grid(pictures, (layer, head)), markup.facts(summary)]


def describe_head(
    pipeline, run: Run, step: int, layer: int, head: int, side: str, value: str, channel: int, theta: float
) -> list:
    """Table of the channels of a head, frames of the picked channel and what is known of it."""
    grid, channels = run.result, rope_frequencies(pipeline.transformer)
    layers = list(FAMILIES[type(pipeline.transformer).__name__].attention_modules(pipeline.transformer))
    x = load_layer(run.folder, step, layers[layer], head)[SIDES[side]]
    columns, values = table_of(x, grid, value)
    axis, frequency = channels[channel]
    plane = grid.unflatten(x[grid.video, channel][:, None])[..., 0]
    reused = reuse_mask(x, grid, theta, AXES, 2)[:, channel].float().mean().item()
    name = {"Queries": "Q", "Keys": "K"}[side]
    return [
        markup.channel_table(
            columns, values.numpy(), paint(values, values, value), channels, channel,
            f"{value} of {name}, layer {layer}, head {head}, measured here",
        ),
        figures.token_strip(plane.numpy(), f"Channel {channel} of {name}, frame by frame"),
        markup.facts(
            [
                f"Channel {channel} turns with {axis}: {frequency:.4f} radians per token, "
                f"once around in {2 * torch.pi / frequency:.0f} tokens.",
                f"At θ = {theta:g} and windows of 2 along t, y and x, {reused:.0%} of its entries are reused "
                "(theoretical).",
            ]
        ),
    ]  # fmt: skip


def is_signed(value: str) -> bool:
    return VALUES[value] == "correlation"


def table_of(x: torch.Tensor, grid: TokenGrid, value: str) -> tuple[list[tuple[str, int]], torch.Tensor]:
    """Columns (axis, distance) and what is shown of [..., tokens, d]: [..., d, columns]."""
    return correlation_table(x, grid, LAGS) if is_signed(value) else deviation_table(x, grid, WINDOWS)


def paint(values: torch.Tensor, picked: torch.Tensor, value: str):
    """Colours of a table or of many, uint8 with 3 at the end; the scale ends at 1, or where the picked table ends."""
    high = 1.0 if is_signed(value) else float(picked.max()) or 1.0
    return figures.colours(values.numpy(), high, is_signed(value))


def group_summary(columns: list[tuple[str, int]], values: torch.Tensor, channels: list[tuple[str, float]]) -> list[str]:
    """One line a RoPE group: its mean correlation with the next token along each axis, the strongest first."""
    lines = []
    for group in AXES:
        rows = [number for number, (axis, _) in enumerate(channels) if axis == group]
        means = {axis: values[rows, i].mean().item() for i, (axis, lag) in enumerate(columns) if lag == 1}
        order = sorted(means, key=means.get, reverse=True)
        parts = ", ".join(f"{means[axis]:.2f} along {axis}" for axis in order)
        lines.append(f"Channels of group {group}: correlation with the next token {parts}.")
    return lines
