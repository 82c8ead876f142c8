"""Correlations: which channels of Q and K repeat themselves along time, height and width, in one dense run."""

import gradio as gr
import torch

from timeripple.attention.grid import AXES, TokenGrid
from timeripple.attention.similarity import reuse_mask
from timeripple.inspection import figures
from timeripple.inspection.correlations import correlation_table, deviation_table
from timeripple.inspection.probe import Inspection
from timeripple.inspection.reports import rope_frequencies
from ui import markup
from ui.form import PICK, QUIET
from ui.gpu import Works
from ui.runs import Runs
from ui.source import inspected, looked_inside, wire_source

LAGS = (1, 2, 3, 4)
WINDOWS = (2, 4, 8)
SIDES = {"Queries": 0, "Keys": 1}
VALUES = {"Correlation": "correlation", "Deviation Δ (Eq. 3)": "deviation"}


def correlation_tab(app: gr.Blocks, tab: gr.Tab, pipeline, works: Works, runs: Runs, run_id: gr.BrowserState) -> None:
    """Adds the content of the tab to `app`, which is being built; run_id remembers the run that is looked into."""
    layer, head, channel = gr.State(0), gr.State(0), gr.State(0)

    with looked_inside(pipeline, runs) as (form, stage):
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
                frame = gr.Slider(1, 2, value=1, step=1, label="Frame")
                planes = gr.HTML()
            with gr.Column(scale=2, min_width=320):
                table = gr.HTML(js_on_load=PICK, elem_id="correlation-table")

    place = [run_id, step, layer, head, side]
    picked = [*place, value, channel, theta, frame]
    details = [table, strip, channel_facts, planes, frame]
    shown = [heads, summary, *details]

    def draw_details(id, *chosen) -> list:
        """What depends on channel and θ; nothing while there is no run."""
        seen = inspected(runs, id)
        return describe_head(pipeline, seen, *chosen) if seen else [gr.skip()] * len(details)

    def draw(id, *chosen) -> list:
        """Everything that depends on what is picked; nothing while there is no run."""
        seen = inspected(runs, id)
        if seen is None:
            return [gr.skip()] * len(shown)
        return [*describe_heads(pipeline, seen, *chosen[:5]), *describe_head(pipeline, seen, *chosen)]

    def draw_frame(id, *chosen):
        seen = inspected(runs, id)
        return show_frame(seen, *chosen) if seen else gr.skip()

    def pick_head(id, step, side, value, channel, theta, frame, event: gr.EventData) -> list:
        layer, head = int(event.layer), int(event.head)
        return [*draw(id, step, layer, head, side, value, channel, theta, frame), layer, head]

    def pick_channel(id, step, layer, head, side, value, theta, frame, event: gr.EventData) -> list:
        channel = int(event.channel)
        return [*draw_details(id, step, layer, head, side, value, channel, theta, frame), channel]

    wire_source(app, tab, form, pipeline, works, runs, run_id, stage, step, draw, picked, shown)
    but_head = [control for control in picked if control not in (layer, head)]
    but_channel = [control for control in picked if control is not channel]
    heads.select(pick_head, but_head, [*shown, layer, head], trigger_mode="multiple", **QUIET)
    table.select(pick_channel, but_channel, [*details, channel], trigger_mode="multiple", **QUIET)
    for control in (step, side, value):
        control.input(draw, picked, shown, **QUIET)
    theta.input(draw_details, picked, details, **QUIET)
    frame.input(draw_frame, [*place, channel, frame], planes, trigger_mode="always_last", **QUIET)


def describe_heads(pipeline, seen: Inspection, step: int, layer: int, head: int, side: str, value: str) -> list:
    """Grid of all heads and, for correlations, a summary of the picked one."""
    sides = [seen.qkv(step, number)[SIDES[side]] for number in range(len(seen.layers))]
    tables = [table_of(x, seen.grid, value) for x in sides]
    columns, picked = tables[layer][0], tables[layer][1][head]
    pictures = paint(torch.stack([values for _, values in tables]), picked, value)
    summary = group_summary(columns, picked, rope_frequencies(pipeline.transformer)) if is_signed(value) else []
    return [markup.head_grid(pictures, (layer, head)), markup.facts(summary)]


def describe_head(
    pipeline,
    seen: Inspection,
    step: int,
    layer: int,
    head: int,
    side: str,
    value: str,
    channel: int,
    theta: float,
    frame: int,
) -> list:
    """Table of the channels of a head, frames of the picked channel and what is known of it, one frame of it large."""
    grid, channels = seen.grid, rope_frequencies(pipeline.transformer)
    x = seen.qkv(step, layer, head)[SIDES[side]]
    columns, values = table_of(x, grid, value)
    axis, frequency = channels[channel]
    plane = grid.unflatten(x[grid.video, channel][:, None])[..., 0]
    reused = reuse_mask(x, grid, theta, AXES, 2)[:, channel].float().mean().item()
    name = {"Queries": "Q", "Keys": "K"}[side]
    frame = min(frame, grid.shape[0])
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
        show_frame(seen, step, layer, head, side, channel, frame),
        gr.Slider(maximum=grid.shape[0], value=frame),
    ]  # fmt: skip


def show_frame(seen: Inspection, step: int, layer: int, head: int, side: str, channel: int, frame: int) -> str:
    """One frame of the clip beside the values of the channel on its tokens."""
    x, grid = seen.qkv(step, layer, head)[SIDES[side]][:, channel], seen.grid
    planes = grid.unflatten(x[grid.video][:, None])[..., 0]
    picture = seen.frames[(frame - 1) * len(seen.frames) // grid.shape[0]]
    values = figures.colours(planes[frame - 1].numpy(), planes.abs().max().item(), signed=True)
    return markup.pictures([(f"Frame {frame}", picture), (f"Channel {channel} on its tokens", values)])


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
