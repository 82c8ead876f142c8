"""The state of one generation: thresholds, plans and residuals from step to step, independent of any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.dispatch import AttentionStatistics, Backend, ripple_attention
from timeripple.attention.method import Curve, Plan, ReuseMethod, Step
from timeripple.attention.plans.curve import theta_for_saving
from timeripple.attention.records import Records, mean_by_step
from timeripple.attention.residuals import Residuals, Storage
from timeripple.attention.timing import mark
from timeripple.attention.torch_backend import dense_attention


@dataclass(frozen=True)
class Kept:
    """A plan of one layer, the threshold it was made with and the step it was made at."""

    plan: Plan
    theta: float | Tensor | None
    step: Step
    shape: torch.Size  # of the query


@dataclass
class PassState:
    """What one guidance pass (conditional, unconditional) carries from step to step.

    residuals: of the layers, as measured at their last refresh; refreshed: the step of that, by layer; curves: of all
    layers, from the last step that looked at them.
    """

    residuals: Residuals
    refreshed: dict[str, int] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)


class ReuseRun:
    """Attention of one generation. The model's hooks call, for every forward pass of the transformer,

        run.begin_forward(pass_name, step_index)
        output = run.attention(layer, call)    # in every self-attention layer
        run.end_forward()

    Under a budget, one threshold per step serves all layers and heads, so that each reuses as much as it can bear; it
    is found from what the layers measured one step before. Residual feedback: a refresh step keeps R = dense - reused
    output of each layer, a reuse step adds it to its reused output, continued linearly from the last two, in the time
    that the solver integrates over where the hook tells it (`set_times`).

    An error belongs to its plan: a slope between the errors of two plans is no slope. So with feedback a layer plans
    once in a run, at its first refresh, with a threshold of its own at which its heads save what the budget asks; only
    a ramp, which asks for another amount at every step, plans anew. And the first pass of a step plans for the passes
    after it: guidance takes the difference of two passes times its scale, and an error that both make alike stays out
    of it. (Channel plans hold the values of their pass and step, so there every pass plans for itself, at every step.)

    records: see `Records.read`.
    """

    def __init__(self, config: ReuseMethod, num_inference_steps: int):
        self.config = config
        self.limit_memory(None, 1)
        self.steps = config.schedule(num_inference_steps)
        self._times: list[float] = [step.index for step in self.steps]
        self._records = Records()
        self._one_threshold = config.budget is not None and not config.feedback
        self._backend: Backend | Literal["auto"] = "auto"  # and what that came to, so that a failure is not repeated
        self._passes: dict[str, PassState] = {}
        self._plans: dict[str, Kept] = {}

    def limit_memory(self, limit: int | None, layers: int) -> None:
        """How many bytes the errors of so many layers may take, see `residuals.Storage`; before the first step."""
        self.storage = Storage(limit, layers, tensors=2 if self.config.extrapolate else 1)

    def set_times(self, times: Sequence[float]) -> None:
        """Where in time every step is, rising or falling, as timesteps are; by default they are evenly spaced."""
        self._times = list(times)

    def begin_forward(self, pass_name: str, step_index: int) -> None:
        """Raises ValueError for a step the schedule does not have."""
        if not 0 <= step_index < len(self.steps):
            raise ValueError(f"step {step_index} is outside the run's {len(self.steps)} steps; start a new ReuseRun.")
        self._name, self._step = pass_name, self.steps[step_index]
        self._pass = self._passes.setdefault(pass_name, PassState(Residuals(self.storage)))
        self._follows = pass_name != next(iter(self._passes)) and self.config.plans_last
        self._due = max((step.index for step in self.steps[:step_index] if step.kind == "refresh"), default=0)
        self._curves: list[Curve] = []
        self._theta: float | Tensor | None = self._step.theta
        self._saving = self._step.saving_target
        if self._saving is not None and not (self.config.feedback and self._step.kind == "reuse"):
            self._saving = self._target(self._step)
        if self._saving is not None and self._pass.curves:
            self._theta = theta_for_saving(self._pass.curves, self._saving)
        reuse_follows = any(step.kind != "dense" for step in self.steps[step_index + 1 : step_index + 2])
        self._measures = reuse_follows and self._one_threshold

    def attention(self, layer: str, call: AttentionCall) -> Tensor:
        """Output of one layer, [batch, heads, tokens, d] like the query; errors as in `ripple_attention`."""
        step, residual = self._step, None
        if step.kind == "dense" or (self.config.feedback and self.storage.full(layer)):
            return self._dense(layer, call)
        if step.kind == "reuse" and self.config.feedback:
            if self._pass.refreshed.get(layer, -1) >= self._due:
                residual = self._pass.residuals.at(layer, self._times[step.index], call.value)
            if residual is None:  # a pass, a layer or a size that was not there at the refresh, or a cache left it out
                step = replace(step, kind="refresh")
        output, statistics = self._reuse(layer, call, self._kept(layer, call), residual)
        if statistics.curve is not None:
            self._curves.append(statistics.curve)
            self._keep_plan(layer, call, statistics)
        saving = statistics.saving
        if step.kind == "refresh":
            dense = dense_attention(call)
            plan = statistics.plan if self.config.plans_last else None
            self._pass.residuals.keep(layer, self._times[step.index], dense - output, plan)
            self._pass.refreshed[layer] = step.index
            output, saving = dense, saving - 1
        marks = (*statistics.marks[:2], mark(call.device))
        self._records.add(step, self._name, layer, statistics.theta, saving, marks)
        return output

    def skipped(self, layer: str, heads: int) -> None:
        """Takes note of a layer whose attention was not asked for in this forward pass, as caches have it."""
        self._records.add_skipped(self._step, self._name, layer, heads)

    def _reuse(
        self, layer: str, call: AttentionCall, kept: Kept | None, residual: Tensor | None
    ) -> tuple[Tensor, AttentionStatistics]:
        """`ripple_attention` with what this step asks for, under the plan that was kept if there is one."""
        theta = kept.theta if kept else self._theta
        return ripple_attention(
            call,
            self.config,
            theta=theta,
            saving=self._saving if theta is None else None,
            plan=kept.plan if kept else None,
            residual=residual,
            backend=self._backend,
        )

    def end_forward(self) -> None:
        """Closes the account of this forward pass."""
        if self._one_threshold and self._curves:
            self._pass.curves = self._curves
        self._curves = []
        if not self.config.feedback and self._name == next(reversed(self._passes)):
            self._plans.clear()

    def _kept(self, layer: str, call: AttentionCall) -> Kept | None:
        """The plan to carry out once more, if there is one for this step and for a call of this size."""
        kept = self._plans.get(layer)
        if kept is None or kept.shape != call.query.shape:
            return None
        if self._follows and kept.step.index == self._step.index:
            return kept
        asked = (self._step.saving_target, self._step.theta) == (kept.step.saving_target, kept.step.theta)
        return kept if self.config.feedback and asked else None

    def _keep_plan(self, layer: str, call: AttentionCall, statistics: AttentionStatistics) -> None:
        if statistics.plan is None:
            return
        self._backend = statistics.backend
        wanted = self.config.feedback or len(self._passes) > 1
        if wanted and not self._follows and self.config.plans_last:
            self._plans[layer] = Kept(statistics.plan, statistics.theta, self._step, call.query.shape)

    @property
    def records(self) -> list[dict[str, Any]]:
        """See `Records.read`."""
        return self._records.read()

    @property
    def held_bytes(self) -> int:
        """Memory held for later steps: the residuals of all passes and the plans."""
        residuals = sum(state.residuals.nbytes for state in self._passes.values())
        return residuals + sum(kept.plan.nbytes for kept in self._plans.values())

    def _dense(self, layer: str, call: AttentionCall) -> Tensor:
        started = mark(call.device)
        if self._measures and not self._follows:
            self._curves.append(self.config.measure(call))
        measured = mark(call.device)
        output = dense_attention(call)
        marks = started, measured, mark(call.device)
        self._records.add(self._step, self._name, layer, None, torch.zeros(call.heads), marks)
        return output

    def _target(self, step: Step) -> float:
        """Saving to ask of a step: as scheduled, plus its part of what the window has fallen short so far."""
        own = [
            r
            for r in self.records
            if r["pass"] == self._name and r["kind"] != "cached" and self.steps[r["step"]].in_window
        ]
        target = step.saving_target or 0.0
        if not step.in_window or not own:
            return target
        done = sum(mean_by_step(own).values())
        left = [s for s in self.steps if s.in_window and s.index >= step.index]
        targets = [s.saving_target or 0.0 for s in left]
        scheduled = sum(asked - (s.kind == "refresh") for asked, s in zip(targets, left, strict=True))
        owed = (self.config.budget or 0.0) * sum(s.in_window for s in self.steps) - done
        return min(max(target + (owed - scheduled) * (target / sum(targets)), 0.0), self.config.ceiling)
