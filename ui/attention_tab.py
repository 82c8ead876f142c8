"""Attention: what a token attends to, densely and with reuse, which keys are computed for it, and the whole map."""

import gradio as gr

from timeripple.attention.config import ReuseConfig
from timeripple.inspection import attention_maps as maps
from timeripple.inspection import figures, views
from timeripple.inspection.probe import Inspection
from ui import looking, markup
from ui.correlation_tab import at_grid, picked_place
from ui.form import LATEST, PICK, QUIET, in_turn
from ui.glossary import explained
from ui.runs import Runs
from ui.source import Source, View, inspected

ALL = "All frames"
THIS, MEAN = "This head", "Mean of heads"


def attention_tab(tab: gr.Tab, runs: Runs, source: Source) -> View:
    """Adds the content of the tab to what is being built."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            heads = gr.HTML(js_on_load=PICK, elem_id="attention-heads")
        with gr.Column(scale=3, min_width=280):
            with gr.Row(elem_classes="tr-tight"):
                granularity = gr.Radio(["token", "tile"], value="token", label="Granularity", min_width=150)
                budget = gr.Slider(0.1, 0.85, value=0.7, step=0.05, label="Budget of this call", min_width=160)
            gr.HTML(explained("granularity", "budget", "realised"))
            notes = gr.HTML()
    sheet = gr.HTML(js_on_load=looking.SHEET_JS, elem_id="attention-sheet")
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            of = gr.Radio([THIS, MEAN], value=THIS, label="Map of")
            query_frame = gr.Dropdown([ALL], value=ALL, label="Queries of", filterable=False)
            key_frame = gr.Dropdown([ALL], value=ALL, label="Keys of", filterable=False)
        with gr.Column(scale=3, min_width=300):
            whole = gr.HTML(js_on_load=looking.MAP_JS, elem_id="attention-map")
    with gr.Accordion("What kind of attention every head has", open=False):
        scores = gr.HTML()

    place = [source.run_id, source.step, source.layer, source.head]
    token = [*place, source.place, granularity, budget]
    part = [*place, of, query_frame, key_frame]
    inputs = [*token, of, query_frame, key_frame]
    of_head = [heads, sheet, notes, whole]
    outputs = [*of_head, scores, query_frame, key_frame]

    def shown(id, step) -> Inspection | None:
        seen = inspected(runs, id)
        return seen if seen and step in seen.kept else None

    @in_turn
    def draw(id, step, layer, head, at, granularity, budget, *of_map) -> list:
        seen = shown(id, step)
        if seen is None:
            return [gr.skip()] * len(outputs)
        frames = [ALL, *((f"Frame {t + 1}", t) for t in range(seen.grid.frames))]
        described = describe(seen, step, layer, head, at, granularity, budget, *of_map)
        return [*described, score_table(seen, step), gr.Dropdown(frames), gr.Dropdown(frames)]

    @in_turn
    def draw_token(id, step, *chosen) -> list:
        seen = shown(id, step)
        return describe_token(seen, step, *chosen) if seen else [gr.skip()] * 2

    @in_turn
    def draw_map(id, step, *chosen):
        seen = shown(id, step)
        return show_map(seen, step, *chosen) if seen else gr.skip()

    def pick(id, step, layer, head, granularity, budget, event: gr.EventData) -> list:
        at = picked_place(event)
        return [*draw_token(id, step, layer, head, at, granularity, budget), at]

    @in_turn
    def pick_head(id, step, at, granularity, budget, of, query, key, event: gr.EventData) -> list:
        seen, layer, head = shown(id, step), int(event.layer), int(event.head)
        if seen is None:
            return [gr.skip()] * (len(of_head) + 2)
        return [*describe(seen, step, layer, head, at, granularity, budget, of, query, key), layer, head]

    others = [each for each in token if each is not source.place]
    sheet.select(pick, others, [sheet, notes, source.place], trigger_mode="multiple", **QUIET)
    but_head = [each for each in inputs if each not in (source.layer, source.head)]
    heads.select(pick_head, but_head, [*of_head, source.layer, source.head], trigger_mode="multiple", **QUIET)
    gr.on([granularity.input, budget.input], draw_token, token, [sheet, notes], **LATEST)
    gr.on([of.input, query_frame.input, key_frame.input], draw_map, part, whole, **LATEST)
    return View("Attention", tab, inputs, outputs, draw)


def describe(seen: Inspection, step: int, layer: int, head: int, at: tuple, granularity: str, budget: float, *of_map):
    """What depends on the head that is picked."""
    return [
        show_heads(seen, step, layer, head),
        *describe_token(seen, step, layer, head, at, granularity, budget),
        show_map(seen, step, layer, head, *of_map),
    ]


def show_heads(seen: Inspection, step: int, layer: int, head: int) -> str:
    """Every head as its attention from frame to frame, with the kind of it."""
    kinds = [
        [
            f"{maps.head_kind(spatial, temporal)} ({spatial:.1f}× own frame, {temporal:.1f}× own place)"
            for spatial, temporal, _ in heads
        ]
        for heads in views.scores(seen, step)
    ]
    pictures = [[figures.map_picture(each) for each in heads] for heads in views.frame_maps(seen, step).numpy()]
    label = "Layer and head; pictures: attention from frame to frame"
    bar = looking.colour_bar("little attention", "much, from a frame (row) to a frame (column)", False)
    return looking.head_grid(pictures, (layer, head), label, kinds) + bar


def describe_token(
    seen: Inspection, step: int, layer: int, head: int, place: tuple, granularity: str, budget: float
) -> list:
    """Dense, with reuse, the difference and the keys that are computed, in step; and what that is in numbers."""
    at = at_grid(seen, place)
    view = views.token_view(seen, step, layer, head, at, ReuseConfig(granularity, budget=budget))
    high, change = float(view.dense.max()), view.reuse - view.dense
    most = float(abs(change).max()) or 1e-9
    panels = [
        ("Dense", figures.strip(seen.frames, view.dense, high, False), view.dense, "%"),
        ("With reuse", figures.strip(seen.frames, view.reuse, high, False), view.reuse, "%"),
        ("Difference", figures.strip(seen.frames, change, most, True), change, "%"),
        ("Keys computed", figures.strip(seen.frames, 1 / view.sharing, 1.0, False), view.sharing, ""),
    ]
    t, y, x = (number + 1 for number in at)
    return [
        looking.sheet(
            panels, seen.grid.shape, at, "Attention of the picked token, measured here",
            "Click a token: the frames show how much of its attention every other one gets.",
        )
        + looking.colour_bar("no attention, or a key that many share", f"{high:.2%}, or a key that is computed", False),
        markup.facts(
            [
                f"Token ({t}, {y}, {x}) of time, height, width gives {view.own:.0%} of its attention to its own frame "
                "(measured here).",
                f"Reuse computes {view.computed:.0%} of the keys for it and moves {view.moved:.1%} of its attention "
                f"elsewhere, at most {most:.2%} at one token (measured here).",
            ]
        ),
    ]  # fmt: skip


def show_map(seen: Inspection, step: int, layer: int, head: int, of: str, query_frame, key_frame) -> str:
    """The map of a head, or the mean of the maps of all, averaged over cells, of many queries over some."""
    query, key = (None if frame == ALL else min(int(frame), seen.grid.frames - 1) for frame in (query_frame, key_frame))
    values = views.attention_map(seen, step, layer, None if of == MEAN else head, query, key)
    shares = views.frame_maps(seen, step)[layer]
    shares = shares.mean(0) if of == MEAN else shares[head]
    name = "mean of heads" if of == MEAN else f"head {head}"
    tokens = seen.grid.video_tokens // seen.grid.frames
    many = tokens * (seen.grid.frames if query is None else 1) > views.CELLS * views.QUERIES
    of_many = f", from {views.QUERIES} queries a row" if many else ""
    caption = f"Who attends to whom: layer {layer}, {name} (measured here{of_many})"
    return looking.attention_map(figures.map_picture(values), shares.numpy(), tokens, query, key, caption)


def score_table(seen: Inspection, step: int) -> str:
    """What kind of attention every head of the step has."""
    rows = []
    for layer, heads in enumerate(views.scores(seen, step)):
        for head, (spatial, temporal, entropy) in enumerate(heads):
            kind = maps.head_kind(spatial, temporal)
            rows.append([f"layer {layer}, head {head}", f"{spatial:.1f}×", f"{temporal:.1f}×", kind, f"{entropy:.2f}"])
    columns = ["head", "own frame", "own place", "dominant", "entropy"]
    caption = "Attention to a token's own frame and own place, over uniform attention (measured here)"
    return markup.table(caption, columns, rows)
