"""Quality over saving: every method at equal savings, against dense clips of the same prompts and noise."""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from timeripple.attention.method import ConfigError
from timeripple.attention.timing import environment
from timeripple.bench.sweep import Job, fingerprint, means, sweep
from timeripple.clips.generate import Request
from timeripple.clips.methods import Method, parse_method
from timeripple.clips.models import load_pipeline
from timeripple.pond.pipeline import PondPipeline
from timeripple.pond.prompts import describe, random_description

SAVINGS = (0.5, 0.6, 0.7, 0.75, 0.85)
METHODS = (
    "channel:{}:refresh=none",
    "token:{}:refresh=none",
    "token:{}",
    "token:{}:dense_first=0.2:dense_last=1",
    "tile:{}:refresh=none",
    "tile:{}",
    "skip:{}:refresh=none",
    "skip:{}:refresh=auto",
    "output-cache:{}",
    "output-cache:{}:dense_first=0:dense_last=0",
)
"""Methods of the benchmark with a place for the saving; those without refresh=none give their error back. Their reuse
window is longer than the paper's; token is run in the paper's, too, and the output cache in ours."""


@dataclass(frozen=True)
class QualityBench:
    """What is run. The default size is 2304 tokens, fewer than Standard's, as there are many runs."""

    prompts: int = 4
    steps: int = 20
    num_frames: int = 33
    height: int = 128
    width: int = 128

    def requests(self) -> list[Request]:
        """One request per prompt: combinations that training never shows, each with noise of its own."""
        if self.prompts < 1:
            raise ValueError(f"The number of prompts is {self.prompts}; give at least 1, such as 4.")
        size: dict[str, Any] = {"num_frames": self.num_frames, "height": self.height, "width": self.width}
        return [
            Request(prompt, seed=seed, steps=self.steps, **size)
            for seed, prompt in enumerate(held_out_prompts(self.prompts))
        ]

    def check(self, pipeline: PondPipeline) -> None:
        """Raise ValueError, one sentence, for what cannot be run."""
        for request in self.requests():
            request.check(pipeline)


def held_out_prompts(count: int) -> list[str]:
    """The first `count` of a fixed sequence of prompts that training never shows."""
    rng = random.Random(0)
    return [describe(random_description(rng, held_out=True)) for _ in range(count)]


def quality(
    pipeline: PondPipeline,
    bench: QualityBench,
    log: Path | None = None,
    on_run: Callable[[int, int], None] | None = None,
    engine: str = "local",
    load: Callable[[], DiffusionPipeline] = load_pipeline,
) -> dict[str, Any]:
    """`{"rows", "kind", "environment", "weights", ...settings}`; each row the mean over prompts of a method.

    Row: method, granularity, feedback, target, saving (reached over the reuse window, not the target),
    saving_all_steps (windows differ: with feedback nearly all steps are in it), saving_kind, psnr (mean of dB), ssim;
    where a method cannot save that much, psnr and ssim are None and `reason` says why.
    log, engine, on_run and load as in `sweep`.
    """
    bench.check(pipeline)
    methods = {(text, target): _method(text.format(target), bench.steps) for text in METHODS for target in SAVINGS}
    feasible = [method for method in methods.values() if isinstance(method, Method)]
    jobs = [Job(request, method.text) for request in bench.requests() for method in feasible]
    results = sweep(jobs, pipeline, log, engine, on_run, load)
    measured = {method.text: [results[job] for job in jobs if job.method == method.text] for method in feasible}
    rows = [_row(text, target, method, measured) for (text, target), method in methods.items()]
    return {
        "rows": rows,
        **asdict(bench),
        "weights": fingerprint(pipeline),
        "kind": "measured here",
        "environment": environment(pipeline),
    }


def _method(text: str, steps: int) -> Method | str:
    """The method, or the sentence that says why there is none."""
    try:
        method = parse_method(text)
        method.check(steps)
    except ConfigError as error:
        return str(error)
    return method


def _row(text: str, target: float, method: Method | str, measured: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    name = text.split(":")[0]
    row = {
        "method": text.format(target),
        "granularity": name,
        "feedback": "refresh=none" not in text and name != "output-cache",
        "target": target,
    }
    if isinstance(method, str):
        missing = ("saving", "saving_all_steps", "saving_kind", "psnr", "ssim")
        return row | dict.fromkeys(missing) | {"reason": method}
    runs = measured[method.text]
    return row | means(runs) | {"saving_kind": runs[0]["saving_kind"]}
