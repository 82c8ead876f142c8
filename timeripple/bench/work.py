"""How much work a quality takes: every method in its own number of steps against the converged clip, and dense at every
number of steps as the curve to beat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from torch import nn

from timeripple.attention.config import GRANULARITIES
from timeripple.attention.method import ConfigError
from timeripple.attention.timing import environment
from timeripple.baselines.delta_dit import blocks_of
from timeripple.bench.attention import request_for
from timeripple.bench.contenders import METHODS
from timeripple.bench.front import Point, ahead, interval
from timeripple.bench.quality import held_out_prompts
from timeripple.bench.sweep import Job, fingerprint, sweep
from timeripple.clips.generate import Generation, Request, generate
from timeripple.clips.methods import Method, check_distinct, parse_method, split_stack
from timeripple.clips.models import load_pipeline
from timeripple.clips.quality import PSNR_CAP, judge, psnr
from timeripple.clips.solvers import solver, solver_name
from timeripple.hooks import transformers
from timeripple.pond.pipeline import PondPipeline

CONVERGED_STEPS = 100
TOKENS = (5184, 9216)
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Attention's share of a dense step, for which the cost of a method is given."""


class Worker:
    """Runs jobs with a pipeline of its own; keeps the converged clip of the last request and its dense ones.

    load: makes the pipeline.
    """

    def __init__(self, load: Callable[[], DiffusionPipeline]):
        self.pipeline = load()
        self._request: Request | None = None
        self._warm = False

    def run(self, job: Job) -> dict[str, Any]:
        """seconds, attention_seconds, attention_steps and rest_steps (work of attention and of all else, in dense
        steps), held_bytes, machine, and psnr_converged, ssim_converged, vmaf_converged, psnr_dense."""
        if not self._warm:  # the first step of a process pays for what only happens once
            generate(self.pipeline, replace(job.request, steps=1), parse_method("dense"))
            self._warm = True
        if self._request != job.request:
            self._request, self._dense = job.request, dict[tuple[int, str | None], Generation]()
            self._converged = converged(self.pipeline, job.request)
            with counting_work(self.pipeline) as count:
                generate(self.pipeline, replace(job.request, steps=1), parse_method("dense"))
            self._work_of_a_step = count()
        method = parse_method(job.method)
        with counting_work(self.pipeline) as count:
            generation = generate(self.pipeline, job.request, method)
        dense = generation if is_dense(method) else self._plain(job.request, method)
        if generation is dense:
            self._dense[steps_and_solver(job.request, method)] = generation
        steps = method.evaluations(job.request.steps)
        saved = sum(generation.saving["per_step"]) if generation.saving else 0.0
        close = judge(generation.frames, self._converged).scores
        return {
            "seconds": generation.seconds["total"],
            "attention_seconds": generation.seconds["attention"],
            "attention_steps": steps - saved,
            "rest_steps": count() / self._work_of_a_step,
            "held_bytes": generation.summary["held_bytes"],
            "machine": machine(self.pipeline),
            "psnr_converged": close["psnr"],
            "ssim_converged": close["ssim"],
            "vmaf_converged": close["vmaf"],
            "psnr_dense": None if generation is dense else min(psnr(generation.frames, dense.frames), PSNR_CAP),
        }

    def _plain(self, request: Request, method: Method) -> Generation:
        """The dense clip in the steps and by the solver of a method."""
        place = steps_and_solver(request, method)
        if place not in self._dense:
            plain = Method("dense", None, steps=place[0], solver=place[1])
            self._dense[place] = generate(self.pipeline, request, plain)
        return self._dense[place]


def steps_and_solver(request: Request, method: Method) -> tuple[int, str | None]:
    return request.by(method).steps, method.solver


def is_dense(method: Method) -> bool:
    return method.config is None and method.cache is None


def is_ours(text: str) -> bool:
    """Whether token, tile or channel reuse is in it."""
    return any(part.split(":")[0] in GRANULARITIES for part in split_stack(text))


def family(text: str) -> str:
    """A method without its number of steps."""
    parts = ([part for part in each.split(":") if not part.startswith("steps=")] for each in split_stack(text))
    return "+".join(":".join(part) for part in parts)


def machine(pipeline: DiffusionPipeline) -> str:
    """The kind of machine, of which results are never mixed."""
    here = environment(pipeline)
    if here["device"] != "cpu":
        return str(here["device"])
    compiled = ", compiled" if here["compiled"] else ""
    return f"{here['cpu']}, {'with' if here['amx'] else 'without'} AMX, {here['threads']} threads{compiled}"


def converged(pipeline: DiffusionPipeline, request: Request, steps: int = CONVERGED_STEPS) -> np.ndarray:
    """The clip that solvers come to with more and more steps, of the same noise, uint8 frames: UniPC where the model's
    schedule allows it, in float32 of Pond and in their own precision of models that may not fit in it."""
    method = parse_method(f"dense:steps={steps}")
    with suppress(ConfigError):
        solver("unipc", pipeline.scheduler)
        method = replace(method, solver="unipc")
    with in_float32(pipeline) if isinstance(pipeline, PondPipeline) else nullcontext():
        return generate(pipeline, request, method).frames


@contextmanager
def in_float32(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Inside, the transformers compute in float32; their weights are afterwards what they were, each in its dtype."""
    weights = [weight for model in transformers(pipeline) for weight in (*model.parameters(), *model.buffers())]
    own = [weight.data for weight in weights]
    try:
        for weight in weights:
            weight.data = weight.data.float() if weight.is_floating_point() else weight.data
        yield
    finally:
        for weight, data in zip(weights, own, strict=True):
            weight.data = data


@contextmanager
def counting_work(pipeline: DiffusionPipeline) -> Iterator[Callable[[], int]]:
    """Yields what returns the multiplications of all linear layers of the blocks inside: what is left out of a step
    beside attention, whatever leaves it out."""
    total = 0

    def count(module: Any, args: tuple[Any, ...], output: Any) -> None:
        nonlocal total
        total += args[0].numel() * module.out_features

    blocks = [block for model in transformers(pipeline) for block in blocks_of(model)]
    linear = [module for block in blocks for module in block.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_hook(count) for module in linear]
    try:
        yield lambda: total
    finally:
        for handle in handles:
            handle.remove()


def requests_at(tokens: int, prompts: int) -> list[Request]:
    """Held-out prompts, each with noise of its own. Raises ValueError, one sentence, for what cannot be."""
    if prompts < 1:
        raise ValueError(f"The number of prompts is {prompts}; give at least 1, such as 8.")
    first = request_for(tokens)
    return [replace(first, prompt=prompt, seed=seed) for seed, prompt in enumerate(held_out_prompts(prompts))]


def check(pipeline: DiffusionPipeline, requests: Sequence[Request], methods: Sequence[str]) -> None:
    """Raise ValueError, one sentence, for requests and methods that cannot be run."""
    check_distinct(map(parse_method, methods))
    for request in requests:
        for text in methods:
            method = parse_method(text)
            request.by(method).check(pipeline)
            method.check(request.steps)


def work(
    pipeline: DiffusionPipeline,
    requests: Sequence[Request],
    methods: Sequence[str] = METHODS,
    log: Path | None = None,
    engine: str = "local",
    on_run: Callable[[int, int], None] | None = None,
    load: Callable[[], DiffusionPipeline] = load_pipeline,
) -> dict[str, Any]:
    """`{"rows", "ahead", "ahead_in_steps", "runs", "environment", "kind", "weights"}`, a row for every method and
    number of tokens.

    Row: tokens, method, solver, steps, seconds, dense_steps (what it would take in dense steps if attention had a share
    of 0.5 to 0.95 of one: theoretical), attention_share (measured), psnr_converged and ssim_converged and
    vmaf_converged (to the converged clip; None where they cannot be measured, as without ffmpeg),
    psnr_converged_interval, psnr_dense (to the dense clip of the same steps and solver, None for dense), held_bytes,
    kind. All are means over prompts, intervals 95 % bootstrap. ahead: as `front.ahead`, with tokens; ahead_in_steps:
    the same of dense steps in place of seconds, at every share of attention in one, which is theoretical. runs: every
    generation, so that differences can be paired by prompt.

    log, engine, on_run, load: as in `sweep`. Raises ValueError for what cannot be run, and for runs of several kinds of
    machines, whose seconds are not to be mixed.
    """
    check(pipeline, requests, methods)
    jobs = [Job(request, text) for turn, request in enumerate(requests) for text in in_turn(methods, request, turn)]
    results = sweep(jobs, pipeline, log, engine, on_run, load, Worker, machine(pipeline))
    machines = sorted({result["machine"] for result in results.values()})
    if len(machines) > 1:
        raise ValueError(
            f"These runs are of {len(machines)} kinds of machines: {'; '.join(machines)}. Use one of them."
        )
    rows, leads, leads_in_steps = [], [], []
    for tokens in dict.fromkeys(request.tokens(pipeline) for request in requests):
        own = [request for request in requests if request.tokens(pipeline) == tokens]
        measured = {text: [results[Job(request, text)] for request in own] for text in methods}
        rows += [{"tokens": tokens, **row(pipeline, own[0], text, runs)} for text, runs in measured.items()]
        leads += [{"tokens": tokens, **lead} for lead in ahead(points(measured, seconds_of))]
        for share in SHARES:
            found = ahead(points(measured, partial(dense_steps_of, share)))
            leads_in_steps += [{"tokens": tokens, "share": share, **lead, "kind": "theoretical"} for lead in found]
    return {
        "rows": rows,
        "ahead": leads,
        "ahead_in_steps": leads_in_steps,
        "runs": [
            {
                "prompt": job.request.prompt,
                "seed": job.request.seed,
                "tokens": job.request.tokens(pipeline),
                "method": job.method,
                **result,
            }
            for job, result in results.items()
        ],
        "kind": "measured here",
        "weights": fingerprint(pipeline),
        "environment": environment(pipeline),
    }


def in_turn(methods: Sequence[str], request: Request, turn: int) -> list[str]:
    """By number of steps, rising and falling in turn, dense first in each: neighbours are compared with each other, and
    a machine that gets slower or faster favours none of them over all turns."""

    def place(text: str) -> tuple[int, bool]:
        method = parse_method(text)
        return request.by(method).steps * (-1) ** turn, not is_dense(method)

    return sorted(methods, key=place)


def seconds_of(run: dict[str, Any]) -> float:
    return float(run["seconds"])


def dense_steps_of(share: float, run: dict[str, Any]) -> float:
    """What a run would take in dense steps, if attention had this share of one."""
    return float(share * run["attention_steps"] + (1 - share) * run["rest_steps"])


def points(measured: dict[str, list[dict[str, Any]]], cost: Callable[[dict[str, Any]], float]) -> list[Point]:
    """Runs of every method, one a prompt, as points; their cost stands for seconds."""
    return [
        Point(
            text,
            family(text),
            is_ours(text),
            np.array([cost(run) for run in runs]),
            np.array([run["psnr_converged"] for run in runs]),
        )
        for text, runs in measured.items()
    ]


def row(pipeline: DiffusionPipeline, request: Request, text: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The means of one method, see `work`."""
    method = parse_method(text)

    def mean(name: str) -> float:
        return fmean(run[name] for run in runs)

    def mean_of_known(name: str) -> float | None:
        return None if any(run[name] is None for run in runs) else mean(name)

    return {
        "method": text,
        "solver": method.solver or solver_name(pipeline.scheduler),
        "steps": request.by(method).steps,
        "seconds": mean("seconds"),
        "dense_steps": {str(share): fmean(dense_steps_of(share, run) for run in runs) for share in SHARES},
        "attention_share": mean("attention_seconds") / mean("seconds"),
        "psnr_converged": mean("psnr_converged"),
        "psnr_converged_interval": interval([run["psnr_converged"] for run in runs]),
        "psnr_dense": mean_of_known("psnr_dense"),
        "ssim_converged": mean_of_known("ssim_converged"),
        "vmaf_converged": mean_of_known("vmaf_converged"),
        "held_bytes": max(run["held_bytes"] for run in runs),
        "kind": "measured here",
    }
