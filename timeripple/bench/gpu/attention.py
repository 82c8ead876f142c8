"""Milliseconds of attention in the shapes of real models, planning apart, and what one call is made of.

Inputs are noise with the correlations of Pond's q, k and v, so times and savings are those of real plans, while errors
are those of this noise and of no model.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from timeripple.attention.call import AttentionCall
from timeripple.attention.config import ReuseConfig
from timeripple.attention.dispatch import ripple_attention
from timeripple.attention.grid import TokenGrid
from timeripple.attention.method import Plan
from timeripple.attention.plans.curve import theta_for_saving
from timeripple.attention.plans.token import TokenPlan
from timeripple.attention.residuals import Residuals, Storage
from timeripple.attention.timing import elapsed, mark, now
from timeripple.attention.torch_backend import dense_attention
from timeripple.bench.gpu.findings import Findings, reason
from timeripple.bench.gpu.profile import profile_call
from timeripple.inspection.correlations import correlated_noise

SHAPES = {  # grid, heads, head_dim; the smaller ones first
    "ltx 121x512x768": (TokenGrid(16, 16, 24), 32, 64),
    "cogvideox-5b 49x480x720": (TokenGrid(13, 30, 45, text_before=226), 48, 64),
    "wan-1.3b 81x480x832": (TokenGrid(21, 30, 52), 12, 128),
    "wan-1.3b 81x720x1280": (TokenGrid(21, 45, 80), 12, 128),
    "hunyuan-video 129x720x1280": (TokenGrid(33, 45, 80, text_after=256), 24, 128),
    "wan-14b 81x720x1280": (TokenGrid(21, 45, 80), 40, 128),
}
PROFILED = "wan-1.3b 81x480x832"
SMALL_SHAPES = {"small": (TokenGrid(2, 4, 6, text_before=2), 1, 16)}
SAVINGS = (0.5, 0.7, 0.85)
POND = {  # correlations along t, y, x and standard deviation, recorded on the first edition at 2304 tokens
    "query": ((0.56, 0.43, 0.51), 1.0),
    "key": ((0.58, 0.45, 0.52), 1.0),
    "value": ((0.38, 0.25, 0.32), 3.6),
}
WARMUPS, ROUNDS = 2, 9
SECONDS_A_METHOD = 1.0  # beyond the first round; slower calls are timed less often, but three times


def run(findings: Findings, device: str, small: bool) -> None:
    """Rows: shape, tokens, heads, head_dim, method, saving, ms, plan_ms, host_ms, speedup, speedup_planned, tflops,
    relative_error, failure.

    ms: on the device, median, of calls queued one after the other, with a plan kept; plan_ms: of measuring, finding
    the threshold and building the plan; host_ms: until such a call has returned; speedup: over the faster of cuDNN's
    and flash attention, speedup_planned: with planning at every call; tflops: of the pairs that are computed;
    relative_error: |output - dense| / |dense|. "profiles": see `profile.profile_call`.
    """
    warnings.filterwarnings("error", message="Triton kernels do not run")
    torch.set_grad_enabled(False)
    for name, (grid, heads, head_dim) in (SMALL_SHAPES if small else SHAPES).items():
        if findings.left < 5:
            findings.note(f"{name} was left out: no time was left")
            continue
        try:
            Bench(name, grid, heads, head_dim, device, findings).run(profiled=small or name == PROFILED)
        except Exception as error:  # out of memory, most likely: the next shape may fit
            findings.note(f"{name}: {reason(error)}")
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()


@dataclass
class Timing:
    ms: float
    host_ms: float


class Bench:
    """All methods on one q, k and v."""

    def __init__(self, name: str, grid: TokenGrid, heads: int, head_dim: int, device: str, findings: Findings):
        self.name, self.grid, self.device, self.findings = name, grid, torch.device(device), findings
        self.hurried = name in SMALL_SHAPES
        generator = torch.Generator(device).manual_seed(0)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        query, key, value = (
            correlated_noise(grid, heads, head_dim, *POND[part], generator).to(dtype)
            for part in ("query", "key", "value")
        )
        self.call = AttentionCall(query, key, value, grid)
        self.exact: Tensor | None = None
        self.fastest: float | None = None
        self.flops = 4 * grid.tokens**2 * heads * head_dim

    def run(self, profiled: bool) -> None:
        for method, call in self._dense_calls().items():
            self._try(method, partial(self._dense, method, call))
        for granularity in ("token", "tile"):
            for saving in SAVINGS:
                self._try(f"{granularity}:{saving}", partial(self._planned, granularity, saving))
        self._try("token, all merged", self._all_merged)
        if profiled:
            for what, profiled_call in self._profiled_calls().items():
                self._try(f"profile of {what}", partial(self._profile, what, profiled_call))

    def _try(self, method: str, function: Callable[[], None]) -> None:
        if self.findings.left < 2:
            self.findings.note(f"{self.name}, {method} was left out: no time was left")
            return
        try:
            function()
        except Exception as error:
            self.findings.add(self._row(method, failure=reason(error)))

    def _row(self, method: str, **values: Any) -> dict[str, Any]:
        _, heads, tokens, head_dim = self.call.query.shape
        return {
            "shape": self.name,
            "tokens": tokens,
            "heads": heads,
            "head_dim": head_dim,
            "method": method,
            "saving": None,
            "ms": None,
            "plan_ms": None,
            "host_ms": None,
            "speedup": None,
            "speedup_planned": None,
            "tflops": None,
            "relative_error": None,
            "failure": None,
        } | values

    # --- dense -------------------------------------------------------------------------------------------------------

    def _dense_calls(self) -> dict[str, Callable[[], Tensor]]:
        from timeripple.attention import triton_backend

        calls: dict[str, Callable[[], Tensor]] = {}
        if self.device.type == "cuda":
            backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
            calls = {name: partial(_with_backend, backend, self.call) for name, backend in backends.items()}
        calls["sdpa"] = partial(dense_attention, self.call)
        calls["core-dense"] = partial(triton_backend.dense_attention, self.call)
        return calls

    def _dense(self, method: str, call: Callable[[], Tensor]) -> None:
        output = call()
        if self.exact is None:
            self.exact = output
        timing = self._time(call)
        if method != "core-dense":
            self.fastest = min(timing.ms, self.fastest or timing.ms)
        self._add(method, timing, 0.0, output)

    # --- reuse -------------------------------------------------------------------------------------------------------

    def _planned(self, granularity: str, saving: float) -> None:
        plan = self._plan(granularity, saving)
        planning = self._time(partial(self._plan, granularity, saving))
        call = partial(self._carry_out, plan)
        output = call()
        self._add(f"{granularity}:{saving}", self._time(call), _saving(plan), output, planning.ms)

    def _all_merged(self) -> None:
        """A call between refreshes at its cheapest: 1/64 of the pairs, and the error to expect added to the output."""
        plan, residuals = self._everything_merged()
        call = partial(self._between_refreshes, plan, residuals)
        self._add("token, all merged", self._time(call), _saving(plan), call())

    def _plan(self, granularity: str, saving: float) -> Plan:
        """As a refresh makes it."""
        curve = ReuseConfig(granularity, budget=saving).measure(self.call)
        return curve.plan(self.call, theta_for_saving([curve], saving))

    def _carry_out(self, plan: Plan, residual: Tensor | None = None) -> Tensor:
        granularity = "token" if isinstance(plan, TokenPlan) else "tile"
        config = ReuseConfig(granularity, budget=0.5)
        return ripple_attention(self.call, config, plan=plan, residual=residual, backend="triton")[0]

    def _everything_merged(self) -> tuple[Plan, Residuals]:
        """The plan, and residuals with a slope as two refreshes leave them: the error of this plan, twice."""
        plan = ReuseConfig("token", budget=0.5).measure(self.call).plan(self.call, 1e9)
        residuals = Residuals(Storage(None, 1, 2))
        error = dense_attention(self.call) - self._carry_out(plan)
        residuals.keep("layer", 0, error)
        residuals.keep("layer", 4, error)
        return plan, residuals

    def _between_refreshes(self, plan: Plan, residuals: Residuals) -> Tensor:
        return self._carry_out(plan, residuals.at("layer", 6))

    def _profiled_calls(self) -> dict[str, Callable[[], object]]:
        plan, residuals = self._everything_merged()
        kept = {name: self._plan(name, 0.7) for name in ("token", "tile")}
        return {
            "token between refreshes, all merged": partial(self._between_refreshes, plan, residuals),
            "token:0.7 with a plan kept": partial(self._carry_out, kept["token"]),
            "token:0.7 planned": lambda: self._carry_out(self._plan("token", 0.7)),
            "tile:0.7 with a plan kept": partial(self._carry_out, kept["tile"]),
            "tile:0.7 planned": lambda: self._carry_out(self._plan("tile", 0.7)),
        }

    def _profile(self, what: str, call: Callable[[], object]) -> None:
        for row in profile_call(call, self.device, 1 if self.hurried else 3):
            self.findings.add({"shape": self.name, "call": what, **row}, under="profiles")

    # --- measuring ---------------------------------------------------------------------------------------------------

    def _time(self, call: Callable[[], object]) -> Timing:
        """Medians over calls that are queued without waiting, as in a run; outputs are dropped at once."""
        for _ in range(0 if self.hurried else WARMUPS):
            call()
        start = now(self.device)
        call()
        once = now(self.device) - start
        rounds = 1 if self.hurried else max(3, min(ROUNDS, int(SECONDS_A_METHOD / once)))
        marks, hosts = [mark(self.device)], []
        for _ in range(rounds):
            started = now()
            call()
            hosts.append(now() - started)
            marks.append(mark(self.device))
        between = [elapsed(*pair) for pair in pairwise(marks)]
        return Timing(1000 * statistics.median(between), 1000 * statistics.median(hosts))

    def _add(self, method: str, timing: Timing, saving: float, output: Tensor, plan_ms: float | None = None) -> None:
        if self.exact is None:
            self.exact = dense_attention(self.call)
        if self.fastest is None:
            self.fastest = self._time(partial(dense_attention, self.call)).ms
        row = self._row(
            method,
            saving=saving,
            ms=timing.ms,
            plan_ms=plan_ms,
            host_ms=timing.host_ms,
            speedup=self.fastest / timing.ms,
            speedup_planned=self.fastest / (timing.ms + (plan_ms or 0.0)),
            tflops=self.flops * (1 - saving) / timing.ms / 1e9,
            relative_error=relative_error(output, self.exact),
        )
        if row["relative_error"] != row["relative_error"]:
            row["failure"] = "the output holds NaN"
        self.findings.add(row)


def relative_error(output: Tensor, exact: Tensor) -> float:
    """|output - exact| / |exact|, head by head, so that large outputs need little memory."""
    pairs = zip(output.flatten(0, 1), exact.flatten(0, 1), strict=True)
    squares = [((a.float() - b.float()).square().sum(), b.float().square().sum()) for a, b in pairs]
    error, size = (torch.stack(part).double().sum() for part in zip(*squares, strict=True))
    return (error / size).sqrt().item()


def _saving(plan: Plan) -> float:
    return plan.saving.mean().item()


def _with_backend(backend: SDPBackend, call: AttentionCall) -> Tensor:
    with sdpa_kernel(backend):
        return dense_attention(call)
