"""Speed against quality: every method on the same prompts and noise, and which of them nothing beats in both."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from timeripple.attention.config import GRANULARITIES
from timeripple.attention.timing import environment
from timeripple.bench.quality import QualityBench
from timeripple.bench.sweep import Job, fingerprint, means, sweep
from timeripple.clips.methods import parse_method
from timeripple.clips.models import load_pipeline

METHODS = (
    "token:0.7",
    "token:0.85",
    "token:0.4+taylorseer:3",
    "token:0.5+taylorseer:3",
    "token:0.7+taylorseer:4",
    "token:0.7+first-block-cache:0.1",
    "taylorseer:3",
    "taylorseer:4",
    "mag-cache:0.06",
    "first-block-cache:0.2",
    "pab:2",
    "faster-cache",
    "delta-dit:2:share=0.8",
    "svg",
    "skip:0.7",
    "compact:0.5",
    "ditfastattn:0.5",
    "re-ttention:0.5",
    "token-merge:0.5",
)
"""One point of every method, more of those near the front; with dense there are 20."""
SIZE = {"num_frames": 16, "height": 128, "width": 128}  # 4096 tokens


def pareto(
    pipeline: DiffusionPipeline,
    prompts: int = 4,
    methods: Sequence[str] = METHODS,
    log: Path | None = None,
    engine: str = "local",
    on_run: Callable[[int, int], None] | None = None,
    load: Callable[[], DiffusionPipeline] = load_pipeline,
    **size: int,
) -> dict[str, Any]:
    """`{"rows", "kind", "environment", "weights", ...settings}`, a row a method, the fastest last.

    Row: method, ours (whether token, tile or channel reuse is in it), seconds (median over prompts), speedup (mean of
    each prompt's dense seconds over its own), psnr (mean of dB against dense), ssim, saving_all_steps, saving_kind,
    front: no other row is as fast and as good. The settings are those of `QualityBench`, at 4096 tokens unless `size`
    says otherwise; log, engine and load as in `sweep`. Raises ValueError for methods and sizes that cannot be run.
    """
    bench = QualityBench(prompts, **{**SIZE, **size})
    bench.check(pipeline)
    for text in methods:
        parse_method(text).check(bench.steps)
    requests = bench.requests()
    jobs = [Job(request, text) for request in requests for text in ("dense", *methods)]
    results = sweep(jobs, pipeline, log, engine, on_run, load)
    dense = [results[Job(request, "dense")]["seconds"] for request in requests]
    rows = []
    for text in methods:
        runs = [results[Job(request, text)] for request in requests]
        seconds = [run["seconds"] for run in runs]
        speedup = statistics.fmean(base / own for base, own in zip(dense, seconds, strict=True))
        row = {"method": text, "ours": text.split(":")[0] in GRANULARITIES, "seconds": statistics.median(seconds)}
        rows.append(row | {"speedup": speedup} | means(runs) | {"saving_kind": runs[0]["saving_kind"]})
    rows.sort(key=lambda row: row["speedup"])
    for row in rows:
        row["front"] = not any(
            other["speedup"] >= row["speedup"] and other["psnr"] >= row["psnr"] and other is not row for other in rows
        )
    first = {"method": "dense", "ours": False, "seconds": statistics.median(dense), "speedup": 1.0, "front": False}
    first |= dict.fromkeys(("saving", "psnr", "ssim", "saving_kind")) | {"saving_all_steps": 0.0}
    return {
        "rows": [first, *rows],
        **asdict(bench),
        "weights": fingerprint(pipeline),
        "kind": "measured here",
        "environment": environment(pipeline),
    }
