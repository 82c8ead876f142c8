"""The best of all methods for a model, a machine and a quality, found by successive halving (Jamieson and Talwalkar,
2016): the best solver on dense; with it every method at one number of steps on one prompt; the best third of them, each
in the number of steps that the target takes, on the same; the best third of those on two prompts, and so on until the
last few are measured on all."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline

from timeripple.attention.method import ConfigError
from timeripple.attention.timing import environment
from timeripple.bench.front import t_interval
from timeripple.bench.pace import timing
from timeripple.bench.search import LEAST, Search, Target, best, fits, merit, score
from timeripple.bench.sweep import Job, fingerprint, sweep
from timeripple.bench.work import converged, family, machine
from timeripple.clips.generate import Request, generate
from timeripple.clips.methods import parse_method
from timeripple.clips.models import load_pipeline
from timeripple.clips.quality import measure
from timeripple.clips.solvers import solver_name

FIRST_STRETCH = 1.4
"""At how many times the steps that dense needs methods are tried first."""
MOST, MOST_STEPS = 3, 60
"""At how many times the steps that dense needs methods are tried at most, and the steps that nothing goes beyond."""
SLACK = 0.1  # of the steps, left open until all prompts are in
CONVERGED_STEPS = 50
"""Of the clip that all are compared to, see `assets/benchmarks/first-edition`: fewer than `bench work` has."""
OTHERS = 16  # prompts whose mean dB lies within the interval that is promised, 95 times of 100
SOLVERS = ("unipc", "euler", "dpm++")
"""Beside the pipeline's own; the best of them on dense is that of every method."""
FAMILIES = (
    "token:0.3",
    "token:0.5",
    "token:0.6",
    "token:0.7",
    "token:0.5+mag-cache:0.03",
    "token:0.5+mag-cache:0.06",
    "token:0.5+taylorseer:3",
    "token:0.5+forecast:0.7",
    "forecast:0.7",
    "forecast:0.45:start=3",
    "taylorseer:2",
    "taylorseer:3",
    "mag-cache:0.03",
    "mag-cache:0.06",
    "spectrum:0.75:weight=0.5",
    "first-block-cache:0.1",
    "easycache:0.05",
    "easycache:0.1",
    "teacache:0.15",
    "cache-dit:0.12:taylor=1",
    "hsa:0.25",
    "hsa:0.25:divisor=2",
    "svg:0.5",
    "svg2:0.5:dense_first=0.1:query_cluster=64:key_cluster=16",
)
"""What is searched beside dense, each in several numbers of steps: ours, stacks, and the peers that come near."""


class Worker:
    """Runs jobs with a pipeline of its own; keeps the converged clips of the requests.

    load: makes the pipeline.
    """

    def __init__(self, load: Callable[[], DiffusionPipeline]):
        self.pipeline = load()
        self._converged: dict[Request, np.ndarray] = {}

    def run(self, job: Job) -> dict[str, Any]:
        """What `pace.timing` gives, psnr_converged and held_bytes; or `refused`, why the pipeline does not suit the
        method."""
        if job.request not in self._converged:
            self._converged[job.request] = converged(self.pipeline, job.request, CONVERGED_STEPS)
        try:
            generation = generate(self.pipeline, job.request, parse_method(job.method))
        except ConfigError as error:
            return {"refused": str(error)}
        return {
            **timing(generation),
            "psnr_converged": measure(generation.frames, self._converged[job.request])["psnr"],
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
    rows: the same of all methods that were measured on every request, dense among them, the fastest first; left_out:
    methods that the pipeline does not suit, and why; target, environment, versions, kind. The choice is the fastest
    row that keeps the PSNR, or the best one within the time; so where dense with fewer steps or a peer wins, it is
    that. engine, load: as in `sweep`; on_run(finished, all that are known to come) is called after every generation.
    Raises ValueError where nothing reaches the target.
    """
    for request in requests:
        request.check(pipeline)

    worker = Worker(lambda: pipeline)  # one for all rounds, as it keeps the converged clips
    kind = Worker if engine == "ray" else lambda _: worker

    finished = 0

    def count(done: int, total: int) -> None:
        if on_run is not None:
            on_run(finished + done, finished + total)

    def run(jobs: list[Job]) -> dict[Job, dict[str, Any]]:
        nonlocal finished
        results = sweep(jobs, pipeline, None, engine, count, load, kind, machine(pipeline))
        finished += len(jobs)
        return results

    generate_once(pipeline, requests[0])
    search = Search(run, requests, target)
    needed = search.settle({"dense": requests[0].steps}, 1, MOST_STEPS).get("dense")
    tried_in = needed or (LEAST if target.psnr is None else MOST_STEPS)
    search.dense = dense = best_solver(search, solver_name(pipeline.scheduler), tried_in)
    if dense != "dense":
        needed = search.settle({dense: tried_in}, 1, MOST_STEPS).get(dense)
    if needed is None and target.psnr is not None:  # what dense does not reach is out of reach
        raise out_of_reach(search, target)
    needed = needed or LEAST
    first, most = min(round(FIRST_STRETCH * needed), MOST_STEPS), min(MOST * needed, MOST_STEPS)

    solver = dense.removeprefix("dense")
    families = [name if parse_method(name).solver else name + solver for name in families]
    tried = {name: f"{name}:steps={first}" for name in families}
    tried = {name: text for name, text in tried.items() if fits(text)}
    search.measure([*tried.values()], 1)
    able = [name for name, text in tried.items() if text not in search.refused]
    alive = best(able, lambda name: score(search, tried[name]))
    steps = {dense: needed} | dict.fromkeys(alive, first)
    for prompts in rounds(len(requests)):
        guesses = {name: steps[name] for name in (dense, *alive)}
        found = search.settle(guesses, prompts, most, SLACK if prompts < len(requests) else 0.0)
        steps |= found
        costs = {name: merit(search, name, found[name], prompts) for name in alive if name in found}
        alive = best([*costs], costs.__getitem__)
    rows = [row(search, pipeline, text, len(requests)) for text in search.measured(len(requests))]
    rows.sort(key=lambda row: row["seconds"])
    chosen = choose(rows, target, search.limit)
    if chosen is None:
        raise out_of_reach(search, target)
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


def best_solver(search: Search, own: str, steps: int) -> str:
    """Dense with the solver that keeps most in so many steps on the first prompt, the pipeline's own among them."""
    others = (f"dense:solver={name}" for name in SOLVERS if name != own)
    tried = {name: f"{name}:steps={steps}" for name in ("dense", *others)}
    search.measure([*tried.values()], 1)
    able = [name for name, text in tried.items() if text not in search.refused]
    return max(able, key=lambda name: search.psnr(tried[name], 1))


def generate_once(pipeline: DiffusionPipeline, request: Request) -> None:
    """One step that is not timed: the first of a process pays for what only happens once."""
    generate(pipeline, request, parse_method("dense:steps=1"))


def rounds(prompts: int) -> Iterator[int]:
    """On how many prompts each round measures: 1, 2, 4 and so on, all in the last."""
    count = 1
    while count < prompts:
        yield count
        count *= 2
    yield prompts


def row(search: Search, pipeline: DiffusionPipeline, text: str, prompts: int) -> dict[str, Any]:
    """One method as the front shows it, means over the requests."""
    method, runs = parse_method(text), search.runs(text, prompts)
    return {
        "method": text,
        "solver": method.solver or solver_name(pipeline.scheduler),
        "steps": method.steps,
        "seconds": search.seconds(text, prompts),
        "seconds_interval": search.pace.interval(family(text), runs),
        "psnr_converged": search.psnr(text, prompts),
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


def out_of_reach(search: Search, target: Target) -> ValueError:
    known = search.measured(1)
    if target.psnr is not None:
        most = max(search.psnr(text, 1) for text in known)
        return ValueError(f"Nothing keeps {target.psnr:g} dB; the best found keeps {most:.1f} dB: lower the PSNR.")
    least = min(search.seconds(text, 1) for text in known)
    return ValueError(f"Nothing takes at most {search.limit:.2f} s; the fastest found takes {least:.2f} s: allow more.")
