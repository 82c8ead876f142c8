"""How fast generation is: whole clips, every method on the same prompts and noise, interleaved and repeated."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from timeripple.attention.timing import environment, load, peak_memory
from timeripple.bench.attention import request_for
from timeripple.bench.quality import held_out_prompts
from timeripple.clips.generate import Request, generate
from timeripple.clips.methods import parse_method
from timeripple.clips.quality import measure
from timeripple.pond.pipeline import PondPipeline

TOKENS = (5184, 9216)
METHODS = (
    "dense",
    "token:0.75",
    "token:0.8",
    "token:0.85",
    "token:0.9",
    "tile:0.5",
    "channel:0.75",
)


def end_to_end(
    pipeline: PondPipeline,
    tokens: Sequence[int] = TOKENS,
    methods: Sequence[str] = METHODS,
    repeats: int = 3,
    on_run: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Rows: method, granularity, budget, tokens, seconds, speedup, amdahl_speedup, attention_share, planning_share,
    saving (over the reuse window), saving_all_steps, saving_kind, psnr, ssim, peak_mb.

    Every repeat is another prompt with other noise, the README's first, then held-out ones. seconds: median of whole
    generations, decoding included; speedup: against the first method, which is the reference of psnr (mean of dB) and
    ssim too; amdahl_speedup: 1 / (1 - share of the reference's attention * saving over all steps), what the saving
    could give if reuse cost nothing; peak_mb: most memory the process held. The order of the methods is turned round
    at every second repeat. Raises what `parse_method` and `Request.check` raise.
    """
    parsed = [parse_method(text) for text in methods]
    for request in map(request_for, tokens):
        request.check(pipeline)
        for method in parsed[1:]:
            method.check(request.steps)
    rows, done, load_before = [], 0, load()
    for count in tokens:
        runs: dict[str, list[dict[str, Any]]] = {method.text: [] for method in parsed}
        for repeat, request in enumerate(_requests(count, repeats)):
            clips = {}
            for method in parsed if repeat % 2 == 0 else reversed(parsed):
                with peak_memory(pipeline.device) as peak:
                    generation = generate(pipeline, request, method)
                clips[method.text] = generation.frames
                saving = generation.saving or {"reuse_steps": None, "all_steps": 0.0, "kind": None}
                runs[method.text].append({**generation.seconds, **saving, "peak": peak()})
                done += 1
                if on_run is not None:
                    on_run(done, repeats * len(parsed) * len(tokens))
            for method in parsed[1:]:
                runs[method.text][-1] |= measure(clips[method.text], clips[parsed[0].text])
        dense = _median(runs[parsed[0].text], "total")
        share = _median(runs[parsed[0].text], "attention") / dense
        for method in parsed:
            measured = runs[method.text]
            seconds, saved = _median(measured, "total"), _mean(measured, "all_steps") or 0.0
            rows.append(
                {
                    "method": method.text,
                    "granularity": getattr(method.config, "granularity", None),
                    "budget": getattr(method.config, "budget", None),
                    "tokens": request.tokens(pipeline),
                    "seconds": seconds,
                    "speedup": dense / seconds,
                    "amdahl_speedup": 1 / (1 - share * saved),
                    "attention_share": _median(measured, "attention") / seconds,
                    "planning_share": _median(measured, "plan") / _median(measured, "attention"),
                    "saving": _mean(measured, "reuse_steps"),
                    "saving_all_steps": saved,
                    "saving_kind": measured[0]["kind"],
                    "psnr": _mean(measured, "psnr"),
                    "ssim": _mean(measured, "ssim"),
                    "peak_mb": None if measured[0]["peak"] is None else max(run["peak"] for run in measured) / 1e6,
                }
            )
    machine = environment(pipeline) | {"load_before": load_before}
    return {"rows": rows, "kind": "measured here", "repeats": repeats, "environment": machine}


def _requests(tokens: int, repeats: int) -> list[Request]:
    first = request_for(tokens)
    others = enumerate(held_out_prompts(repeats - 1), start=1)
    return [first, *(replace(first, prompt=prompt, seed=seed) for seed, prompt in others)]


def _mean(runs: list[dict[str, Any]], name: str) -> float | None:
    """None where the runs do not have it."""
    values = [run[name] for run in runs if run.get(name) is not None]
    return statistics.mean(values) if values else None


def _median(runs: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(run[name] for run in runs))
