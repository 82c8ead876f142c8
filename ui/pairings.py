"""Wrong pairings (Fig. 5 of the paper): channels of each RoPE group reused along each axis, as a table of clips."""

from collections.abc import Iterator

import gradio as gr
import numpy as np

from timeripple.attention.grid import AXES
from timeripple.clips.generate import Request
from timeripple.clips.methods import parse_method
from timeripple.inspection.laboratory import pairing_method
from timeripple.pond.pipeline import PondPipeline
from ui import markup
from ui.compare_tab import PRESETS
from ui.form import POLL_SECONDS, QUEUED, QUIET, failure, sizes_of
from ui.gpu import Works
from ui.runs import Run, Runs

STEPS = 20
ABOUT = (
    "Every second token takes one group of channels from its neighbour along one axis, alike or not; the first step is "
    "dense. The paper finds a group's own axis best; where another is better here, the model has learnt to repeat "
    "itself along that one, as the table of correlations shows."
)


def pairings(tab: gr.Tab, pipeline, works: Works, runs: Runs, run_id: gr.BrowserState) -> None:
    """Adds the fold to what is being built; run_id remembers the run."""
    is_pond = isinstance(pipeline, PondPipeline)
    with gr.Accordion("Reuse along the wrong axis (Fig. 5 of the paper)", open=False, visible=is_pond):
        gr.HTML(markup.facts([ABOUT]))
        with gr.Row(elem_classes="tr-tight"):
            pair = gr.Button("Generate all nine pairings", variant="primary")
            cancel = gr.Button("Cancel", variant="stop")
        note, table = gr.HTML(), gr.HTML()

    def follow(id: str | None) -> Iterator[list]:
        """How far the pairings are; ends with the table."""
        run = runs.find(id)
        while run and not runs.wait(run, POLL_SECONDS):
            done = sum(event.step for event in run.progress.values())
            yield [markup.facts([f"{done} of {(1 + len(AXES) ** 2) * STEPS} steps."]), gr.skip()]
        if run and run.state == "failed":
            raise failure(run.error)
        yield ["", show(run) if run and run.state == "done" else ""]

    pair.click(lambda: submit(pipeline, works, runs).id, None, run_id, **QUEUED).success(
        follow, run_id, [note, table], **QUEUED
    )
    tab.select(follow, run_id, [note, table], **QUEUED)
    cancel.click(runs.cancel, run_id, None, **QUIET)


def submit(pipeline, works: Works, runs: Runs) -> Run:
    """Queues a dense clip and one for every pairing of a group and an axis."""
    frames, height, width = sizes_of(pipeline)["Tiny"]
    request = Request(PRESETS["Ball at sunset"], num_frames=frames, height=height, width=width, steps=STEPS)
    pairs = [(group, axis) for group in AXES for axis in AXES]
    methods = [parse_method("dense"), *(pairing_method(pipeline.transformer, *pair) for pair in pairs)]

    def work(run: Run) -> list:
        result = works.compare(run, request, methods)
        run.previews.clear()
        made = {
            each.method.label: (each, quality) for each, quality in zip(result.generations, result.quality, strict=True)
        }
        levels = []
        for (group, axis), method in zip(pairs, methods[1:], strict=True):
            if method.label in made:
                clip, quality = made[method.label]
                np.save(run.folder / f"{group}-{axis}.npy", clip.frames)
                levels.append([group, axis, quality.scores["psnr"]])
        return levels

    return runs.submit(work, ("pairings",))


def show(run: Run) -> str:
    """Groups as rows, axes as columns, in each cell the clip and its PSNR against dense."""
    cells = {
        (group, axis): (
            markup.moving(np.load(run.folder / f"{group}-{axis}.npy")),
            "PSNR could not be measured" if psnr is None else f"{psnr:.1f} dB",
            group == axis,
        )
        for group, axis, psnr in run.result
    }
    return markup.pairings(cells, AXES, "PSNR against dense, measured here")
