"""How fast generation is: whole clips, every method on the same prompt and noise, interleaved and repeated."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from timeripple.bench.attention import request_for
from timeripple.generate import generate
from timeripple.methods import parse_method
from timeripple.pond.pipeline import PondPipeline
from timeripple.quality import measure
from timeripple.timing import environment, peak_memory

TOKENS = (4096, 9216)
METHODS = (
    "dense",
    "token:0.75",
    "token:0.85",
    "token:0.92",
    "tile:0.5",
    "channel:0.75",
)


def end_to_end(
    pipeline: PondPipeline,
    tokens: Sequence[int] = TOKENS,
    methods: Sequence[str] = METHODS,
    repeats: int = 3,
    on_run: Callable[[int, int], None] | None = None,
) -> dict:
    """Rows: method, granularity, budget, tokens, seconds, speedup, amdahl_speedup, attention_share, saving,
    saving_kind, psnr, ssim, peak_mb.

    seconds: median of whole generations, decoding included; speedup: against the first method, which is the reference
    of psnr and ssim too; amdahl_speedup: 1 / (1 - share of the reference's attention * saving over all steps), what
    the saving could give if reuse cost nothing; peak_mb: most memory the process held. The order of the methods is
    turned round at every second repeat. Raises what `parse_method` and `Request.check` raise.
    """
    parsed = [parse_method(text) for text in methods]
    for request in map(request_for, tokens):
        request.check(pipeline)
        for method in parsed[1:]:
            if method.config is not None:
                method.config.schedule(request.steps)
    rows, done = [], 0
    for count in tokens:
        request = request_for(count)
        runs: dict[str, list[dict]] = {method.text: [] for method in parsed}
        clips = {}
        for repeat in range(repeats):
            for method in parsed if repeat % 2 == 0 else reversed(parsed):
                with peak_memory(pipeline.device) as peak:
                    generation = generate(pipeline, request, method)
                clips.setdefault(method.text, generation.frames)
                runs[method.text].append({**generation.seconds, "peak": peak(), "saving": generation.saving})
                done += 1
                if on_run is not None:
                    on_run(done, repeats * len(parsed) * len(tokens))
        reference = parsed[0].text
        dense = _median(runs[reference], "total")
        share = _median(runs[reference], "attention") / dense
        for method in parsed:
            measured, saving = runs[method.text], runs[method.text][0]["saving"]
            seconds = _median(measured, "total")
            quality = measure(clips[method.text], clips[reference]) if method.text != reference else {}
            peaks = [run["peak"] for run in measured if run["peak"] is not None]
            rows.append(
                {
                    "method": method.text,
                    "granularity": getattr(method.config, "granularity", None),
                    "budget": getattr(method.config, "budget", None),
                    "tokens": request.num_frames * (request.height // 8) * (request.width // 8),
                    "seconds": seconds,
                    "speedup": dense / seconds,
                    "amdahl_speedup": 1 / (1 - share * (saving["all_steps"] if saving else 0)),
                    "attention_share": _median(measured, "attention") / seconds,
                    "planning_share": _median(measured, "plan") / _median(measured, "attention"),
                    "saving": saving["reuse_steps"] if saving else None,
                    "saving_kind": saving["kind"] if saving else None,
                    "psnr": quality.get("psnr"),
                    "ssim": quality.get("ssim"),
                    "peak_mb": max(peaks) / 1e6 if peaks else None,
                }
            )
    return {"rows": rows, "kind": "measured here", "repeats": repeats, "environment": environment(pipeline)}


def _median(runs: list[dict], name: str) -> float:
    return statistics.median(run[name] for run in runs)
