"""How fast attention itself is: q, k and v of real denoising steps, every method on the same ones, interleaved."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from timeripple.attention import ripple_attention
from timeripple.attention.plan import measure, theta_for_saving
from timeripple.attention.torch_backend import dense_attention
from timeripple.config import ReuseConfig
from timeripple.generate import Request
from timeripple.pond.pipeline import SPATIAL_FACTOR, PondPipeline
from timeripple.probe import Capture, capture
from timeripple.timing import environment, now

SAVINGS = (0.5, 0.6, 0.7, 0.8)
GRANULARITIES = ("token", "tile")
PROMPT = "a red ball rolling left across the ocean at sunset"
WARMUPS = 2
FRAMES = 16


@dataclass(frozen=True)
class Timed:
    """One call: its output, and the share of its seconds that went into planning."""

    output: Tensor
    seconds: float
    plan_seconds: float = 0.0
    saving: float = 0.0


def request_for(tokens: int, steps: int = 20, seed: int = 0) -> Request:
    """A request of about this many tokens: 16 frames of a square. Raises ValueError for fewer than 256."""
    side = round((tokens / FRAMES) ** 0.5)
    if side < 4:
        raise ValueError(f"The number of tokens is {tokens}; give at least 256, such as 4096.")
    size = side * SPATIAL_FACTOR
    return Request(PROMPT, seed=seed, steps=steps, num_frames=FRAMES, height=size, width=size)


def attention(
    pipeline: PondPipeline,
    tokens: int = 4096,
    repeats: int = 7,
    steps: tuple[int, ...] = (4, 10, 16),
    layers: tuple[str, ...] = ("blocks.0.attn1", "blocks.2.attn1", "blocks.5.attn1"),
    savings: tuple[float, ...] = SAVINGS,
    granularities: tuple[str, ...] = GRANULARITIES,
    on_run: Callable[[int, int], None] | None = None,
) -> dict:
    """Rows: method, granularity, tokens, heads, head_dim, ms, speedup, ideal_speedup, saving, relative_error,
    planning_share.

    ms is the mean over the captured calls of the median over `repeats`, planning included; speedup is against the
    platform's scaled_dot_product_attention in the same run, ideal_speedup 1 / (1 - saving), relative_error
    |output - dense| / |dense| over all captured calls. As in a run under a budget, the threshold is known beforehand.
    """
    captures = capture(pipeline, request_for(tokens), steps, layers)
    methods = {"dense": (None, None), "core-dense": ("core", None)}
    methods |= {f"{name}:{saving}": (name, saving) for name in granularities for saving in savings}
    totals = {method: {"ms": 0.0, "plan_ms": 0.0, "saving": 0.0, "error": 0.0} for method in methods}
    norm = 0.0
    for index, captured in enumerate(captures):
        calls = {method: _call(captured, *how) for method, how in methods.items()}
        for call in calls.values():
            for _ in range(WARMUPS):
                call()
        timed: dict[str, list[Timed]] = {method: [] for method in methods}
        for _ in range(repeats):
            for method, call in calls.items():
                timed[method].append(call())
        reference = timed["dense"][0].output
        norm += reference.double().square().sum().item()
        for method, runs in timed.items():
            total = totals[method]
            total["ms"] += 1000 * statistics.median(run.seconds for run in runs) / len(captures)
            total["plan_ms"] += 1000 * statistics.median(run.plan_seconds for run in runs) / len(captures)
            total["saving"] += runs[0].saving / len(captures)
            total["error"] += (runs[0].output - reference).double().square().sum().item()
        if on_run is not None:
            on_run(index + 1, len(captures))
    _, heads, tokens, head_dim = captures[0].query.shape
    rows = [
        {
            "method": method,
            "granularity": methods[method][0] if methods[method][1] else None,
            "tokens": tokens,
            "heads": heads,
            "head_dim": head_dim,
            "ms": total["ms"],
            "speedup": totals["dense"]["ms"] / total["ms"],
            "ideal_speedup": 1 / (1 - total["saving"]),
            "saving": total["saving"],
            "relative_error": (total["error"] / norm) ** 0.5,
            "planning_share": total["plan_ms"] / total["ms"],
        }
        for method, total in totals.items()
    ]
    return {"rows": rows, "kind": "measured here", "environment": environment(pipeline)}


def _call(captured: Capture, name: str | None, saving: float | None) -> Callable[[], Timed]:
    """A method as a function without arguments that computes one captured call and times itself."""
    qkv = captured.query, captured.key, captured.value
    device = captured.query.device
    if saving is None:
        dense = torch.nn.functional.scaled_dot_product_attention if name is None else _core_dense(device)

        def call() -> Timed:
            start = now(device)
            output = dense(*qkv)
            return Timed(output, now(device) - start)

        return call

    config = ReuseConfig(name, budget=saving)
    theta = theta_for_saving([measure(*qkv[:2], captured.grid, config)], saving)

    def call() -> Timed:
        start = now(device)
        output, numbers = ripple_attention(*qkv, captured.grid, config, theta=theta)
        return Timed(output, now(device) - start, numbers.plan_seconds, numbers.saving.mean().item())

    return call


def _core_dense(device: torch.device) -> Callable[..., Tensor]:
    """The core's own dense attention: the Triton kernel on CUDA, elsewhere what the torch backend calls."""
    if device.type != "cuda":
        return dense_attention
    from timeripple.attention import triton_backend

    return triton_backend.dense_attention
