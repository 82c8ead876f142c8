"""Attention: what a token attends to, densely and with reuse, which keys are computed for it, and the whole map."""

import gradio as gr
import torch

from timeripple.attention.config import ReuseConfig
from timeripple.inspection import attention_maps as maps
from timeripple.inspection import figures
from timeripple.inspection.probe import Inspection
from ui import markup
from ui.form import QUIET
from ui.gpu import Works
from ui.runs import Runs
from ui.source import inspected, looked_inside, wire_source

DENSE, REUSE, DIFFERENCE, KEYS = "Dense", "With reuse", "Difference", "Keys computed"
MEAN = "Mean of heads"
ALL = "All frames"
PICK_TOKEN = """
const move = {ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0],
  PageUp: [-1, 0, 0], PageDown: [1, 0, 0]};
const sizes = sheet => ['t', 'y', 'x'].map(axis => Number(sheet.dataset[axis]));
const picked = () => JSON.parse(element.querySelector('.tr-sheet').dataset.picked);
let wanted = null, asked = false;  // keys come faster than answers: one question at a time, then the latest
const ask = () => {
  asked = String(wanted) !== String(picked());
  if (asked) trigger('select', {t: wanted[0], y: wanted[1], x: wanted[2]});
  else wanted = null;
};
watch('value', () => { if (wanted) ask(); });
element.addEventListener('click', event => {
  const frame = event.target.closest('[data-frame]'), sheet = event.target.closest('.tr-sheet');
  if (!frame) return;
  const [, height, width] = sizes(sheet), box = frame.getBoundingClientRect();
  const place = (at, from, size, count) => Math.min(count - 1, Math.max(0, Math.floor((at - from) / size * count)));
  sheet.focus();
  wanted = [Number(frame.dataset.frame), place(event.clientY, box.top, box.height, height),
    place(event.clientX, box.left, box.width, width)];
  ask();
});
element.addEventListener('keydown', event => {
  const sheet = event.target.closest('.tr-sheet'), by = move[event.key];
  if (!sheet || !by) return;
  event.preventDefault();
  const last = sizes(sheet);
  wanted = (wanted || picked()).map((at, axis) => Math.min(last[axis] - 1, Math.max(0, at + by[axis])));
  if (!asked) ask();
});"""
"""A click on a frame, or an arrow key (page keys: another frame), tells Python the token."""


def attention_tab(app: gr.Blocks, tab: gr.Tab, pipeline, works: Works, runs: Runs, run_id: gr.BrowserState) -> None:
    """Adds the content of the tab to `app`, which is being built; run_id remembers the run that is looked into."""
    config = pipeline.transformer.config
    place = gr.State((0, 0, 0))

    with looked_inside(pipeline, runs) as (form, stage):
        with gr.Row(elem_classes="tr-tight"):
            step = gr.Dropdown([], label="Denoising step", filterable=False, min_width=120)
            layers = list(range(config.num_layers))
            layer = gr.Dropdown(layers, value=0, label="Layer", filterable=False, min_width=90)
            heads = [(MEAN, -1), *((str(head), head) for head in range(config.num_attention_heads))]
            head = gr.Dropdown(heads, value=-1, label="Head", filterable=False, min_width=130)
            granularity = gr.Radio(["token", "tile"], value="token", label="Reuse", min_width=150)
            budget = gr.Slider(0.1, 0.85, value=0.7, step=0.05, label="Saving of this call", min_width=160)
        mode = gr.Radio([DENSE, REUSE, DIFFERENCE, KEYS], value=DENSE, label="Shown: attention of the picked token")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                sheet = gr.HTML(js_on_load=PICK_TOKEN, elem_id="attention-sheet")
                notes = gr.HTML()
            with gr.Column(scale=2, min_width=320):
                with gr.Row(elem_classes="tr-tight"):
                    query_frame = gr.Dropdown([ALL], value=ALL, label="Queries of", filterable=False, min_width=120)
                    key_frame = gr.Dropdown([ALL], value=ALL, label="Keys of", filterable=False, min_width=120)
                whole = gr.Plot(show_label=False, elem_classes="tr-plot")
        scores = gr.HTML()

    picked = [run_id, step, layer, head, place, granularity, budget, mode]
    part = [run_id, step, layer, head, query_frame, key_frame]
    token_view = [sheet, notes]

    def draw_token(id, *chosen) -> list:
        seen = inspected(runs, id)
        return describe_token(seen, *chosen) if seen else [gr.skip()] * 2

    def draw_map(id, *chosen):
        seen = inspected(runs, id)
        return show_map(seen, *chosen) if seen else gr.skip()

    def draw(id, step, layer, head, place, *others) -> list:
        """Everything, with the picked token brought inside the grid; nothing while there is no run."""
        seen = inspected(runs, id)
        if seen is None:
            return [gr.skip()] * 7
        place = tuple(min(at, size - 1) for at, size in zip(place, seen.grid.shape, strict=True))
        frames = gr.Dropdown([ALL, *((f"Frame {t + 1}", t) for t in range(seen.grid.frames))], value=ALL)
        view = draw_token(id, step, layer, head, place, *others)
        return [*view, show_map(seen, step, layer, head, ALL, ALL), score_table(seen, step), place, frames, frames]

    def pick(id, step, layer, head, granularity, budget, mode, event: gr.EventData) -> list:
        place = int(event.t), int(event.y), int(event.x)
        return [*draw_token(id, step, layer, head, place, granularity, budget, mode), place]

    everything = [*token_view, whole, scores, place, query_frame, key_frame]
    wire_source(app, tab, form, pipeline, works, runs, run_id, stage, step, draw, picked, everything)
    others = [control for control in picked if control is not place]
    sheet.select(pick, others, [*token_view, place], trigger_mode="multiple", **QUIET)
    for control in (granularity, budget, mode):
        control.input(draw_token, picked, token_view, trigger_mode="always_last", **QUIET)
    for control in (layer, head):
        control.input(draw_token, picked, token_view, **QUIET).then(draw_map, part, whole, **QUIET)
    for control in (query_frame, key_frame):
        control.input(draw_map, part, whole, **QUIET)
    step.input(draw, picked, everything, **QUIET)


def describe_token(
    seen: Inspection, step: int, layer: int, head: int, place: tuple, granularity: str, budget: float, mode: str
) -> list:
    """The frames with what the picked token attends to, and what that is in numbers."""
    grid = seen.grid
    t, y, x = (min(int(at), size - 1) for at, size in zip(place, grid.shape, strict=True))
    token = grid.text_before + (t * grid.height + y) * grid.width + x
    query, key, _ = seen.qkv(step, layer) if head < 0 else seen.qkv(step, layer, slice(head, head + 1))
    dense = maps.attention_row(query, key, token)
    reused, sharing = maps.reused_row(
        query, key, token, maps.plan_at(query, key, grid, ReuseConfig(granularity, budget=budget))
    )
    change = 0.5 * (reused - dense).abs().sum(-1).mean().item()
    computed = (sharing[:, grid.video] == 1).float().mean().item()
    values = {DENSE: dense, REUSE: reused, DIFFERENCE: reused - dense, KEYS: sharing.reciprocal()}[mode].mean(0)
    planes = grid.unflatten(values[grid.video, None])[..., 0].numpy()
    signed = mode == DIFFERENCE
    high = float(abs(planes).max()) if mode != KEYS else 1.0
    pictures = figures.frames_under(seen.frames, planes, high, signed, (t, y, x))
    legend = {
        DENSE: f"From dark (0) to yellow ({high:.2%} of the attention).",
        REUSE: f"From dark (0) to yellow ({high:.2%} of the attention).",
        DIFFERENCE: f"From blue (−{high:.2%}) to red (+{high:.2%}): with reuse minus dense.",
        KEYS: "Yellow keys are computed; the darker, the more keys share the one that stands for them.",
    }[mode]
    own = grid.unflatten(dense.mean(0)[grid.video, None])[t].sum().item()
    return [
        markup.frame_sheet(pictures, grid.shape, (t, y, x), f"{mode}: attention of the picked token, measured here"),
        markup.facts(
            [
                legend,
                f"Token ({t + 1}, {y + 1}, {x + 1}) of t, y, x gives {own:.0%} of its attention to its own frame "
                "(measured here).",
                f"Reuse computes {computed:.0%} of the keys for it and moves {change:.1%} of its attention elsewhere "
                "(measured here).",
            ]
        ),
    ]


def show_map(seen: Inspection, step: int, layer: int, head: int, query_frame, key_frame):
    """The map of a head, or the mean of the maps of all, averaged over cells."""
    frames = [None if frame == ALL else int(frame) for frame in (query_frame, key_frame)]
    query, key, _ = seen.qkv(step, layer) if head < 0 else seen.qkv(step, layer, slice(head, head + 1))
    averaged = [maps.averaged_map(q, k, seen.grid, 256, *frames) for q, k in zip(query, key, strict=True)]
    cell_map = torch.stack([each[0] for each in averaged]).mean(0)
    name = MEAN.lower() if head < 0 else f"head {head}"
    per_frame = [
        None if frame is not None else side // seen.grid.frames
        for side, frame in zip(cell_map.shape, frames, strict=True)
    ]
    return figures.attention_map(cell_map.numpy(), *per_frame, f"Layer {layer}, {name} (measured here)")


def score_table(seen: Inspection, step: int) -> str:
    """What kind of attention every head of the step has."""
    rows = []
    for layer in range(len(seen.layers)):
        scores = maps.head_scores(*seen.qkv(step, layer)[:2], seen.grid)
        for head in range(len(scores["entropy"])):
            spatial, temporal, entropy = (scores[name][head].item() for name in ("spatial", "temporal", "entropy"))
            kind = maps.head_kind(spatial, temporal)
            rows.append([f"layer {layer}, head {head}", f"{spatial:.1f}×", f"{temporal:.1f}×", kind, f"{entropy:.2f}"])
    columns = ["head", "own frame", "own place", "dominant", "entropy"]
    caption = "Attention to a token's own frame and own place, over uniform attention (measured here)"
    return markup.table(caption, columns, rows)
