"""The best of all methods for a model, a machine and a quality, found by successive halving (Jamieson and Talwalkar,
2016): every method at one number of steps on one prompt, the best third of them at several, the best third of those
on two prompts, and so on until the last few are measured on all."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from statistics import fmean
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline

from timeripple.attention.method import ConfigError
from timeripple.attention.timing import environment
from timeripple.bench.front import interval
from timeripple.bench.sweep import Job, fingerprint, sweep
from timeripple.bench.work import converged, family, machine
from timeripple.clips.generate import Request, generate
from timeripple.clips.methods import parse_method
from timeripple.clips.models import load_pipeline
from timeripple.clips.quality import measure
from timeripple.clips.solvers import solver_name

DENSE_STEPS = (4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 20, 24, 28)
FIRST_STRETCH, STRETCH = 1.4, (1.0, 1.2, 1.4, 1.7, 2.0)
"""Numbers of steps at which methods are tried, at first and then, as multiples of those that dense needs."""
KEPT = 3  # one in so many goes on after a round, but never fewer than `FEWEST`
FEWEST = 4
FAMILIES = (
    "dense:solver=euler",
    "dense:solver=dpm++",
    "token:0.3",
    "token:0.5",
    "token:0.6",
    "token:0.7",
    "token:0.5+forecast:0.7",
    "token:0.5+first-block-cache:0.05",
    "tile:0.5",
    "forecast:0.7",
    "forecast:0.45",
    "taylorseer:2:spacing=even",
    "spectrum:0:start=3:weight=0.5",
    "first-block-cache:0.05",
    "first-block-cache:0.1",
    "easycache:0.1",
    "mag-cache:0.06",
    "cache-dit:0.08",
    "pab:2",
    "svg:0.5",
    "skip:0.5",
)
"""What is searched beside dense, each at several numbers of steps: ours, the peers that come near, and stacks."""


@dataclass(frozen=True)
class Target:
    """One of: psnr in dB to the converged clip, to be kept in the least time; speedup over dense in the pipeline's own
    number of steps, or seconds, in which to keep as much as can be. Raises ValueError, one sentence."""

    psnr: float | None = None
    speedup: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in asdict(self).values() if value is not None]
        if len(given) != 1:
            raise ValueError("Give one target: psnr in dB, such as 36, speedup, such as 2, or seconds, such as 20.")
        if not (math.isfinite(given[0]) and given[0] > 0):
            raise ValueError(f"The target is {given[0]:g}; give more than 0.")


class Worker:
    """Runs jobs with a pipeline of its own; keeps the converged clips of the requests.

    load: makes the pipeline.
    """

    def __init__(self, load: Callable[[], DiffusionPipeline]):
        self.pipeline = load()
        self._converged: dict[Request, np.ndarray] = {}

    def run(self, job: Job) -> dict[str, Any]:
        """seconds, psnr_converged and held_bytes; or `refused`, why the pipeline does not suit the method."""
        if job.request not in self._converged:
            self._converged[job.request] = converged(self.pipeline, job.request)
        try:
            generation = generate(self.pipeline, job.request, parse_method(job.method))
        except ConfigError as error:
            return {"refused": str(error)}
        return {
            "seconds": generation.seconds["total"],
            "psnr_converged": measure(generation.frames, self._converged[job.request])["psnr"],
            "held_bytes": generation.summary["held_bytes"],
        }


class Search:
    """What was measured so far, of every method on the first so many requests."""

    def __init__(self, run: Callable[[list[Job]], dict[Job, dict[str, Any]]], requests: Sequence[Request]):
        self._run, self.requests = run, requests
        self.results: dict[Job, dict[str, Any]] = {}
        self.runs: dict[str, list[dict[str, Any]]] = {}
        self.refused: dict[str, str] = {}

    def measure(self, methods: Sequence[str], prompts: int) -> None:
        """Runs what is missing; methods that the pipeline does not suit are noted and left out from then on."""
        wanted = [Job(request, text) for request in self.requests[:prompts] for text in methods]
        missing = [job for job in wanted if job not in self.results and job.method not in self.refused]
        self.results |= self._run(missing)
        for text in methods:
            own = [self.results[job] for job in wanted if job.method == text and job in self.results]
            reasons = [result["refused"] for result in own if "refused" in result]
            if reasons:
                self.refused[text] = reasons[0]
            elif own:
                self.runs[text] = own

    def mean(self, text: str, name: str) -> float:
        return fmean(run[name] for run in self.runs[text])


def tune(
    pipeline: DiffusionPipeline,
    requests: Sequence[Request],
    target: Target,
    families: Sequence[str] = FAMILIES,
    engine: str = "local",
    on_run: Callable[[int, int], None] | None = None,
    load: Callable[[], DiffusionPipeline] = load_pipeline,
) -> dict[str, Any]:
    """What to use, and the front it was chosen from.

    method, steps, solver; seconds, psnr (to the converged clip) and their 95 % bootstrap intervals over the requests;
    rows: the same of all methods that were measured on every request, dense among them, the fastest first; left_out:
    methods that the pipeline does not suit, and why; target, environment, versions, kind. The choice is the fastest
    row that keeps the PSNR, or the best one within the time; so where dense with fewer steps or a peer wins, it is
    that. engine, on_run, load: as in `sweep`. Raises ValueError where nothing reaches the target.
    """
    for request in requests:
        request.check(pipeline)

    worker = Worker(lambda: pipeline)  # one for all rounds, as it keeps the converged clips
    kind = Worker if engine == "ray" else lambda _: worker

    def run(jobs: list[Job]) -> dict[Job, dict[str, Any]]:
        return sweep(jobs, pipeline, None, engine, on_run, load, kind, machine(pipeline))

    generate_once(pipeline, requests[0])
    search = Search(run, requests)
    needed, limit = dense_curve(search, target, requests[0].steps)

    def best(methods: list[str], prompts: int) -> list[str]:
        """The better part of methods that are measured on so many prompts."""
        search.measure(methods, prompts)
        able = [text for text in methods if text not in search.refused]
        able.sort(key=lambda text: score(search, text, target, limit))
        return able if prompts == len(requests) else able[: max(FEWEST, math.ceil(len(able) / KEPT))]

    own_steps = requests[0].steps
    first = best(candidates_near(needed, families, own_steps, (FIRST_STRETCH,)), 1)
    candidates = candidates_near(needed, [family(text) for text in first], own_steps, STRETCH)
    yardsticks = [f"dense:steps={steps}" for steps in DENSE_STEPS if needed / 1.5 <= steps <= needed * 1.5]
    for prompts in rounds(len(requests)):
        search.measure(yardsticks, prompts)
        candidates = best(candidates, prompts)
    rows = sorted((row(search, pipeline, text) for text in (*yardsticks, *candidates)), key=lambda row: row["seconds"])
    chosen = choose(rows, target, limit)
    return {
        **{name: chosen[name] for name in ("method", "steps", "solver", "seconds", "seconds_interval")},
        "psnr": chosen["psnr_converged"],
        "psnr_interval": chosen["psnr_converged_interval"],
        "target": {name: value for name, value in asdict(target).items() if value is not None},
        "rows": rows,
        "left_out": search.refused,
        "prompts": [request.prompt for request in requests],
        "size": [requests[0].num_frames, requests[0].height, requests[0].width],
        "weights": fingerprint(pipeline),
        "kind": "measured here",
        "environment": environment(pipeline),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "diffusers", "numpy")},
        },
    }


def generate_once(pipeline: DiffusionPipeline, request: Request) -> None:
    """One step that is not timed: the first of a process pays for what only happens once."""
    generate(pipeline, request, parse_method("dense:steps=1"))


def dense_curve(search: Search, target: Target, own_steps: int) -> tuple[int, float]:
    """How many steps dense needs for the target on the first prompt, and the seconds allowed, inf for a PSNR."""
    counts = sorted({*DENSE_STEPS, own_steps})
    search.measure([f"dense:steps={steps}" for steps in counts], 1)
    limit = target.seconds or math.inf
    if target.speedup is not None:
        limit = search.mean(f"dense:steps={own_steps}", "seconds") / target.speedup
    needed = counts[0]
    for steps in counts:
        text = f"dense:steps={steps}"
        if search.mean(text, "seconds") > limit:
            break
        needed = steps
        if target.psnr is not None and search.mean(text, "psnr_converged") >= target.psnr:
            break
    return needed, limit


def candidates_near(
    needed: int, families: Sequence[str], requested: int, factors: Sequence[float] = STRETCH
) -> list[str]:
    """Every family at the numbers of steps in question, where its settings fit them."""
    counts = sorted({round(needed * factor) for factor in factors})
    return [text for name in families for steps in counts if fits(text := f"{name}:steps={steps}", requested)]


def fits(text: str, requested: int) -> bool:
    try:
        parse_method(text).check(requested)
    except ConfigError:
        return False
    return True


def rounds(prompts: int) -> Iterator[int]:
    """On how many prompts each round measures: 1, 2, 4 and so on, all in the last."""
    count = 1
    while count < prompts:
        yield count
        count *= 2
    yield prompts


def score(search: Search, text: str, target: Target, limit: float) -> float:
    """What a method costs, in log seconds, the lower the better.

    dB are worth what dense pays for them in steps, on the same prompts. What is lacking to the target, in dB or in
    time, costs twice as much: at that price itself, all numbers of steps of a family would be alike.
    """
    rate = price(search, len(search.runs[text]))
    seconds, psnr = math.log(search.mean(text, "seconds")), search.mean(text, "psnr_converged")
    if target.psnr is not None:
        return seconds + 2 * rate * max(0.0, target.psnr - psnr)
    return 2 * max(0.0, seconds - math.log(limit)) - rate * psnr


def price(search: Search, prompts: int) -> float:
    """Log seconds a dB, as dense steps cost them: the slope of a line through what was measured on so many prompts."""
    dense = [text for text in search.runs if text.startswith("dense:steps=") and len(search.runs[text]) >= prompts]
    level = [search.mean(text, "psnr_converged") for text in dense]
    seconds = [math.log(search.mean(text, "seconds")) for text in dense]
    if len(dense) < 2 or np.ptp(level) == 0:
        return 0.1
    return max(0.01, float(np.polyfit(level, seconds, 1)[0]))


def row(search: Search, pipeline: DiffusionPipeline, text: str) -> dict[str, Any]:
    """One method as the front shows it, means over the requests."""
    method, runs = parse_method(text), search.runs[text]
    return {
        "method": text,
        "solver": method.solver or solver_name(pipeline.scheduler),
        "steps": method.steps,
        "seconds": search.mean(text, "seconds"),
        "seconds_interval": interval([run["seconds"] for run in runs]),
        "psnr_converged": search.mean(text, "psnr_converged"),
        "psnr_converged_interval": interval([run["psnr_converged"] for run in runs]),
        "held_bytes": max(run["held_bytes"] for run in runs),
    }


def choose(rows: list[dict[str, Any]], target: Target, limit: float) -> dict[str, Any]:
    """The fastest row that keeps the PSNR, or the best within the limit. Raises ValueError where there is none."""
    if target.psnr is not None:
        kept = [row for row in rows if row["psnr_converged"] >= target.psnr]
        if not kept:
            best = max(row["psnr_converged"] for row in rows)
            raise ValueError(f"Nothing keeps {target.psnr:g} dB; the best found keeps {best:.1f} dB: lower the PSNR.")
        return min(kept, key=lambda row: row["seconds"])
    within = [row for row in rows if row["seconds"] <= limit]
    if not within:
        least = min(row["seconds"] for row in rows)
        raise ValueError(f"Nothing takes at most {limit:.2f} s; the fastest found takes {least:.2f} s: allow more.")
    return max(within, key=lambda row: row["psnr_converged"])
