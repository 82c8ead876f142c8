"""The best of all methods for a model, a machine and a quality: the best solver on dense, and the steps it needs there;
every method in one number of steps on one prompt; the best third of them on two, in the number that the target takes;
from then on always what looks best, on more and more prompts, until what looks best was measured on all."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from timeripple.attention.method import ConfigError
from timeripple.attention.timing import environment
from timeripple.bench.front import t_interval
from timeripple.bench.pace import timing
from timeripple.bench.search import LEAST, Search, Target, fits, steps_in
from timeripple.bench.sweep import Job, JobRunner, fingerprint, sweep
from timeripple.bench.work import converged, family
from timeripple.clips.generate import BrokenClip, Request, generate
from timeripple.clips.methods import parse_method
from timeripple.clips.models import load_pipeline
from timeripple.clips.quality import measure
from timeripple.clips.solvers import solver_name

FIRST_STRETCH = 1.2
"""At how many times the steps that dense needs methods are tried first."""
MOST, MOST_STEPS = 3, 45
"""At how many times the steps that dense needs methods are tried at most, and the steps that nothing goes beyond, as it
would near the converged clip itself."""
KEPT = 3  # one family in so many is tried a second time, in the steps that the target takes, whatever comes of it
CONVERGED_STEPS = 50
"""Of the clip that all are compared to, see `assets/benchmarks/first-edition`: fewer than `bench work` has."""
OTHERS = 16  # prompts whose mean dB lies within the interval that is promised, 95 times of 100
SOLVERS = ("unipc", "euler", "dpm++")
"""Beside the pipeline's own; the best of them on dense is that of every method."""
FAMILIES = (
    "token:0.5",
    "token:0.6",
    "token:0.7",
    "token:0.5+mag-cache:0.06",
    "token:0.5+taylorseer:3",
    "token:0.5+forecast:0.7",
    "token:0.5+easycache:0.05",
    "forecast:0.45:start=3",
    "taylorseer:2",
    "taylorseer:3",
    "mag-cache:0.03",
    "mag-cache:0.06",
    "spectrum:0.75:weight=0.5",
    "easycache:0.1",
    "teacache:0.15",
    "cache-dit:0.12:taylor=1",
    "hsa:0.25",
    "svg:0.5",
)
"""What is searched beside dense, each in several numbers of steps: ours, stacks, and the peers that come nearest."""


class Reference:
    """Makes converged clips. load: makes the pipeline."""

    def __init__(self, load: Callable[[], DiffusionPipeline]):
        self.pipeline = load()

    def run(self, job: Job) -> dict[str, Any]:
        """frames, uint8 [frames, height, width, 3]."""
        return {"frames": converged(self.pipeline, job.request, CONVERGED_STEPS)}


class Worker:
    """Runs jobs with a pipeline of its own.

    load: makes the pipeline; clips: the converged clips of the requests.
    """

    def __init__(self, load: Callable[[], DiffusionPipeline], clips: dict[Request, np.ndarray]):
        self.pipeline, self._clips = load(), clips

    def run(self, job: Job) -> dict[str, Any]:
        """What `pace.timing` gives, psnr_converged and held_bytes; or `refused`, why a method makes no clip here."""
        try:
            generation = generate(self.pipeline, job.request, parse_method(job.method))
        except (ConfigError, BrokenClip, torch.OutOfMemoryError) as error:
            return {"refused": str(error).partition("\n")[0]}
        return {
            **timing(generation),
            "psnr_converged": measure(generation.frames, self._clips[job.request])["psnr"],
            "held_bytes": generation.summary["held_bytes"],
        }


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

    method, steps, solver; seconds, as `Pace` has them, with a 95 % bootstrap interval over the steps measured; psnr (to
    the converged clip) with the 95 % t-interval for the mean of 16 other prompts like these, None of a single one;
    rows: the same of all methods that were measured on every request, the fastest first; left_out: methods that make no
    clip here, and why; target, environment, versions, kind. The choice is the fastest row that keeps the PSNR, or the
    best one within the time; so where dense with fewer steps or a peer wins, it is that. engine, load: as in `sweep`;
    on_run(finished, all that are known to come) is called after every generation. Raises ValueError where nothing
    reaches the target, or dense makes no clip.
    """
    for request in requests:
        request.check(pipeline)

    clips: dict[Request, np.ndarray] = {}
    finished = 0

    def swept(jobs: list[Job], later: int, kind: Callable[..., JobRunner], *given: Any) -> dict[Job, dict[str, Any]]:
        nonlocal finished

        def count(done: int, total: int) -> None:
            if on_run is not None:
                on_run(finished + done, finished + total + later)

        warm = partial(load_warm, load, requests[0])
        results = sweep(jobs, pipeline, None, engine, count, warm, kind, given=given)
        finished += len(jobs)
        return results

    def run(jobs: list[Job]) -> dict[Job, dict[str, Any]]:
        missing = dict.fromkeys(job.request for job in jobs if job.request not in clips)
        made = swept([Job(request, "converged") for request in missing], len(jobs), Reference)
        clips.update({job.request: result["frames"] for job, result in made.items()})
        return swept(jobs, 0, Worker, clips)

    generate_once(pipeline, requests[0])
    search = Search(run, requests, target)
    search.dense = dense = best_solver(search, solver_name(pipeline.scheduler))
    needed = search.find([dense], MOST_STEPS, at_once=len(requests))
    if needed is None and target.psnr is not None:  # not by an estimate alone
        search.measure([f"{dense}:steps={MOST_STEPS}"], len(requests))
        needed = search.find([dense], MOST_STEPS, at_once=len(requests))
    if dense in search.refused:
        raise ValueError(search.refused[dense])
    if needed is None and target.psnr is not None:  # what dense does not reach is out of reach
        raise out_of_reach(search, [dense])
    search.pair_up()
    dense_steps = LEAST if needed is None else steps_in(needed)
    first, most = min(round(FIRST_STRETCH * dense_steps), MOST_STEPS), min(MOST * dense_steps, MOST_STEPS)

    solver = dense.removeprefix("dense")
    named = dict.fromkeys(family(name if parse_method(name).solver else name + solver) for name in families)
    families = [name for name in named if name != dense and fits(f"{name}:steps={first}")]
    search.measure([f"{name}:steps={first}" for name in families], 1)
    families = [dense, *(name for name in families if name not in search.refused)]
    search.measure(search.best(families, most)[: math.ceil(len(families) / KEPT)], 2)
    search.find(families, most)
    measured = (text for text in search.measured(len(requests)) if family(text) not in search.refused)
    rows = [row(search, pipeline, text) for text in measured]
    rows.sort(key=lambda row: row["seconds"])
    chosen = choose(rows, target, search.limit)
    if chosen is None:
        raise out_of_reach(search, families)
    return {
        **{name: chosen[name] for name in ("method", "steps", "solver", "seconds", "seconds_interval")},
        "psnr": chosen["psnr_converged"],
        "psnr_interval": chosen["psnr_converged_interval"],
        "target": {name: value for name, value in asdict(target).items() if value is not None},
        "rows": rows,
        "left_out": search.refused,
        "prompts": [request.prompt for request in requests],
        "size": [requests[0].num_frames, requests[0].height, requests[0].width],
        "converged_steps": CONVERGED_STEPS,
        "weights": fingerprint(pipeline),
        "kind": "measured here",
        "environment": environment(pipeline),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "diffusers", "numpy")},
        },
    }


def best_solver(search: Search, own: str) -> str:
    """Dense with the solver that keeps most on the first prompt, the pipeline's own among them, in the pipeline's own
    number of steps or, where that is too close to the converged clip, in fewer. Raises ValueError where none makes a
    clip."""
    steps = min(search.requests[0].steps, CONVERGED_STEPS // 4)
    tried = ("dense", *(f"dense:solver={name}" for name in SOLVERS if name != own))
    search.measure([f"{name}:steps={steps}" for name in tried], 1)
    able = [name for name in tried if name not in search.refused]
    if not able:
        raise ValueError(search.refused["dense"])
    return max(able, key=lambda name: search.psnr(f"{name}:steps={steps}"))


def load_warm(load: Callable[[], DiffusionPipeline], request: Request) -> DiffusionPipeline:
    """A pipeline on another machine, see `generate_once`."""
    pipeline = load()
    generate_once(pipeline, request)
    return pipeline


def generate_once(pipeline: DiffusionPipeline, request: Request) -> None:
    """One step that is not timed: the first of a process pays for what only happens once."""
    generate(pipeline, request, parse_method("dense:steps=1"))


def row(search: Search, pipeline: DiffusionPipeline, text: str) -> dict[str, Any]:
    """One method as the front shows it, means over the requests."""
    method, runs = parse_method(text), search.runs(text)
    return {
        "method": text,
        "solver": method.solver or solver_name(pipeline.scheduler),
        "steps": method.steps,
        "seconds": search.seconds(text),
        "seconds_interval": search.pace.interval(family(text), runs),
        "psnr_converged": search.psnr(text),
        "psnr_converged_interval": t_interval([run["psnr_converged"] for run in runs], OTHERS),
        "held_bytes": max(run["held_bytes"] for run in runs),
    }


def choose(rows: list[dict[str, Any]], target: Target, limit: float) -> dict[str, Any] | None:
    """The fastest row that keeps the PSNR, or the best within the limit; None where there is none."""
    if target.psnr is not None:
        kept = [row for row in rows if row["psnr_converged"] >= target.psnr]
        return min(kept, key=lambda row: row["seconds"], default=None)
    within = [row for row in rows if row["seconds"] <= limit]
    return max(within, key=lambda row: row["psnr_converged"], default=None)


def out_of_reach(search: Search, families: Sequence[str]) -> ValueError:
    if search.target.psnr is not None:
        most = max(search.psnr(text) for text in search.measured(len(search.requests)))
        return ValueError(
            f"Nothing keeps {search.target.psnr:g} dB; the best found keeps {most:.1f} dB: lower the PSNR."
        )
    least = min(search.costs(name, LEAST)[0] for name in families if fits(f"{name}:steps={LEAST}"))
    limit, least = (f"{float(f'{seconds:.3g}'):g} s" for seconds in (search.limit, least))
    return ValueError(f"Nothing takes at most {limit}; the fastest takes some {least}: allow more.")
