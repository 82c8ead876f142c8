"""What came of a comparison, as the page shows it: headline, player, numbers with their scales, plots and files."""

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import gradio as gr
import numpy as np
from PIL import Image

from timeripple.clips import figures
from timeripple.clips.compare import read_settings
from timeripple.clips.generate import Request
from timeripple.clips.methods import Method
from timeripple.clips.report import html_report
from timeripple.clips.video import read_mp4
from ui import markup, scales
from ui.method_form import title
from ui.player import played
from ui.runs import Run, Runs

EXAMPLES = Path(__file__).parents[1] / "assets" / "examples"
MEASURED = "measured here"
PREVIEW_SIDE = 256
"""Pixels up to which the previews of steps are kept."""


class Result:
    """A comparison that is done. rows: of its report; sides: the rows of methods A and B; reference: the row that the
    others are compared with."""

    def __init__(self, request: Request, methods: list[Method], report: dict):
        self.request, self.methods, self.report = request, methods, report
        self.rows: list[dict] = report["methods"]
        self.kind: str = report.get("kind", MEASURED)
        labels = [row["label"] for row in self.rows]
        self.sides = tuple(labels.index(method.label) for method in methods)
        self.reference = self.rows[0]

    @property
    def judged(self) -> list[tuple[str, dict]]:
        """Sides, "A" or "B", that are not the reference, with their rows."""
        return [(side, self.rows[index]) for side, index in zip("AB", self.sides, strict=True) if index]

    @property
    def names(self) -> list[str]:
        """What the page calls each row."""
        own = {index: title(method) for index, method in zip(self.sides, self.methods, strict=True)}
        return [own.get(index, "Dense") for index in range(len(self.rows))]


def present(result: Result, folder: Path, link: str) -> list:
    """Headline, player, numbers and steps: what is seen first."""
    return [
        headline(result, link),
        played(folder / "player.mp4", result.names, result.report, result.sides, result.kind),
        numbers(result),
        previews(folder, result.methods),
    ]


def details(result: Result, folder: Path) -> list:
    """Plots and files, for who wants to know more."""
    named = [(name, row) for name, row in zip(result.names, result.rows, strict=True)]
    reused = [(name, row) for name, row in named if row["saving"]]
    curves = [(f"{name} ({row['saving']['kind']})", row["saving"]["per_step"]) for name, row in reused]
    heads = [figures.saving_heatmap(row["saving_by_head"], name, row["saving"]["kind"]) for name, row in reused[-2:]]
    maps = [gr.Plot(figure, visible=True) for figure in heads] + [gr.Plot(visible=False)] * (2 - len(heads))
    clips = [f"{result.rows[index]['label']}.mp4" for index in result.sides]
    files = [folder / name for name in (*clips, "side_by_side.mp4", "report.json", "report.html")]
    return [
        gr.Plot(figures.seconds_by_stage([(name, row["seconds"]) for name, row in named], result.kind), visible=True),
        gr.Plot(figures.saving_per_step(curves), visible=True) if curves else gr.Plot(visible=False),
        *maps,
        *(gr.DownloadButton(f"Download {file.name}", file) for file in files),
    ]


def headline(result: Result, link: str) -> str:
    """Seconds before and after, attention as bars, and why."""
    size = result.report.get("made", result.report)
    levels = [row["quality"]["psnr"] for _, row in result.judged]
    request = result.request
    seconds = [result.rows[index]["seconds"]["total"] for index in result.sides]
    same = ""  # where a clip could not be judged
    if None not in levels:
        same = ", same video" if all(level >= scales.ANOTHER_VIDEO for level in levels) else ", another video"
    detail = [
        f"“{request.prompt}”",
        f"{size['num_frames']} frames of {size['width']} × {size['height']}",
        f"{request.steps} steps",
        f"seed {request.seed}",
    ]
    parts = result.reference["seconds"]
    why = f"Attention is {parts['attention'] / parts['total']:.0%} of the time of the dense run, and neighbours in a "
    why += "video repeat themselves: what they share is computed once."
    if result.report.get("model") == "pond":
        why += " Pond is a toy model on a CPU: it shows the method, not the state of the art."
    bars = [
        (name, row["seconds"]["attention"], row["seconds"]["total"])
        for name, row in zip(result.names, result.rows, strict=True)
    ]
    text = f"Same noise{same}: {seconds[0]:.1f} → {seconds[1]:.1f} s"
    return markup.headline(text, why, bars, " · ".join(detail), result.kind, link, result.report.get("remarks", []))


def numbers(result: Result) -> str:
    """Four numbers of every side that is not the reference, each on a scale that says what is good."""
    parts = result.reference["seconds"]
    limit = 1 / (1 - parts["attention"] / parts["total"])
    rows = []
    for side, row in result.judged:
        quality, saving = row["quality"], row["saving"]
        measures = [scales.speedup(row["speedup"], limit), scales.psnr(quality["psnr"])]
        measures += [scales.vmaf(quality["vmaf"]) if quality["vmaf"] is not None else scales.ssim(quality["ssim"])]
        measures += [scales.saving(saving["reuse_steps"], saving["all_steps"], saving["kind"])] if saving else []
        rows.append((side, f"against {result.names[0].lower()}, {result.kind}", [m for m in measures if m]))
    return markup.numbers(rows)


def previews(folder: Path, methods: list[Method]) -> str:
    """Every step of both sides, to be scrubbed; empty where none were kept."""
    file = folder / "previews.json"
    if not file.is_file():
        return ""
    kept = json.loads(file.read_text(encoding="utf-8"))
    sides = [(side, title(method), kept.get(method.label, [])) for side, method in zip("AB", methods, strict=True)]
    return markup.steps([side for side in sides if side[2]])


def keep_previews(run: Run) -> None:
    """Writes the previews of all steps to previews.json, as JPEG in data URIs."""
    kept = {name: [_jpeg(picture) for picture in pictures] for name, pictures in run.previews.items() if pictures}
    if kept:
        (run.folder / "previews.json").write_text(json.dumps(kept), encoding="utf-8")


def _jpeg(picture: np.ndarray) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return markup.data_uri(image, "JPEG", quality=85)


def permalink(report: dict, id: str) -> str:
    """Query of the page that shows this result, and its settings once the result is gone."""
    names = [*Request.__dataclass_fields__, "compared"]
    return "?" + urlencode({"run": id} | {name: report[name] for name in names if name in report})


# --- Recorded comparisons --------------------------------------------------------------------------------------------


def recorded_runs(runs: Runs, fill: Callable[..., list]) -> dict[str, Run]:
    """The comparisons of the repository as finished runs, by id. fill(request, methods): the values of the form."""
    found = {}
    for folder in sorted(path.parent for path in EXAMPLES.glob("*/report.json")):
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        machine, date = report["environment"]["cpu"], report["environment"]["date"][:10]
        report["kind"] = f"recorded on {machine}, {date}"
        run = runs.adopt(folder, report, tuple(fill(*read_settings(report))))
        if not (page := run.folder / "report.html").exists():
            page.write_text(html_report(report, run.folder), encoding="utf-8")
        found[run.id] = run
    return found


def recorded_card(run: Run) -> tuple[str, str, str, np.ndarray]:
    """Id, prompt, what came of it, and a frame."""
    second = run.result["methods"][1]
    outcome = f"{second['speedup']:.2f}× at {second['quality']['psnr']:.1f} dB"
    clip = read_mp4(run.folder / f"{second['label']}.mp4")
    return run.id, run.result["prompt"], outcome, clip[len(clip) // 2]
