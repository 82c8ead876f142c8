"""How fast attention itself is: every method on the same q, k and v, interleaved.

They come from real denoising steps of Pond, or, in the shapes of models that do not fit here, from noise with Pond's
correlations along the axes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from timeripple.attention import AttentionCall, ripple_attention
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import AXES, TokenGrid
from timeripple.attention.plans.curve import theta_for_saving
from timeripple.attention.residuals import Residuals, Storage
from timeripple.attention.timing import now
from timeripple.attention.torch_backend import dense_attention
from timeripple.clips.generate import Request
from timeripple.inspection.correlations import axis_correlation, correlated_noise
from timeripple.inspection.probe import Capture, capture
from timeripple.pond.autoencoder import SPATIAL_FACTOR
from timeripple.pond.pipeline import PondPipeline, latent_frames

SHAPES = {  # grid, heads, head_dim
    "hunyuan-video": (TokenGrid(33, 45, 80), 24, 128),  # 720p, 129 frames
    "wan2.1": (TokenGrid(21, 30, 52), 12, 128),  # 480p, the 1.3B model
    "cogvideox": (TokenGrid(13, 30, 45, text_before=226), 30, 64),
}
STEPS = (4, 10, 16)
LAYERS = ("blocks.0.attn1", "blocks.3.attn1", "blocks.7.attn1")
SAVINGS = (0.5, 0.6, 0.7, 0.8)
GRANULARITIES = ("token", "tile")
PROMPT = "a red ball rolling left across the ocean at sunset"
WARMUPS = 2
FRAMES, FEWEST_TOKENS = 33, 256


@dataclass(frozen=True)
class Timed:
    """One call: its output, and the share of its seconds that went into planning."""

    output: Tensor | None
    seconds: float
    plan_seconds: float = 0.0
    saving: float = 0.0


def request_for(tokens: int, steps: int = 20, seed: int = 0) -> Request:
    """A request of about this many tokens: 33 frames of a square. Raises ValueError for fewer than 256."""
    if tokens < FEWEST_TOKENS:
        raise ValueError(f"The number of tokens is {tokens}; give at least {FEWEST_TOKENS}, such as 5184.")
    size = round((tokens / latent_frames(FRAMES)) ** 0.5) * SPATIAL_FACTOR
    return Request(PROMPT, seed=seed, steps=steps, num_frames=FRAMES, height=size, width=size)


def pond_captures(
    pipeline: PondPipeline, tokens: int, steps: tuple[int, ...] = STEPS, layers: tuple[str, ...] = LAYERS
) -> list[Capture]:
    """q, k and v of a dense generation. Raises ValueError as `request_for` and `Request.check` do."""
    return capture(pipeline, request_for(tokens), steps, layers)


def synthetic_captures(captures: list[Capture], grid: TokenGrid, heads: int, head_dim: int) -> list[Capture]:
    """One call in another shape: Gaussian q, k, v as correlated between neighbours along t, y and x as captured ones.

    Correlations and standard deviations are means over captures, heads and channels. Each axis is an autoregressive
    process of order 1; text tokens are not correlated.
    """
    device, dtype = captures[0].query.device, captures[0].query.dtype
    generator = torch.Generator(device).manual_seed(0)

    def similar(name: str) -> Tensor:
        known = [(getattr(captured, name).float(), captured.grid) for captured in captures]
        correlations = [
            torch.stack([axis_correlation(y, g, axis, 1).mean() for y, g in known]).mean().item() for axis in AXES
        ]
        std = torch.stack([y.std() for y, _ in known]).mean().item()
        noise = correlated_noise(grid, heads, head_dim, correlations, std, generator).to(dtype)
        return noise.transpose(1, 2).contiguous().transpose(1, 2)  # token by token, as models hold them

    query, key, value = map(similar, ("query", "key", "value"))
    return [Capture(captures[0].step, "synthetic", query, key, value, grid)]


def attention(
    captures: list[Capture],
    repeats: int = 7,
    savings: tuple[float, ...] = SAVINGS,
    granularities: tuple[str, ...] = GRANULARITIES,
    on_run: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Rows: method, granularity, tokens, heads, head_dim, ms, ms_spread, speedup, kept_plan_speedup, ideal_speedup,
    saving, relative_error, planning_share.

    ms is the mean over the captured calls of the median over `repeats`, planning at every call included, and ms_spread
    that of the quartiles, [lower, upper]; speedup is against the fastest of the platform's scaled_dot_product_attention
    in the same run, kept_plan_speedup the same without planning, as on the steps between refreshes; ideal_speedup 1 /
    (1 - saving); relative_error |output - dense| / |dense| over all captured calls. As in a run, the threshold is known
    beforehand. "token, all merged" is a call between refreshes in which every window merges and the kept error, here
    its own, is given back.
    """
    device = captures[0].query.device
    platform = {f"dense-{name}": ("platform", backend) for name, backend in _sdpa_backends(device).items()}
    methods: dict[str, tuple[str, Any]] = {"dense": ("platform", None), **platform, "core-dense": ("core", None)}
    methods |= {f"{name}:{saving}": (name, saving) for name in granularities for saving in savings}
    methods["token, all merged"] = ("between refreshes", None)
    totals = {
        method: {"low": 0.0, "ms": 0.0, "high": 0.0, "plan_ms": 0.0, "saving": 0.0, "error": 0.0} for method in methods
    }
    norm = 0.0
    for index, captured in enumerate(captures):
        calls = {method: _call(captured, *how) for method, how in methods.items()}
        for call in calls.values():
            for _ in range(WARMUPS):
                call()
        outputs: dict[str, Any] = {method: call().output for method, call in calls.items()}
        timed: dict[str, list[Timed]] = {method: [] for method in methods}
        for _ in range(repeats):
            for method, call in calls.items():
                timed[method].append(replace(call(), output=None))  # many of them fill the memory of a GPU
        reference = outputs["dense"]
        norm += reference.double().square().sum().item()
        for method, runs in timed.items():
            total = totals[method]
            total["plan_ms"] += 1000 * statistics.median(run.plan_seconds for run in runs) / len(captures)
            quartiles = np.percentile([run.seconds for run in runs], [25, 50, 75])
            for name, seconds in zip(("low", "ms", "high"), quartiles.tolist(), strict=True):
                total[name] += 1000 * seconds / len(captures)
            total["saving"] += runs[0].saving / len(captures)
            total["error"] += (outputs[method] - reference).double().square().sum().item()
        if on_run is not None:
            on_run(index + 1, len(captures))
    _, heads, tokens, head_dim = captures[0].query.shape
    dense = min(totals[name]["ms"] for name in ("dense", *platform))
    return [
        {
            "method": method,
            "granularity": methods[method][0] if methods[method][0] in granularities else None,
            "tokens": tokens,
            "heads": heads,
            "head_dim": head_dim,
            "ms": total["ms"],
            "ms_spread": [total["low"], total["high"]],
            "speedup": dense / total["ms"],
            "kept_plan_speedup": dense / (total["ms"] - total["plan_ms"]),
            "ideal_speedup": 1 / (1 - total["saving"]),
            "saving": total["saving"],
            "relative_error": (total["error"] / norm) ** 0.5,
            "planning_share": total["plan_ms"] / total["ms"],
        }
        for method, total in totals.items()
    ]


def _sdpa_backends(device: torch.device) -> dict[str, SDPBackend]:
    """What scaled_dot_product_attention can be told to use, beside its own choice."""
    if device.type != "cuda":
        return {}
    return {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def _call(captured: Capture, name: str, how: Any) -> Callable[[], Timed]:
    """A method as a function without arguments that computes one captured call and times itself.

    name: "platform" with an SDPBackend or None in `how`, "core", "between refreshes", or a granularity with a saving in
    `how`.
    """
    asked = AttentionCall(captured.query, captured.key, captured.value, captured.grid)
    device = asked.device
    if name in ("platform", "core"):
        dense = dense_attention if name == "platform" else _core_dense(device)

        def densely() -> Timed:
            with nullcontext() if how is None else sdpa_kernel(how):
                start = now(device)
                output = dense(asked)
                return Timed(output, now(device) - start)

        return densely

    if name == "between refreshes":
        return _between_refreshes(asked)
    config = ReuseConfig(name, budget=how)
    theta = theta_for_saving([config.measure(asked)], how)

    def call() -> Timed:
        start = now(device)
        output, numbers = ripple_attention(asked, config, theta=theta)
        return Timed(output, now(device) - start, numbers.plan_seconds, numbers.saving.mean().item())

    return call


def _between_refreshes(asked: AttentionCall) -> Callable[[], Timed]:
    config, residuals = ReuseConfig("token"), Residuals(Storage(None, 1, tensors=2))
    plan = config.measure(asked).plan(asked, math.inf)
    for time in (0, 4):
        residuals.keep("layer", time, dense_attention(asked) - plan.carry_out(asked))

    def call() -> Timed:
        start = now(asked.device)
        output, numbers = ripple_attention(asked, config, plan=plan, residual=residuals.at("layer", 6))
        return Timed(output, now(asked.device) - start, 0.0, numbers.saving.mean().item())

    return call


def _core_dense(device: torch.device) -> Callable[[AttentionCall], Tensor]:
    """The core's own dense attention: the Triton kernel on CUDA, elsewhere what the torch backend calls."""
    if device.type != "cuda":
        return dense_attention
    from timeripple.attention import triton_backend

    return triton_backend.dense_attention
