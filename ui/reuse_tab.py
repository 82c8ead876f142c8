"""Reuse laboratory: threshold, window, axes and granularity against saving and error, on captured q, k and v."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import gradio as gr
import torch

from timeripple.attention.config import METRICS, ReuseConfig
from timeripple.attention.grid import AXES
from timeripple.clips.compare import save
from timeripple.clips.generate import Request
from timeripple.clips.methods import parse_method
from timeripple.inspection import figures
from timeripple.inspection.laboratory import Specimen, Trial, pairing_method, residual_drift
from timeripple.inspection.probe import Inspection
from timeripple.pond.pipeline import PondPipeline
from ui import markup
from ui.compare_tab import PRESETS
from ui.form import POLL_SECONDS, QUEUED, QUIET, SIZES, failure, one_sentence
from ui.gpu import Works
from ui.method_form import AXES as AXIS_CHOICES
from ui.runs import Run, Runs
from ui.source import inspected, looked_inside, wire_source

SAVING, THETA = "Saving", "Threshold θ"
SHOWN = {"Queries": 0, "Keys": 1}
PAIRED_STEPS = 20
SPECIMENS = 64  # heads whose measurements are kept, about 3 MB each
MEANING = {
    "channel": "share of a token's channels that are reused",
    "token": "1 − 1/n in a group of n tokens that share a row",
    "tile": "share of keys that are reused for the token, and of queries that reuse the token",
}


def reuse_tab(
    app: gr.Blocks, tab: gr.Tab, pipeline, works: Works, runs: Runs, run_id: gr.BrowserState, paired_id: gr.BrowserState
) -> None:
    """Adds the content of the tab to `app`, which is being built; run_id remembers the run that is looked into,
    paired_id the run of wrong pairings."""
    config = pipeline.transformer.config
    specimen_of = lru_cache(SPECIMENS)(take_specimen)
    drawn = gr.State(None)  # what was picked when the numbers were drawn, for the slower pictures

    with looked_inside(pipeline, runs) as (form, stage):
        with gr.Row(elem_classes="tr-tight"):
            step = gr.Dropdown([], label="Denoising step", filterable=False, min_width=120)
            layers = list(range(config.num_layers))
            layer = gr.Dropdown(layers, value=0, label="Layer", filterable=False, min_width=90)
            heads = list(range(config.num_attention_heads))
            head = gr.Dropdown(heads, value=0, label="Head", filterable=False, min_width=90)
            granularity = gr.Radio(["channel", "token", "tile"], value="token", label="Granularity", min_width=240)
        with gr.Row(elem_classes="tr-tight"):
            by = gr.Radio([SAVING, THETA], value=SAVING, label="How much", min_width=190)
            saving = gr.Slider(0.05, 0.95, value=0.7, step=0.05, label="Saving", min_width=160)
            theta = gr.Number(0.3, label="θ", minimum=0, step=0.05, visible=False, min_width=160)
            window = gr.Dropdown([2, 4, 8], value=2, label="Window (channel)", filterable=False, min_width=110)
            axes = gr.CheckboxGroup(AXIS_CHOICES, value=list(AXES), label="Along", min_width=230)
            metric = gr.Radio(list(METRICS), value="logit", label="Metric (token)", min_width=150)
        cards = gr.HTML()
        side = gr.Radio(list(SHOWN), value="Queries", label="Reused, on the frames")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                sheet = gr.HTML()
            with gr.Column(scale=2, min_width=320):
                curve = gr.Plot(show_label=False, elem_classes="tr-plot")
                bars = gr.Plot(show_label=False, elem_classes="tr-plot")
        with gr.Accordion("Why feedback works: how slowly the error of reuse drifts", open=False):
            drift_button = gr.Button("Measure the drift of all layers")
            with gr.Row(visible=False) as drift:
                drift_map = gr.Plot(show_label=False, min_width=320, elem_classes="tr-plot")
                drift_curve = gr.Plot(show_label=False, min_width=320, elem_classes="tr-plot")
            drift_note = gr.HTML()
    is_pond = isinstance(pipeline, PondPipeline)
    with gr.Accordion("Reuse along the wrong axis (Fig. 5 of the paper)", open=False, visible=is_pond):
        gr.HTML(markup.facts(["Every second token takes one group of channels from its neighbour along one axis."]))
        with gr.Row(elem_classes="tr-tight"):
            group = gr.Radio(list(AXES), value="t", label="Channels of group")
            pair = gr.Button("Generate all pairings", variant="primary")
            stop = gr.Button("Stop", variant="stop")
        pair_note = gr.HTML()
        video = gr.Video(
            label="Dense and the three pairings", visible=False, autoplay=True, loop=True, interactive=False,
            buttons=["download"],
        )  # fmt: skip

    place = [run_id, step, layer, head]
    settings = [granularity, by, saving, theta, window, axes, metric]
    picked = [*place, *settings, side]

    def try_picked(id, step, layer, head, *settings) -> tuple[Inspection, Specimen, Trial] | None:
        """None while there is no run. Raises ConfigError, one sentence."""
        seen = inspected(runs, id)
        if seen is None:
            return None
        config = read_config(*settings)
        specimen = specimen_of(seen, step, layer, head, replace(config, budget=None, theta=0))
        return seen, specimen, specimen.try_reuse(theta=config.theta, saving=config.budget)

    def draw(*picked) -> list:
        *picked, side = picked
        with one_sentence():
            tried = try_picked(*picked)
        return [*describe(*tried, picked[5], side), picked] if tried else [gr.skip()] * 3

    def draw_curve(picked):
        tried = try_picked(*picked) if picked else None
        return show_curve(*tried[1:]) if tried else gr.skip()

    def draw_bars(picked):
        tried = try_picked(*picked) if picked else None
        return show_alternatives(*tried[1:]) if tried else gr.skip()

    def draw_drift(id, step, *settings):
        seen = inspected(runs, id)
        if seen is None:
            raise gr.Error("There is no run yet; look inside one first.", print_exception=False)
        with one_sentence():
            config = read_config(*settings)
        later = [kept for kept in seen.kept if kept >= step]
        if len(later) < 2:
            sentence = f"Step {step + 1} is the last one that is kept; pick an earlier one to see how its error drifts."
            raise gr.Error(sentence, print_exception=False)
        layers = range(len(seen.layers))
        drift = [residual_drift([seen.qkv(s, layer) for s in later], seen.grid, config) for layer in layers]
        return show_drift(later, torch.stack(drift))

    def follow(id: str | None) -> Iterator[list]:
        """How far the pairings are; ends with the video."""
        run = runs.find(id)
        while run and not runs.wait(run, POLL_SECONDS):
            done = sum(event.step for event in run.progress.values())
            yield [markup.facts([f"{done} of {4 * PAIRED_STEPS} steps."]), gr.skip()]
        if run and run.state == "failed":
            raise failure(run.error)
        yield show_pairings(run) if run and run.state == "done" else [markup.facts([]), gr.Video(visible=False)]

    shown = [cards, sheet, drawn]
    wire_source(app, tab, form, pipeline, works, runs, run_id, stage, step, draw, picked, shown)
    changed = [control.input for control in (step, layer, head, *settings)]
    gr.on(changed, draw, picked, shown, trigger_mode="always_last", **QUEUED)
    side.input(draw, picked, shown, **QUIET)
    by.input(lambda chosen: (gr.Slider(visible=chosen == SAVING), gr.Number(visible=chosen == THETA)), by,
             [saving, theta], **QUIET)  # fmt: skip
    # The slower pictures follow once the numbers are there.
    cards.change(draw_bars, drawn, bars, **QUIET).then(draw_curve, drawn, curve, **QUIET)
    drifts = [drift, drift_map, drift_curve, drift_note]
    drift_button.click(draw_drift, [run_id, step, *settings], drifts, **QUEUED | {"show_progress": "full"})
    pair.click(lambda group: submit_pairings(pipeline, works, runs, group).id, group, paired_id, **QUEUED).success(
        follow, paired_id, [pair_note, video], **QUEUED
    )
    tab.select(follow, paired_id, [pair_note, video], **QUEUED)
    stop.click(runs.cancel, paired_id, None, **QUIET)


def read_config(granularity, by, saving, theta, window, axes, metric) -> ReuseConfig:
    """What the controls ask for. Raises ConfigError, one sentence."""
    amount = {"budget": saving} if by == SAVING else {"theta": float(theta or 0)}
    axes = [axis for axis in AXES if axis in axes]
    return ReuseConfig(granularity, axes=axes, window=window, metric=metric, **amount)


def take_specimen(seen: Inspection, step: int, layer: int, head: int, config: ReuseConfig) -> Specimen:
    """One head. What it is asked may differ, so the config says how to reuse, not how much."""
    return Specimen(*seen.qkv(step, layer, slice(head, head + 1)), seen.grid, config)


def describe(seen: Inspection, specimen: Specimen, trial: Trial, by: str, side: str) -> list[str]:
    """The numbers of one head, and where it reuses."""
    numbers = [
        ("Attention saved", f"{trial.saving.item():.1%}", trial.kind, "of this head, in this call"),
        ("Output error", f"{trial.error.item():.3f}", "measured here", "|output − dense| over |dense|"),
        ("Threshold θ", f"{trial.theta:.4g}", "measured here", "that this saving takes" if by == SAVING else "as set"),
    ]
    shares = specimen.reused(trial.theta)[SHOWN[side], 0].numpy()
    pictures = figures.frames_under(seen.frames, shares, 1.0, signed=False, picked=None)
    caption = f"{side} reused, from dark (0) to yellow (1): {MEANING[specimen.config.granularity]} ({trial.kind})"
    return [markup.cards(numbers), markup.frame_gallery(pictures, caption)]


def show_curve(specimen: Specimen, trial: Trial):
    """Error over saving of the head, with the present setting."""
    points = [(t.saving.item(), t.error.item(), t.theta) for t in specimen.trials]
    present = (trial.saving.item(), trial.error.item(), trial.theta)
    return figures.error_over_saving(
        points, present, f"Output error over saving<br><sup>error measured here, saving {trial.kind}</sup>"
    )


def show_alternatives(specimen: Specimen, trial: Trial):
    """Reuse, skipping and zeroing at the saving of the present setting (Fig. 7)."""
    tried = specimen.alternatives(trial.saving.mean().item())
    bars = [(f"{t.name} ({t.kind})", t.error.item()) for t in tried]
    return figures.error_bars(bars, f"Output error at {trial.saving.item():.0%} saved<br><sup>measured here</sup>")


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
        figures.drift_heatmap(heads, f"Change of the error, step {first} to {second}<br><sup>measured here</sup>"),
        figures.drift_curve(
            [step + 1 for step in steps], layers, f"Since step {first}, mean of heads<br><sup>measured here</sup>"
        ),
        markup.facts([note]),
    ]


def submit_pairings(pipeline, works: Works, runs: Runs, group: str) -> Run:
    """Queues a dense clip and one for every axis along which the channels of the group are reused."""
    frames, height, width = SIZES["Tiny"]
    request = Request(PRESETS["Ball at sunset"], num_frames=frames, height=height, width=width, steps=PAIRED_STEPS)
    methods = [parse_method("dense"), *(pairing_method(pipeline.transformer, group, axis) for axis in AXES)]

    def work(run: Run) -> list[float | None]:
        result = works.compare(run, request, methods)
        save(result, run.folder, pipeline)
        return [quality.scores["psnr"] for quality in result.quality[1:]]

    return runs.submit(work, (group,))


def show_pairings(run: Run) -> list:
    group = run.settings[0]
    lines = [
        f"Channels of group {group} reused along {axis}{' (their own axis)' if axis == group else ''}: "
        + ("PSNR could not be measured." if psnr is None else f"{psnr:.1f} dB against dense (measured here).")
        for axis, psnr in zip(AXES, run.result, strict=True)
    ]
    return [markup.facts(lines), gr.Video(run.folder / "side_by_side.mp4", visible=True)]
