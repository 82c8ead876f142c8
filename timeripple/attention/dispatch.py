"""The one door into attention with reuse: a call and a method in, output and statistics out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from timeripple.attention import reference
from timeripple.attention.call import AttentionCall
from timeripple.attention.method import Curve, Kind, Plan, ReuseMethod
from timeripple.attention.plans.curve import theta_for_saving
from timeripple.attention.timing import Mark, elapsed, mark
from timeripple.attention.torch_backend import dense_attention, warn_of_fallback

Backend = Literal["torch", "triton", "reference"]
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
    kind: Kind
    theta: float | Tensor | None
    marks: tuple[Mark, Mark, Mark]
    backend: Backend
    curve: Curve | None
    plan: Plan | None

    @property
    def plan_seconds(self) -> float:
        return elapsed(*self.marks[:2])

    @property
    def attention_seconds(self) -> float:
        return elapsed(*self.marks[1:])


def ripple_attention(
    call: AttentionCall,
    method: ReuseMethod,
    *,
    theta: float | Tensor | None = None,
    saving: float | None = None,
    curve: Curve | None = None,
    plan: Plan | None = None,
    residual: Tensor | None = None,
    backend: Backend | Literal["auto"] = "auto",
) -> tuple[Tensor, AttentionStatistics]:
    """Attention with reuse between the video tokens of the call; theta 0 or saving 0 is dense attention.

    theta: the threshold, or saving: the share to save, averaged over heads, from which the threshold of this call
    follows; by default what the method says. curve: of this call, where it has been measured before; plan: one made
    before, in place of all these where it is for as many samples and tokens: guidance may make passes with texts of
    different lengths. residual: shaped like the query, is added to the
    output. backend: "auto" is Triton on CUDA, with a warning and torch where its kernels do not compile or start, and
    torch elsewhere. Returns the output, shaped like the query, and the statistics. Raises ValueError for both theta and
    saving, for a method that has neither, and for an unknown backend.
    """
    kind = call.device.type
    if torch.is_autocast_enabled(kind):  # attention would be given this dtype; what decides what to reuse is not
        call = call.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            return ripple_attention(
                call, method, theta=theta, saving=saving, curve=curve, plan=plan, residual=residual, backend=backend
            )
    if theta is not None and saving is not None:
        raise ValueError(f"theta {theta} and saving {saving} exclude each other; give one of them.")
    if theta is None and saving is None:
        theta, saving = method.theta, method.budget
        if theta is None and saving is None and plan is None:
            raise ValueError(f"{method.label} is chosen for over a whole run; give this call a theta or a saving.")
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown; choose {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}.")

    start, measured = mark(call.device), None
    if plan is not None and (plan.batch, plan.tokens) != (call.batch, call.grid.tokens):
        plan = None
    if plan is None:
        measured = method.measure(call) if curve is None else curve
        if theta is None:
            target = saving or 0.0
            theta, wanted = theta_for_saving([measured], target), target > 0
        else:
            wanted = isinstance(theta, Tensor) or theta > 0
        plan = measured.plan(call, theta) if wanted else None
    planned = mark(call.device)
    used: Backend = "torch"
    if plan is None:
        output = dense_attention(call, residual=residual)
        realised = torch.zeros(call.heads, dtype=torch.float64)
    elif backend == "reference":
        output, realised = reference.attention(call, cast(reference.Settings, method), float(theta or 0.0))
        output = output if residual is None else output + residual
        used = "reference"
    else:
        output, used = _carry_out(backend, call, plan, residual)
        realised = plan.saving
    marks = start, planned, mark(call.device)
    return output, AttentionStatistics(realised, method.kind, theta, marks, used, measured, plan)


def _carry_out(backend: str, call: AttentionCall, plan: Plan, residual: Tensor | None) -> tuple[Tensor, Backend]:
    """Output, and the backend that computed it."""
    if backend == "triton" or (backend == "auto" and call.query.is_cuda):
        try:
            from timeripple.attention import triton_backend, triton_probe  # not every platform has Triton

            triton_probe.check(call.query)
            return triton_backend.attention(call, plan, residual=residual), "triton"
        except Exception as error:
            if backend == "triton":
                raise
            warn_of_fallback(error)
    output = plan.carry_out(call)
    return output if residual is None else output.add_(residual), "torch"
