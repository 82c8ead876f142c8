"""Several methods, same prompt and noise: what each took, what it saved, how close it stayed to the first."""

import json
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline

from timeripple.attention.records import saving_by_head
from timeripple.attention.timing import environment, load
from timeripple.clips import pipelines
from timeripple.clips.generate import Cancelled, Generation, Request, StepEvent
from timeripple.clips.interleaved import generate_all
from timeripple.clips.methods import Method, check_distinct, parse_method
from timeripple.clips.quality import Quality, judge
from timeripple.clips.rounds import disturbances, speedups_by_round, together
from timeripple.clips.video import amplification, player_frames, side_by_side, write_mp4

PROBE_BYTES = 1 << 20


@dataclass(frozen=True)
class Comparison:
    """Generations of one request; the first is the reference.

    quality: against the reference per generation, None for the reference itself; broken: methods of which no clip came,
    by label, and why; load_before: of the machine, see `timing.load`.
    """

    request: Request
    generations: list[Generation]
    quality: list[Quality | None]
    broken: dict[str, str]
    load_before: float | None = None

    @property
    def amplifications(self) -> list[int | None]:
        """By how much differences from the reference are to be amplified to be seen, None for the reference itself."""
        reference, *others = (generation.frames for generation in self.generations)
        return [None] + [amplification(frames, reference) for frames in others]

    @property
    def player_amplification(self) -> int:
        """By how much differences are amplified in the player: as much as the largest of them lets."""
        return min((factor for factor in self.amplifications if factor), default=1)

    @property
    def speedups(self) -> list[float]:
        """Measured, end to end: total seconds of the reference over those of each generation."""
        reference = self.generations[0].seconds["total"]
        return [reference / generation.seconds["total"] for generation in self.generations]

    @property
    def remarks(self) -> list[str]:
        """Sentences on what a reader of the numbers has to know: methods without a clip, clips that show nothing,
        budgets that were not met, metrics that could not be measured, and seconds that cannot be compared."""
        sentences = list(self.broken.values()) + disturbances(self.generations)
        for generation, quality in zip(self.generations, self.quality, strict=True):
            label = generation.method.label
            sentences += [f"{label}: {why}." for why in (generation.flaw, generation.shortfall) if why]
            if (chosen := generation.summary.get("chosen")) and chosen["budget"]:
                sentences.append(f"{label}: that takes a budget of {chosen['budget']:.2f} here at this size.")
            sentences += [f"{label}: {why}" for why in quality.missing.values()] if quality else []
        made = self.generations[0].frames.shape[:3]
        if made != self.request.size:
            made_text, asked = pipelines.size_text(made), pipelines.size_text(self.request.size)
            sentences.append(f"The clips have {made_text}, where {asked} were asked for.")
        return sentences

    def settings(self, pipeline: DiffusionPipeline) -> dict[str, Any]:
        """What to run to get this comparison again; `read_settings` reads it."""
        texts = ",".join(generation.method.text for generation in self.generations)
        model = Path(pipeline.name_or_path or type(pipeline).__name__).name
        given = {name: value for name, value in asdict(self.request).items() if value is not None}
        return given | {"model": model, "compared": texts}

    def report(self, pipeline: DiffusionPipeline) -> dict[str, Any]:
        """Everything about the comparison that JSON can hold; seconds and speed-ups are measured on `environment`.

        made: the size of the clips, which may differ from what was asked; remarks: see there. Identical clips have a
        PSNR of `quality.PSNR_CAP`.
        """
        rows = zip(self.generations, self.speedups, self.quality, self.amplifications, strict=True)
        frames, height, width, _ = self.generations[0].frames.shape
        return {
            **self.settings(pipeline),
            "made": {"num_frames": frames, "height": height, "width": width},
            "remarks": self.remarks,
            "broken": self.broken,
            "grid": self.generations[0].summary["grid"],
            "player_amplification": self.player_amplification,
            "methods": [
                {
                    "method": generation.method.text,
                    "label": generation.method.label,
                    "budget": getattr(generation.method.config, "budget", None),
                    "theta": getattr(generation.method.config, "theta", None),
                    "steps": self.request.evaluations(pipeline, generation.method),
                    "seconds": generation.seconds,
                    "speedup": speedup,
                    "speedup_by_round": speedups_by_round(generation, self.generations[0]),
                    "saving": generation.saving,
                    "saving_by_head": saving_by_head(generation.summary["records"]) if generation.saving else None,
                    "quality": quality.scores if quality else None,
                    "per_frame": quality.per_frame if quality else None,
                    "flaw": generation.flaw,
                    "amplification": amplification,
                    "held_bytes": generation.summary["held_bytes"],
                }
                for generation, speedup, quality, amplification in rows
            ],
            "environment": environment(pipeline) | {"load_before": self.load_before},
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "diffusers", "numpy")},
            },
        }


def read_settings(values: Mapping[str, object]) -> tuple[Request, list[Method]]:
    """Request and methods from what `Comparison.settings` gave, also as texts, such as a link's query.

    Unknown names are passed over. Raises ValueError, one sentence, for values that are missing or of the wrong type.
    """
    found, kinds = {}, dict[Any, Any]({str: str, int: int})
    for each in fields(Request):
        kind = kinds.get(each.type, float)
        if each.name in values:
            try:
                found[each.name] = kind(str(values[each.name]))
                if kind is not str and not math.isfinite(found[each.name]):
                    raise ValueError
            except (ValueError, OverflowError):
                raise ValueError(f"{each.name} is {str(values[each.name])[:40]!r}; give a number.") from None
    if not found.get("prompt", "").strip():
        raise ValueError("These settings name no prompt; give those of a comparison.")
    texts = values.get("compared", "dense,token")
    if not isinstance(texts, str):
        raise ValueError(f"The methods are {str(texts)[:40]!r}; give names with commas between, such as dense,token.")
    return Request(**found), [parse_method(text) for text in texts.split(",")]


def check(pipeline: DiffusionPipeline, request: Request, methods: list[Method]) -> None:
    """Raise ValueError, one sentence, for anything that would fail later in `compare`."""
    request.check(pipeline)
    if not methods:
        raise ValueError("There is no method to compare; give at least one, such as dense.")
    check_distinct(methods)
    for method in methods:
        request.by(method).check(pipeline)
        steps = pipelines.denoising_steps(pipeline, request.by(method).steps, request.strength)
        replace(method, steps=steps).check(steps)
        method.check_pipeline(pipeline)


def compare(
    pipeline: DiffusionPipeline,
    request: Request,
    methods: list[Method],
    reference: Generation | None = None,
    *,
    repeat: int = 1,
    on_step: Callable[[StepEvent], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Comparison:
    """Generate `request` with every method from the same noise, in turn where that can be (`interleaved`) and else one
    after the other; callbacks as in `generate`.

    reference: what the first method gave for this request before, so that it is not computed again. repeat: how often,
    every second time in the opposite order; seconds are the medians. Untimed steps come first, so that the first
    method does not pay for what only happens once, nor a speed-up for finding out what calls of attention take. A
    method that breaks costs no other's clip; raises BrokenClip where the first one does, which the others are compared
    with.
    """
    check(pipeline, request, methods)
    if repeat < 1:
        raise ValueError(f"repeat is {repeat}; give 1 or more.")
    if should_stop is not None and should_stop():
        raise Cancelled
    load_before = load()
    warm_up = replace(request, steps=pipelines.fewest_steps(pipeline, request.strength))
    steps = pipelines.denoising_steps(pipeline, warm_up.steps, request.strength)
    for config in (None, *(method.config for method in methods if getattr(method.config, "speedup", None))):
        applied = Method("", config).applied(pipeline, steps, warn_of_shortfall=False)  # compiled with the hooks in it
        with applied, pipelines.prepared(pipeline, request.guidance_scale):
            pipeline(**warm_up.arguments(pipeline))
    made: dict[str, list[Generation]] = {method.label: [] for method in methods}
    known = methods[0].label if reference else None
    broken: dict[str, str] = {}
    for round_number in range(repeat):
        order = methods if round_number % 2 == 0 else methods[::-1]
        left = [method for method in order if method.label not in {known, *broken}]
        clips = generate_all(pipeline, request, left, on_step=on_step, should_stop=should_stop)
        for method, clip in zip(left, clips, strict=True):
            if isinstance(clip, Generation):
                made[method.label].append(clip)
            elif method is methods[0]:
                raise clip
            else:
                broken[method.label] = str(clip)
    generations = [together(made[method.label]) for method in methods if method.label not in {known, *broken}]
    generations = [reference, *generations] if reference else generations
    first, *others = (generation.frames for generation in generations)
    return Comparison(request, generations, [None, *(judge(clip, first) for clip in others)], broken, load_before)


def check_folder(folder: str | Path) -> None:
    """Raise OSError, one sentence, unless videos can be written to `folder`, which need not exist yet."""
    with _staging(Path(folder)) as staging:
        write_mp4(staging / "probe.mp4", np.zeros((2, 16, 16, 3), np.uint8))
        (staging / "probe").write_bytes(bytes(PROBE_BYTES))


def save(comparison: Comparison, folder: str | Path, pipeline: DiffusionPipeline) -> list[Path]:
    """Write one mp4 per method, side_by_side.mp4, report.json and, where plotly is installed to draw it, report.html to
    `folder`, all or none; returns paths.

    player.mp4 holds all clips and how they differ from the first (`video.player_frames`), if there are two.
    Files of these names are replaced, others left alone. Raises OSError, one sentence.
    """
    folder = Path(folder)
    report = comparison.report(pipeline)
    settings = comparison.settings(pipeline)
    rows = zip(comparison.generations, comparison.speedups, comparison.quality, strict=True)
    captions = [_caption(*row) for row in rows]
    with _staging(folder) as staging:
        for generation in comparison.generations:
            path = staging / f"{generation.method.label}.mp4"
            write_mp4(path, generation.frames, metadata=settings | {"method": generation.method.text})
        clips = [generation.frames for generation in comparison.generations]
        write_mp4(staging / "side_by_side.mp4", side_by_side(clips, captions), metadata=settings)
        if len(clips) > 1:
            frames = player_frames(clips, comparison.player_amplification)
            write_mp4(staging / "player.mp4", frames, metadata=settings)
        (staging / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        if can_draw():
            from timeripple.clips.report import html_report

            (staging / "report.html").write_text(html_report(report, staging), encoding="utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in staging.iterdir())
        for name in names:
            os.replace(staging / name, folder / name)
    return [folder / name for name in names]


def can_draw() -> bool:
    """Whether plotly, which comes with the app, is installed."""
    return find_spec("plotly") is not None


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A temporary folder on the file system of `folder`; whatever fails inside becomes one sentence, as OSError."""
    staging = None
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        staging = Path(tempfile.mkdtemp(prefix=".timeripple-", dir=existing))
        yield staging
    except OSError as error:
        raise OSError(f"Cannot write to {folder}: {(error.strerror or str(error)).lower()}.") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _caption(generation: Generation, speedup: float, quality: Quality | None) -> str:
    parts = [generation.method.label, f"{generation.seconds['total']:.1f} s"]
    parts += [f"{speedup:.2f}x"] if quality else []
    parts += [f"{psnr:.1f} dB"] if quality and (psnr := quality.scores["psnr"]) is not None else []
    return " · ".join(parts)
