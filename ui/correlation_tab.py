"""Correlations: which channels of Q and K repeat themselves along time, height and width, in one dense run."""

from math import pi

import gradio as gr

from timeripple.inspection import figures, views
from timeripple.inspection.correlations import group_means
from timeripple.inspection.probe import Inspection
from ui import looking, markup
from ui.form import LATEST, PICK, QUIET, in_turn
from ui.glossary import explained
from ui.runs import Runs
from ui.source import Source, View, inspected

SIDES = {"Queries": "query", "Keys": "key"}
LETTERS = {"Queries": "Q", "Keys": "K"}
CORRELATION, DEVIATION = "Correlation", "Deviation Δ (Eq. 3)"
SAME = 0.5
"""Correlation with the next token from which channels are said to repeat themselves."""


def correlation_tab(tab: gr.Tab, runs: Runs, source: Source) -> View:
    """Adds the content of the tab to what is being built."""
    with gr.Row(elem_classes="tr-tight"):
        side = gr.Radio(list(SIDES), value="Queries", label="Of", min_width=160)
        value = gr.Radio([CORRELATION, DEVIATION], value=CORRELATION, label="Shown", min_width=240)
        theta = gr.Slider(0.05, 1, value=0.3, step=0.05, label="Threshold θ", min_width=160)
    gr.HTML(explained("correlation", "RoPE group", "θ", "Eq. 3"))
    with gr.Row():
        with gr.Column(scale=3, min_width=300, elem_classes="tr-picking"):
            heads = gr.HTML(js_on_load=PICK, elem_id="correlation-heads")
            summary = gr.HTML()
            channel_facts = gr.HTML(elem_classes="tr-later")
            sheet = gr.HTML(js_on_load=looking.SHEET_JS, elem_id="correlation-sheet", elem_classes="tr-later")
        with gr.Column(scale=2, min_width=300):
            table = gr.HTML(js_on_load=PICK, elem_id="correlation-table")

    place = [source.run_id, source.step, source.layer, source.head]
    inputs = [*place, side, value, source.channel, theta, source.place]
    details = [table, channel_facts, sheet]
    outputs = [heads, summary, *details]

    @in_turn
    def draw(id, *chosen) -> list:
        seen = inspected(runs, id)
        if seen is None or chosen[0] not in seen.kept:
            return [gr.skip()] * len(outputs)
        return [*describe_heads(seen, *chosen[:5]), *describe_head(seen, *chosen)]

    @in_turn
    def draw_details(id, *chosen) -> list:
        """What depends on channel and θ."""
        seen = inspected(runs, id)
        return describe_head(seen, *chosen) if seen else [gr.skip()] * len(details)

    def pick_head(id, step, side, value, channel, theta, at, event: gr.EventData) -> list:
        layer, head = int(event.layer), int(event.head)
        return [*draw(id, step, layer, head, side, value, channel, theta, at), layer, head]

    def pick_channel(id, step, layer, head, side, value, theta, at, event: gr.EventData) -> list:
        channel = int(event.channel)
        return [*draw_details(id, step, layer, head, side, value, channel, theta, at), channel]

    but_head = [each for each in inputs if each not in (source.layer, source.head)]
    but_channel = [each for each in inputs if each is not source.channel]
    heads.select(pick_head, but_head, [*outputs, source.layer, source.head], trigger_mode="multiple", **QUIET)
    table.select(pick_channel, but_channel, [*details, source.channel], trigger_mode="multiple", **QUIET)
    sheet.select(picked_place, None, source.place, trigger_mode="multiple", **QUIET)
    gr.on([side.input, value.input], draw, inputs, outputs, **LATEST)
    theta.input(draw_details, inputs, details, **LATEST)
    return View("Correlations", tab, inputs, outputs, draw)


def picked_place(event: gr.EventData) -> tuple[int, int, int]:
    """The token that `parts/sheet.js` tells."""
    return int(event.t), int(event.y), int(event.x)


def describe_heads(seen: Inspection, step: int, layer: int, head: int, side: str, value: str) -> list:
    """Grid of all heads and, for correlations, what the channels of the picked one do."""
    signed = value == CORRELATION
    columns, tables = views.channel_tables(seen, step, SIDES[side], signed)
    high = 1.0 if signed else float(tables[layer, head].max()) or 1.0
    pictures = list(figures.colours(tables.numpy(), high, signed))
    ends = ("−1: opposite", "1: the same") if signed else ("0: no deviation", f"{high:.2f}")
    grid = looking.head_grid(pictures, (layer, head), "Layer and head") + looking.colour_bar(*ends, signed)
    story = tell_story(group_means(columns, tables[layer, head], seen.channels)) if signed else []
    return [grid, markup.facts(story)]


def describe_head(
    seen: Inspection, step: int, layer: int, head: int, side: str, value: str, channel: int, theta: float, place: tuple
) -> list:
    """Table of the channels of a head, what is known of the picked one, and its frames beside those of the clip."""
    signed, of = value == CORRELATION, SIDES[side]
    columns, tables = views.channel_tables(seen, step, of, signed)
    values = tables[layer, head].numpy()
    channel = min(channel, len(values) - 1)
    high = 1.0 if signed else float(values.max()) or 1.0
    name = f"Channel {channel} of {LETTERS[side]}"
    planes = views.channel_planes(seen, step, layer, head, of, channel)
    reused = views.channel_reused(seen, step, layer, head, of, channel, theta)
    facts = [
        f"At θ = {theta:g} and windows of {views.WINDOW} along time, height and width, {reused:.0%} of the entries of "
        f"channel {channel} are reused (theoretical)."
    ]
    if seen.channels:
        axis, frequency = seen.channels[channel]
        turn = f"{frequency:.4f} radians per token, once around in {2 * pi / frequency:.0f} tokens"
        facts.insert(0, f"Channel {channel} turns with {markup.AXIS_NAMES[axis]}: {turn}.")
    most = float(abs(planes).max()) or 1.0
    clip = figures.clip_strip(seen.frames, seen.grid.frames)
    strip = figures.strip(seen.frames, planes, most, signed=True, over=False)
    caption = f"{value} of {LETTERS[side]}, layer {layer}, head {head}, measured here"
    return [
        looking.channel_table(
            columns, values, figures.colours(values, high, signed), seen.channels, channel, caption,
            "later" if signed else "a window",
        ),
        markup.facts(facts),
        looking.sheet(
            [("The clip", clip, None, ""), (name, strip, planes, "")], seen.grid.shape, at_grid(seen, place),
            f"{name} on its tokens", "Point at a frame to read the channel there.",
        ) + looking.colour_bar(f"−{most:.1f}", f"{most:.1f}", True),
    ]  # fmt: skip


def at_grid(seen: Inspection, place: tuple) -> tuple[int, int, int]:
    """A token brought inside the grid."""
    return tuple(min(int(at), size - 1) for at, size in zip(place, seen.grid.shape, strict=True))


def tell_story(means: dict[str, dict[str, float]]) -> list[str]:
    """One sentence a RoPE group: along which axes its channels repeat themselves."""
    lines = []
    for group, along in means.items():
        order = sorted(along, key=along.get, reverse=True)
        numbers = ", ".join(f"{along[axis]:.2f} along {markup.AXIS_NAMES[axis]}" for axis in order)
        same = [markup.AXIS_NAMES[axis] for axis in order if along[axis] >= SAME]
        who = f"The {group} channels of this head" if group in markup.AXIS_NAMES else "The channels of this head"
        what = f"repeat themselves along {' and '.join(same)}" if same else "hardly repeat themselves"
        lines.append(f"{who} {what} (correlation with the next token {numbers}).")
    return lines
