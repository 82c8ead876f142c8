"""Reuse laboratory: threshold, window, axes and granularity against saving and error, on captured q, k and v."""

from dataclasses import replace
from functools import lru_cache

import gradio as gr
import torch

from timeripple.attention.config import METRICS, ReuseConfig
from timeripple.attention.grid import AXES
from timeripple.inspection import figures
from timeripple.inspection.laboratory import Specimen, Trial, residual_drift
from timeripple.inspection.probe import Inspection
from ui import looking, markup
from ui.correlation_tab import at_grid, picked_place
from ui.form import QUEUED, QUIET, failure, in_turn, one_sentence
from ui.glossary import explained
from ui.gpu import Works
from ui.method_form import AXES as AXIS_CHOICES
from ui.pairings import pairings
from ui.runs import Runs
from ui.source import Source, View, inspected

SAVING, THETA = "Saving", "Threshold θ"
SHOWN = {"Queries": 0, "Keys": 1}
SPECIMENS = 64  # heads whose measurements are kept, about 3 MB each
MEANING = {
    "channel": "share of a token's channels that are reused",
    "token": "1 − 1/n in a group of n tokens that share a row",
    "tile": "share of keys that are reused for the token, and of queries that reuse the token",
}
WHAT = {
    "reuse": "what neighbours share is computed once, and nothing is left out",
    "skip tokens": "the keys most like their neighbours are left out of the softmax, as the paper compares",
    "skip windows": "the windows of keys that matter least are left out, as sparse attention does",
    "zero": "the smallest entries of Q and K become 0, so their products need not be computed",
}
WHY = (
    "Zeroing may look better here than reuse and does not contradict the paper: what it saves are single entries, "
    "which no kernel leaves out (theoretical), while token and tile reuse save whole rows (realised) and so give more "
    "away at the same share. Entry against entry, choose the granularity channel: that is the paper's comparison."
)


def reuse_tab(tab: gr.Tab, pipeline, works: Works, runs: Runs, source: Source, paired_id: gr.BrowserState) -> View:
    """Adds the content of the tab to what is being built; paired_id remembers the run of wrong pairings."""
    specimen_of = lru_cache(SPECIMENS)(take_specimen)

    with gr.Row(elem_classes="tr-tight"):
        granularity = gr.Radio(["channel", "token", "tile"], value="token", label="Granularity", min_width=230)
        by = gr.Radio([SAVING, THETA], value=SAVING, label="How much", min_width=180)
        saving = gr.Slider(0.05, 0.95, value=0.7, step=0.05, label="Saving", min_width=160)
        theta = gr.Number(0.3, label="θ", minimum=0, step=0.05, visible=False, min_width=120)
        window = gr.Dropdown([2, 4, 8], value=2, label="Window", filterable=False, min_width=90, visible=False)
        axes = gr.CheckboxGroup(AXIS_CHOICES, value=list(AXES), label="Along", min_width=230)
        metric = gr.Radio(list(METRICS), value="logit", label="Metric", min_width=150)
    gr.HTML(explained("granularity", "θ", "metric", "realised", "theoretical", "drift"))
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            curve = gr.HTML(js_on_load=looking.CURVE_JS, elem_id="laboratory-curve")
            cards = gr.HTML()
        with gr.Column(scale=2, min_width=300):
            alternatives = gr.HTML()
    side = gr.Radio(list(SHOWN), value="Queries", label="Reused, on the frames")
    sheet = gr.HTML(js_on_load=looking.SHEET_JS, elem_id="laboratory-sheet")
    with gr.Accordion("Why feedback works: how slowly the error of reuse drifts", open=False):
        drift_button = gr.Button("Measure the drift of all layers")
        with gr.Row(visible=False) as drift:
            drift_map = gr.Plot(show_label=False, min_width=300, elem_classes="tr-plot")
            drift_curve = gr.Plot(show_label=False, min_width=300, elem_classes="tr-plot")
        drift_note = gr.HTML()
    pairings(tab, pipeline, works, runs, paired_id)

    settings = [granularity, by, saving, theta, window, axes, metric]
    inputs = [source.run_id, source.step, source.layer, source.head, *settings, side, source.place]
    outputs = [curve, cards, alternatives, sheet]

    def try_picked(id, step, layer, head, *settings) -> tuple[Inspection, Specimen, Trial] | None:
        """None while there is no run. Raises ConfigError, one sentence."""
        seen = inspected(runs, id)
        if seen is None or step not in seen.kept:
            return None
        config = read_config(*settings)
        specimen = specimen_of(seen, step, layer, head, replace(config, budget=None, theta=0))
        return seen, specimen, specimen.try_reuse(theta=config.theta, saving=config.budget)

    @in_turn
    def draw(*picked) -> list:
        *picked, side, place = picked
        with one_sentence():
            tried = try_picked(*picked)
        return describe(*tried, picked[5], side, place) if tried else [gr.skip()] * len(outputs)

    @in_turn
    def drag(id, step, layer, head, granularity, window, axes, metric, side, place, event: gr.EventData) -> list:
        """The star was dragged: what changes with it at once, and the slider."""
        saving = float(event.saving)
        picked = id, step, layer, head, granularity, SAVING, saving, None, window, axes, metric
        with one_sentence():
            tried = try_picked(*picked)
        if not tried:
            return [gr.skip()] * 5
        curve, cards, _, sheet = describe(*tried, SAVING, side, place, alternatives=False)
        return [
            curve,
            cards,
            sheet,
            gr.Radio(value=SAVING),
            gr.Slider(value=min(0.95, max(0.05, saving)), visible=True),
        ]

    @in_turn
    def draw_alternatives(*picked):
        tried = try_picked(*picked)
        return show_alternatives(*tried[1:]) if tried else gr.skip()

    @in_turn
    def draw_drift(id, step, *settings):
        seen = inspected(runs, id)
        if seen is None:
            raise failure("There is no run yet; look inside one first.")
        with one_sentence():
            config = read_config(*settings)
        later = [kept for kept in seen.kept if kept >= step]
        if len(later) < 2:
            sentence = f"Step {step + 1} is the last one that is kept; pick an earlier one, or look into a new prompt."
            raise failure(sentence)
        layers = range(len(seen.layers))
        drift = [residual_drift([seen.qkv(s, layer) for s in later], seen.grid, config) for layer in layers]
        return show_drift(later, torch.stack(drift))

    def apply(granularity: str, by: str) -> list:
        """Controls that do not apply are not there."""
        return [
            gr.Slider(visible=by == SAVING),
            gr.Number(visible=by == THETA),
            gr.Dropdown(visible=granularity == "channel"),
            gr.Radio(visible=granularity == "token"),
            gr.CheckboxGroup(visible=granularity != "tile"),
        ]

    gr.on([granularity.change, by.change], apply, [granularity, by], [saving, theta, window, metric, axes], **QUIET)
    gr.on([control.input for control in (*settings, side)], draw, inputs, outputs, trigger_mode="always_last", **QUEUED)
    moved, told = [curve, cards, sheet, by, saving], [each for each in inputs if each not in (by, saving, theta)]
    curve.select(drag, told, moved, trigger_mode="multiple", **QUIET).then(
        draw_alternatives, inputs[:-2], alternatives, **QUIET
    )
    sheet.select(picked_place, None, source.place, trigger_mode="multiple", **QUIET)
    drifts = [drift, drift_map, drift_curve, drift_note]
    drift_button.click(
        draw_drift, [source.run_id, source.step, *settings], drifts, **QUEUED | {"show_progress": "full"}
    )
    return View("Reuse laboratory", tab, inputs, outputs, draw)


def read_config(granularity, by, saving, theta, window, axes, metric) -> ReuseConfig:
    """What the controls ask for. Raises ConfigError, one sentence."""
    amount = {"budget": saving} if by == SAVING else {"theta": float(theta or 0)}
    axes = tuple(axis for axis in AXES if axis in axes)
    return ReuseConfig(granularity, axes=axes, window=window, metric=metric, **amount)


def take_specimen(seen: Inspection, step: int, layer: int, head: int, config: ReuseConfig) -> Specimen:
    """One head. What it is asked may differ, so the config says how to reuse, not how much."""
    return Specimen(*seen.qkv(step, layer, slice(head, head + 1)), seen.grid, config)


def describe(
    seen: Inspection, specimen: Specimen, trial: Trial, by: str, side: str, place: tuple, alternatives: bool = True
) -> list[str]:
    """Curve, numbers, alternatives and frames of one head."""
    numbers = [
        ("Attention saved", f"{trial.saving.item():.1%}", trial.kind, "of this head, in this call"),
        ("Output error", f"{trial.error.item():.3f}", "measured here", "|output − dense| over |dense|"),
        ("Threshold θ", f"{trial.theta:.4g}", "measured here", "that this saving takes" if by == SAVING else "as set"),
    ]
    points = [(t.saving.item(), t.error.item()) for t in specimen.trials]
    shares = specimen.reused(trial.theta)[SHOWN[side], 0].numpy()
    strip = figures.strip(seen.frames, shares, 1.0, signed=False)
    clip = figures.clip_strip(seen.frames, seen.grid.frames)
    meaning = f"{side} reused: {MEANING[specimen.config.granularity]} ({trial.kind})"
    return [
        looking.curve(points, (trial.saving.item(), trial.error.item()), trial.kind),
        markup.cards(numbers),
        show_alternatives(specimen, trial) if alternatives else "",
        looking.sheet(
            [("The clip", clip, None, ""), (f"{side} reused", strip, shares, "%")], seen.grid.shape,
            at_grid(seen, place), meaning, meaning,
        ) + looking.colour_bar("computed", "reused", False),
    ]  # fmt: skip


def show_alternatives(specimen: Specimen, trial: Trial) -> str:
    """Reuse, skipping and zeroing at the saving of the present setting (Fig. 7), each with what it does."""
    tried = specimen.alternatives(trial.saving.mean().item())
    rows = [(t.name, t.kind, t.error.item(), WHAT[t.name]) for t in tried]
    remark = WHY if trial.kind == "realised" and "zero" in [t.name for t in tried] else ""
    return markup.alternatives(f"Output error at {trial.saving.item():.0%} saved, measured here", rows, remark)


def show_drift(steps: list[int], drift: torch.Tensor) -> list:
    """Change of the error since the first of the steps, [layers, steps, heads]: at the next step by layer and head, at
    all steps by layer, and what to make of it."""
    first, second = (step + 1 for step in steps[:2])
    names = [f"layer {layer}" for layer in range(len(drift))]
    heads = dict(zip(names, drift[:, 1].tolist(), strict=True))
    layers = dict(zip(names, drift.mean(-1).tolist(), strict=True))
    below = (drift[:, 1] < 1).float().mean().item()
    note = (
        f"Giving back the error of step {first} leaves less error wherever it has changed by less than its own size: "
        f"at step {second}, in {below:.0%} of the heads (measured here)."
    )
    return [
        gr.Row(visible=True),
        figures.drift_heatmap(heads, f"Change of the error, step {first} to {second}<br>measured here"),
        figures.drift_curve([step + 1 for step in steps], layers, f"Since step {first}, mean of heads, measured here"),
        markup.facts([note]),
    ]
