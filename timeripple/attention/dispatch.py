"""The one door into attention with reuse: query, key, value and a grid in, output and statistics out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from timeripple.attention import plan as planning
from timeripple.attention import reference, torch_backend
from timeripple.attention.plan import (
    ChannelCurve,
    ChannelPlan,
    TileCurve,
    TilePlan,
    TokenCurve,
    TokenPlan,
    theta_for_saving,
)
from timeripple.config import ReuseConfig
from timeripple.grid import TokenGrid
from timeripple.timing import elapsed, mark

BACKENDS = ("auto", "torch", "triton", "reference")


@dataclass(frozen=True)
class AttentionStatistics:
    """What one call of attention saved and took.

    saving: [heads], mean over the batch; kind: whether rows were really left out or, for channel reuse, could be;
    theta: the threshold used, a tensor without dimensions where it was found on the device; marks: when planning
    began, when it was done and when all was done; backend: which one computed; curve: saving at any other threshold;
    plan: what was carried out. Curve and plan are None where there was none: for a plan that was given, for dense
    attention. On CUDA nothing here was waited for; reading a number does.
    """

    saving: Tensor
    kind: Literal["realised", "theoretical"]
    theta: float | Tensor | None
    marks: tuple
    backend: Literal["torch", "triton", "reference"]
    curve: TokenCurve | TileCurve | ChannelCurve | None
    plan: TokenPlan | TilePlan | ChannelPlan | None

    @property
    def plan_seconds(self) -> float:
        return elapsed(*self.marks[:2])

    @property
    def attention_seconds(self) -> float:
        return elapsed(*self.marks[1:])


def window_deviations(video: Tensor, weight: Tensor, table: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """`plan.window_deviations` with what is fastest on the device: on CUDA a kernel, where it compiles and starts."""
    if video.is_cuda:
        try:
            from timeripple.attention import triton_backend, triton_probe

            triton_probe.check(video)
            return triton_backend.window_deviations(video, weight, table, axes)
        except Exception as error:
            _warn_of(error)
    return planning.window_deviations(video, weight, table, axes)


measure = partial(planning.measure, deviations=window_deviations)
"""How a call is measured unless a baseline chooses otherwise."""


def ripple_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grid: TokenGrid,
    config: ReuseConfig,
    *,
    theta: float | Tensor | None = None,
    saving: float | None = None,
    plan: TokenPlan | TilePlan | None = None,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    residual: Tensor | None = None,
    backend: Literal["auto", "torch", "triton", "reference"] = "auto",
    measure: Callable[..., TokenCurve | TileCurve | ChannelCurve] = measure,
) -> tuple[Tensor, AttentionStatistics]:
    """Attention with reuse between the video tokens of `grid`; theta 0 or saving 0 is dense attention.

    query, key, value: [batch, heads, tokens, d], as the model hands them to attention (after RoPE). theta: the
    threshold, or saving: the share to save, averaged over heads, from which the threshold of this call follows; by
    default what the config says. plan: one made before, for as many heads on this grid, in place of both. scale: of
    the logits, 1/sqrt(d) by default. key_mask: bool [batch, tokens], False for text keys that no query sees. residual:
    shaped like query, is added to the output. backend: "auto" is Triton on CUDA, with a warning and torch where its
    kernels do not compile or start, and torch elsewhere. measure: replaces `measure` above, for baselines.
    Returns the output, shaped like query, and the statistics. Raises ValueError for shapes that do not fit the grid,
    a mask that hides video tokens, or both theta and saving.
    """
    if theta is not None and saving is not None:
        raise ValueError(f"theta {theta} and saving {saving} exclude each other; give one of them.")
    if theta is None and saving is None:
        theta, saving = config.theta, config.budget
    key_mask = check_inputs(query, key, value, grid, key_mask)
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown; choose {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}.")

    start, curve = mark(query.device), None
    if plan is None:
        curve = measure(query, key, grid, config, scale=scale, key_mask=key_mask)
        asked = saving if theta is None else theta
        theta = theta_for_saving([curve], saving) if theta is None else theta
        if isinstance(asked, Tensor) or asked > 0:
            plan = curve.plan(query, key, theta)
    planned = mark(query.device)
    arguments = {"scale": scale, "key_mask": key_mask, "residual": residual}
    if plan is None:
        output, backend = torch_backend.dense_attention(query, key, value, **arguments), "torch"
        realised = torch.zeros(query.shape[1], dtype=torch.float64)
    elif backend == "reference":
        output, realised = reference.attention(
            query, key, value, grid, config, float(theta), scale=scale, key_mask=key_mask
        )
        output = output if residual is None else output + residual
    else:
        output, backend = _carry_out(backend, query, key, value, plan, arguments)
        realised = plan.saving
    marks = start, planned, mark(query.device)
    kind = "theoretical" if config.granularity == "channel" else "realised"
    return output, AttentionStatistics(realised, kind, theta, marks, backend, curve, plan)


def _carry_out(backend: str, query: Tensor, key: Tensor, value: Tensor, plan, arguments: dict) -> tuple[Tensor, str]:
    """Output, and the backend that computed it."""
    if backend == "triton" or (backend == "auto" and query.is_cuda):
        try:
            from timeripple.attention import triton_backend, triton_probe  # not every platform has Triton

            triton_probe.check(query)
            return triton_backend.attention(query, key, value, plan, **arguments), "triton"
        except Exception as error:
            if backend == "triton":
                raise
            _warn_of(error)
    return torch_backend.attention(query, key, value, plan, **arguments), "torch"


def _warn_of(error: Exception) -> None:
    reason = " ".join(str(error).split())[:200]
    warnings.warn(f"Triton kernels do not run here, PyTorch's attention is used instead: {reason}", stacklevel=4)


def check_inputs(query: Tensor, key: Tensor, value: Tensor, grid: TokenGrid, key_mask: Tensor | None) -> Tensor | None:
    """Raises ValueError for inputs that do not fit the grid; returns the key mask, None where it hides nothing."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim != 4 or x.shape[2] != grid.tokens:
            raise ValueError(
                f"{name} of shape {tuple(x.shape)} does not fit {grid}; give [batch, heads, {grid.tokens}, d]."
            )
    if key_mask is None or key_mask.all():
        return None
    if not key_mask[:, grid.video].all():
        raise ValueError("key_mask hides video tokens, but reuse needs the whole grid; mask text tokens only.")
    return key_mask
