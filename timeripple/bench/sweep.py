"""Many generations against dense ones of the same noise, here or spread over machines with Ray; resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from diffusers import DiffusionPipeline

from timeripple.clips.generate import Generation, Request, generate
from timeripple.clips.methods import parse_method
from timeripple.clips.models import load_pipeline
from timeripple.clips.quality import measure

ENGINES = ("local", "ray")
TRIES = 3  # of a job whose worker dies


@dataclass(frozen=True)
class Job:
    """One generation. method: as text; "dense" is the reference itself."""

    request: Request
    method: str


class JobRunner(Protocol):
    """What a sweep has at every machine: made with what loads a pipeline."""

    def run(self, job: Job) -> dict[str, Any]: ...


class Worker:
    """Runs jobs with a pipeline of its own; keeps the dense clip of the last request.

    load: makes the pipeline.
    """

    def __init__(self, load: Callable[[], DiffusionPipeline]):
        self.pipeline = load()
        self._dense: tuple[Request, Generation] | None = None
        self._warm = False

    def run(self, job: Job) -> dict[str, Any]:
        """seconds, attention_seconds, saving (over the reuse window), saving_all_steps, saving_kind, and psnr in dB and
        ssim against the dense clip; what dense has none of is None."""
        if not self._warm:  # the first step of a process pays for what only happens once
            generate(self.pipeline, replace(job.request, steps=1), parse_method("dense"))
            self._warm = True
        if self._dense is None or self._dense[0] != job.request:
            self._dense = job.request, generate(self.pipeline, job.request, parse_method("dense"))
        reference = generation = self._dense[1]
        if job.method != "dense":
            generation = generate(self.pipeline, job.request, parse_method(job.method))
        saving = generation.saving or {"reuse_steps": None, "all_steps": 0.0, "kind": None}
        quality = {"psnr": None, "ssim": None}
        return {
            "seconds": generation.seconds["total"],
            "attention_seconds": generation.seconds["attention"],
            "saving": saving["reuse_steps"],
            "saving_all_steps": saving["all_steps"],
            "saving_kind": saving["kind"],
        } | (quality if generation is reference else measure(generation.frames, reference.frames))


def sweep(
    jobs: list[Job],
    pipeline: DiffusionPipeline,
    log: Path | None = None,
    engine: str = "local",
    on_run: Callable[[int, int], None] | None = None,
    load: Callable[[], DiffusionPipeline] = load_pipeline,
    kind: Callable[..., JobRunner] = Worker,
    machine: str = "",
    given: tuple[Any, ...] = (),
) -> dict[Job, dict[str, Any]]:
    """What `kind(load, *given).run` gives for every job; jobs of the same request belong together, one after the other.

    log: a JSON-lines file to which finished jobs are added, and from which those of the same weights and, if it is
    named, of the same machine are taken; delete it after changing code. engine: "local" runs with `pipeline`; "ray" on
    every machine of the cluster that Ray finds (or starts here), one job at a time on each so that times are clean,
    with pipelines that `load` makes there; a job whose machine fails is tried elsewhere. on_run(finished, all) is
    called after every job. Raises ValueError for unknown engines and where Ray is not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"The engine is {engine!r}; choose from {', '.join(ENGINES)}.")
    weights = fingerprint(pipeline) if log is not None else ""
    keys = {job: _key(job, weights, machine) for job in jobs}
    finished = _read(log)
    left = [job for job in jobs if keys[job] not in finished]
    done = len(jobs) - len(left)
    runs = (
        _locally(left, kind(lambda: pipeline, *given)) if engine == "local" else _with_ray(left, kind, (load, *given))
    )
    for job, result in runs:
        finished[keys[job]] = result
        if log is not None:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": keys[job], **result}) + "\n")
        done += 1
        if on_run is not None:
            on_run(done, len(jobs))
    return {job: finished[keys[job]] for job in jobs}


def fingerprint(pipeline: DiffusionPipeline) -> str:
    """Short hash of the denoiser's weights, so that runs of different weights are never mixed."""
    digest = hashlib.sha256()
    for tensor in pipeline.transformer.state_dict().values():
        digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def means(results: list[dict[str, Any]]) -> dict[str, float | None]:
    """Mean of every number over jobs of one method."""
    names = ("saving", "saving_all_steps", "psnr", "ssim")
    known = [name for name in names if results[0][name] is not None]
    return dict.fromkeys(names) | {name: float(np.mean([result[name] for result in results])) for name in known}


def _key(job: Job, weights: str, machine: str) -> str:
    known = {"method": job.method, "weights": weights} | ({"machine": machine} if machine else {})
    return json.dumps({**asdict(job.request), **known}, sort_keys=True)


def _locally(jobs: list[Job], worker: JobRunner) -> Iterator[tuple[Job, dict[str, Any]]]:
    for job in jobs:
        yield job, worker.run(job)


def _with_ray(
    jobs: list[Job], kind: Callable[..., JobRunner], given: tuple[Any, ...]
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Jobs as they finish, one worker a machine; those of a request stay with one worker while there are others."""
    if not jobs:
        return
    try:
        import ray
        from ray.exceptions import RayActorError
    except ImportError:
        raise ValueError(
            "The engine ray needs Ray; install it with pip install -r requirements-ray.txt, or 'timeripple[ray]'."
        ) from None
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False, include_dashboard=False)
    machines = [node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    remote = ray.remote(num_cpus=min(machines), scheduling_strategy="SPREAD")(kind)
    groups = [[job for job in jobs if job.request == request] for request in dict.fromkeys(job.request for job in jobs)]
    tries, running = dict.fromkeys(jobs, 0), {}

    def give(worker: Any, own: list[Job]) -> None:
        """The next job to a worker: of its request, or else of a request nobody has."""
        if not own and groups:
            own.extend(groups.pop(0))
        if own:
            running[worker.run.remote(own[0])] = worker, own

    try:
        for _ in range(min(len(machines), len(groups))):
            give(remote.remote(*given), [])
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            worker, own = running.pop(ready)
            job = own[0]
            try:
                result = ray.get(ready)
            except RayActorError:
                tries[job] += 1
                if tries[job] == TRIES:
                    raise RuntimeError(f"the worker died {TRIES} times at {job.method}") from None
                give(remote.remote(*given), own)
                continue
            own.pop(0)
            give(worker, own)
            yield job, result
    finally:
        if started_here:
            ray.shutdown()


def _read(log: Path | None) -> dict[str, dict[str, Any]]:
    """Finished runs by key; a last line that a crash cut short is closed, and what is no run is passed over."""
    runs = {}
    text = log.read_text(encoding="utf-8", errors="replace") if log is not None and log.exists() else ""
    if log is not None and text and not text.endswith("\n"):
        with log.open("a", encoding="utf-8") as file:
            file.write("\n")
    for line in text.splitlines():
        try:
            run = json.loads(line)
            runs[str(run.pop("key"))] = run
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError):
            continue
    return runs
