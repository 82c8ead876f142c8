"""Correlations: which channels of Q and K repeat themselves along time, height and width, in one dense run."""

from collections.abc import Iterator

import gradio as gr
import torch

from timeripple import figures
from timeripple.generate import Request
from timeripple.grid import AXES, TokenGrid
from timeripple.hooks.families import FAMILIES
from timeripple.pond.pipeline import SPATIAL_FACTOR
from timeripple.probe import capture, load_head, rope_frequencies, save_captures
from timeripple.similarity import correlation_table, deviation_table, reuse_mask
from ui import markup
from ui.runs import Run, Runs

PROMPT = "a red ball rolling left across the ocean at sunset"
SIZES = {"Tiny": (8, 64), "Small": (16, 96)}  # frames, pixels
LAGS = (1, 2, 3, 4)
WINDOWS = (2, 4, 8)
SIDES = {"Queries": 0, "Keys": 1}
VALUES = {"Correlation": "correlation", "Deviation Δ (Eq. 3)": "deviation"}
POLL_SECONDS = 0.5
PICK = """element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button) trigger('select', {...button.dataset});
});"""
"""A click on a button of an HTML component tells Python its data attributes."""


def correlation_tab(app: gr.Blocks, pipeline, runs: Runs, run_id: gr.BrowserState) -> None:
    """Adds the content of the tab to `app`, which is being built; run_id remembers the run that is looked into."""
    sizes = [(f"{name} · {frames} frames of {pixels} × {pixels}", name) for name, (frames, pixels) in SIZES.items()]
    layer, head, channel = gr.State(0), gr.State(0), gr.State(0)

    with gr.Row(elem_classes="tr-columns"):
        with gr.Column(scale=2, min_width=320, elem_classes="tr-controls"):
            prompt = gr.Textbox(PROMPT, lines=2, label="What to look into", info="A dense run of this prompt")
            size = gr.Dropdown(sizes, value="Small", label="Clip", filterable=False)
            steps = gr.Slider(4, runs.limits.max_steps, value=20, step=1, label="Steps in all")
            seed = gr.Number(0, label="Noise number", precision=0)
            with gr.Row(elem_classes="tr-tight tr-actions"):
                look = gr.Button("Look inside", variant="primary", size="lg", scale=3, min_width=140)
                cancel = gr.Button("Stop", variant="stop", size="lg", scale=1, min_width=90)
            note = gr.HTML(markup.facts(["One dense run is made; its Q and K are kept at five of its steps."]))
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

    view = [run_id, step, layer, head, side, value, channel, theta]
    shown = [heads, summary, table, strip, channel_facts]
    quiet = {"show_progress": "hidden", "api_visibility": "private", "queue": False}

    def start(prompt, size, steps, seed) -> str:
        """Queues the run the form asks for."""
        try:
            return submit(pipeline, runs, read_form(prompt, size, steps, seed)).id
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
            stopped = run is not None and run.state == "cancelled"
            line = "The run has stopped." if stopped else "One dense run is made; its Q and K are kept at five steps."
            return [markup.facts([line]), gr.Column(visible=False), gr.skip()]
        request, kept = run.settings
        grid = "×".join(map(str, run.result.shape))
        line = f"“{request.prompt}”, seed {request.seed}: {run.result.tokens} tokens in {grid} (t×y×x)."
        choices = [(f"{index + 1} of {request.steps}", index) for index in kept]
        return [markup.facts([line]), gr.Column(visible=True), gr.Dropdown(choices, value=kept[len(kept) // 2])]

    def draw(*chosen) -> list:
        """Everything that depends on what is picked; nothing while there is no run."""
        run = runs.find(chosen[0])
        return describe(pipeline, run, *chosen[1:]) if run and run.state == "done" else [gr.skip()] * len(shown)

    def pick_head(event: gr.EventData) -> tuple[int, int]:
        return int(event.layer), int(event.head)

    def pick_channel(event: gr.EventData) -> int:
        return int(event.channel)

    outcome = [note, stage, step]
    started = look.click(start, [prompt, size, steps, seed], run_id, **quiet)
    followed = started.success(follow, run_id, outcome, **(quiet | {"queue": True, "concurrency_limit": None}))
    followed.then(draw, view, shown, **quiet)
    cancel.click(runs.cancel, run_id, None, **quiet)
    heads.select(pick_head, None, [layer, head], **quiet).then(draw, view, shown, **quiet)
    table.select(pick_channel, None, channel, **quiet).then(draw, view, shown, **quiet)
    for control in (step, side, value, theta):
        control.input(draw, view, shown, **quiet)
    app.load(follow, run_id, outcome, **(quiet | {"queue": True, "concurrency_limit": None})).then(
        draw, view, shown, **quiet
    )


def read_form(prompt: str, size: str, steps: int, seed: int | None) -> Request:
    """Raises ValueError, one sentence, for values that are missing."""
    if seed is None or size not in SIZES:
        raise ValueError("The seed is missing; give a whole number, such as 7.")
    frames, pixels = SIZES[size]
    return Request(prompt, "", seed, int(steps), frames, pixels, pixels)


def submit(pipeline, runs: Runs, request: Request) -> Run:
    """Queues a dense run whose q, k and v are kept at five steps. Raises ValueError for what cannot be generated."""
    request.check(pipeline)
    if request.steps > runs.limits.max_steps:
        raise ValueError(f"These are {request.steps} steps; the limit here is {runs.limits.max_steps}.")
    tokens = request.num_frames * (request.height // SPATIAL_FACTOR) * (request.width // SPATIAL_FACTOR)
    if tokens > runs.limits.max_tokens:
        raise ValueError(f"This size is {tokens:,} tokens; the limit here is {runs.limits.max_tokens:,}.")
    kept = sorted({round(share * (request.steps - 1)) for share in (0, 0.25, 0.5, 0.75, 1)})

    def work(run: Run) -> TokenGrid:
        def on_step(done: int, total: int) -> None:
            run.progress = {"step": (done, total)}
            run.changed()

        captures = capture(pipeline, request, kept, on_step=on_step, should_stop=run.stop.is_set)
        save_captures(captures, run.folder)
        return captures[0].grid

    return runs.submit(work, (request, kept))


def describe(
    pipeline, run: Run, step: int, layer: int, head: int, side: str, value: str, channel: int, theta: float
) -> list:
    """Grid of heads, summary, table of channels, frames of the picked channel and what is known of it."""
    grid, channels = run.result, rope_frequencies(pipeline.transformer)
    layers = list(FAMILIES[type(pipeline.transformer).__name__].attention_modules(pipeline.transformer))
    signed = VALUES[value] == "correlation"

    def table_of(layer: int, head: int):
        x = load_head(run.folder, step, layers[layer], head)[SIDES[side]]
        return x, *(correlation_table(x, grid, LAGS) if signed else deviation_table(x, grid, WINDOWS))

    x, columns, values = table_of(layer, head)
    high = 1.0 if signed else float(values.max()) or 1.0
    count = pipeline.transformer.config.num_attention_heads
    pictures = [
        [figures.colours(table_of(number, other)[2].numpy(), high, signed) for other in range(count)]
        for number in range(len(layers))
    ]
    axis, frequency = channels[channel]
    plane = grid.unflatten(x[grid.video, channel][:, None])[..., 0]
    reused = reuse_mask(x, grid, theta, AXES, 2)[:, channel].float().mean().item()
    name = {"Queries": "Q", "Keys": "K"}[side]
    return [
        markup.head_grid(pictures, (layer, head)),
        markup.facts(group_summary(columns, values, channels) if signed else []),
        markup.channel_table(
            columns, values.numpy(), figures.colours(values.numpy(), high, signed), channels, channel,
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
