"""The state of one generation: thresholds, residuals and records from step to step, independent of any model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from timeripple.attention.dispatch import AttentionStatistics, check_inputs, measure, ripple_attention
from timeripple.attention.plan import (
    ChannelCurve,
    TileCurve,
    TilePlan,
    TokenCurve,
    TokenPlan,
    theta_for_saving,
)
from timeripple.attention.residuals import Residuals, Storage
from timeripple.attention.torch_backend import dense_attention
from timeripple.config import ReuseConfig, Step
from timeripple.grid import TokenGrid
from timeripple.timing import elapsed, mark


@dataclass(frozen=True)
class Kept:
    """A plan of one layer, the threshold it was made with and the step it was made at."""

    plan: TokenPlan | TilePlan
    theta: float
    step: Step


@dataclass
class PassState:
    """What one guidance pass (conditional, unconditional) carries from step to step.

    residuals: of the layers, as measured at the last refresh; curves: of all layers, from the last step that looked at
    them.
    """

    residuals: Residuals
    curves: list[TokenCurve | TileCurve | ChannelCurve] = field(default_factory=list)


class Records:
    """What every call of attention did. Numbers that are still on the device are fetched when they are read."""

    def __init__(self):
        self._settled: list[dict] = []
        self._open: list[dict] = []

    def add(
        self, step: Step, pass_name: str, layer: str, theta: float | Tensor | None, saving: Tensor, marks: tuple
    ) -> None:
        """marks: when planning began, when it was done and when attention was done, see `timing.mark`."""
        names = {"step": step.index, "pass": pass_name, "layer": layer, "kind": step.kind}
        self._open.append({**names, "theta": theta, "saving": saving, "marks": marks})

    def add_skipped(self, step: Step, pass_name: str, layer: str, heads: int) -> None:
        """A call that did not come because a cache stood in for the layer: all of it is saved."""
        now = time.perf_counter()
        names = {"step": step.index, "pass": pass_name, "layer": layer, "kind": "cached"}
        self._open.append({**names, "theta": None, "saving": torch.ones(heads), "marks": (now, now, now)})

    def read(self) -> list[dict]:
        """One dict per (step, pass, layer): step, pass, layer, kind (of the step, or "cached"),
        theta, saving (a list, one number per head; 1 lower on refresh steps, which also pay for dense attention),
        plan_seconds, attention_seconds."""
        for record in self._open:
            started, planned, done = record.pop("marks")
            record["theta"] = None if record["theta"] is None else float(record["theta"])
            record["saving"] = record["saving"].tolist()
            record |= {"plan_seconds": elapsed(started, planned), "attention_seconds": elapsed(planned, done)}
        self._settled += self._open
        self._open = []
        return self._settled


class ReuseRun:
    """Attention of one generation. The model's hooks call, for every forward pass of the transformer,

        run.begin_forward(pass_name, step_index)
        output = run.attention(layer, query, key, value, grid)    # in every self-attention layer
        run.end_forward()

    measure: replaces `dispatch.measure`, for baselines that choose otherwise.

    Under a budget, one threshold per step serves all layers and heads, so that each reuses as much as it can bear; it
    is found from what the layers measured one step before. Residual feedback: a refresh step keeps R = dense - reused
    output of each layer, a reuse step adds it to its reused output, extrapolated from the last two.

    An error belongs to its plan, so with feedback a plan is kept from one refresh to the next, as long as the schedule
    asks for the same. What was measured a refresh ago says little by then, so every layer finds a threshold of its own
    there, at which its heads save what the budget asks. And the first pass of a step plans for the passes after it:
    guidance takes the difference of two passes times its scale, and an error that both make alike stays out of it.
    (Channel plans hold the values of their pass and step, so there every pass plans for itself, at every step.)

    records: see `Records.read`.
    """

    def __init__(
        self,
        config: ReuseConfig,
        num_inference_steps: int,
        measure: Callable[..., TokenCurve | TileCurve | ChannelCurve] = measure,
    ):
        self.config = config
        self.measure = measure
        self.limit_memory(None, 1)
        self.steps = config.schedule(num_inference_steps)
        self._records = Records()
        self._one_threshold = config.budget is not None and not config.feedback
        self._backend = "auto"  # and what that came to, so that a failure is not repeated
        self._passes: dict[str, PassState] = {}
        self._plans: dict[str, Kept] = {}

    def limit_memory(self, limit: int | None, layers: int) -> None:
        """How many bytes the errors of so many layers may take, see `residuals.Storage`; before the first step."""
        self.storage = Storage(limit, layers, tensors=2 if self.config.extrapolate else 1)

    def begin_forward(self, pass_name: str, step_index: int) -> None:
        """Raises ValueError for a step the schedule does not have."""
        if not 0 <= step_index < len(self.steps):
            raise ValueError(f"step {step_index} is outside the run's {len(self.steps)} steps; start a new ReuseRun.")
        self._name, self._step = pass_name, self.steps[step_index]
        self._pass = self._passes.setdefault(pass_name, PassState(Residuals(self.storage)))
        self._follows = pass_name != next(iter(self._passes)) and self.config.granularity != "channel"
        self._curves: list[TokenCurve | TileCurve | ChannelCurve] = []
        self._theta, self._saving = self._step.theta, self._step.saving_target
        if self._saving is not None and not (self.config.feedback and self._step.kind == "reuse"):
            self._saving = self._target(self._step)
        if self._saving is not None and self._pass.curves:
            self._theta = theta_for_saving(self._pass.curves, self._saving)
        reuse_follows = any(step.kind != "dense" for step in self.steps[step_index + 1 : step_index + 2])
        self._measures = reuse_follows and self._one_threshold

    def attention(
        self,
        layer: str,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        grid: TokenGrid,
        *,
        scale: float | None = None,
        key_mask: Tensor | None = None,
    ) -> Tensor:
        """Output of one layer, [batch, heads, tokens, d] like query; errors as in `ripple_attention`."""
        residual = self._pass.residuals.at(layer, self._step.index) if self._step.kind == "reuse" else None
        no_room = self.config.feedback and self.storage.full(layer)
        if self._step.kind == "dense" or no_room:
            return self._dense(layer, query, key, value, grid, scale, key_mask)
        kept = self._kept(layer, len(query))
        theta = kept.theta if kept else self._theta
        output, statistics = self._attend(
            layer,
            query,
            key,
            value,
            grid,
            theta=theta,
            saving=self._saving if theta is None else None,
            plan=kept.plan if kept else None,
            scale=scale,
            key_mask=key_mask,
            residual=residual,
        )
        if statistics.curve is not None:
            self._curves.append(statistics.curve)
            self._keep_plan(layer, statistics)
        saving = statistics.saving
        if self._step.kind == "refresh":
            dense = dense_attention(query, key, value, scale=scale, key_mask=key_mask)
            self._pass.residuals.keep(layer, self._step.index, dense - output)
            output, saving = dense, saving - 1
        self._records.add(
            self._step, self._name, layer, statistics.theta, saving, (*statistics.marks[:2], mark(query.device))
        )
        return output

    def skipped(self, layer: str, heads: int) -> None:
        """Takes note of a layer whose attention was not asked for in this forward pass, as caches have it."""
        self._records.add_skipped(self._step, self._name, layer, heads)

    def _attend(
        self, layer: str, query: Tensor, key: Tensor, value: Tensor, grid: TokenGrid, **options
    ) -> tuple[Tensor, AttentionStatistics]:
        """`ripple_attention` with what this run has settled."""
        options |= {"backend": self._backend, "measure": self.measure}
        return ripple_attention(query, key, value, grid, self.config, **options)

    def end_forward(self) -> None:
        """Closes the account of this forward pass."""
        if self._one_threshold and self._curves:
            self._pass.curves = self._curves
        self._curves = []
        if not self.config.feedback and self._name == next(reversed(self._passes)):
            self._plans.clear()

    def _kept(self, layer: str, batch: int) -> Kept | None:
        """The plan to carry out once more, if there is one for this step and for as many heads."""
        kept = self._plans.get(layer)
        if kept is None or kept.plan.batch != batch:
            return None
        if self._follows and kept.step.index == self._step.index:
            return kept
        asked = (self._step.saving_target, self._step.theta) == (kept.step.saving_target, kept.step.theta)
        return kept if self.config.feedback and self._step.kind == "reuse" and asked else None

    def _keep_plan(self, layer: str, statistics: AttentionStatistics) -> None:
        if statistics.plan is None:
            return
        self._backend = statistics.backend
        wanted = self.config.feedback or len(self._passes) > 1
        if wanted and not self._follows and self.config.granularity != "channel":
            self._plans[layer] = Kept(statistics.plan, statistics.theta, self._step)

    @property
    def records(self) -> list[dict]:
        """See `Records.read`."""
        return self._records.read()

    @property
    def held_bytes(self) -> int:
        """Memory held for later steps: the residuals of all passes and the plans."""
        residuals = sum(state.residuals.nbytes for state in self._passes.values())
        return residuals + sum(kept.plan.nbytes for kept in self._plans.values())

    def saving(self) -> dict:
        """See `summarise_saving`."""
        kind = "theoretical" if self.config.granularity == "channel" else "realised"
        return summarise_saving(self.records, self.steps, kind)

    def _dense(self, layer, query, key, value, grid, scale, key_mask) -> Tensor:
        started = mark(query.device)
        if self._measures and not self._follows:
            key_mask = check_inputs(query, key, value, grid, key_mask)
            self._curves.append(self.measure(query, key, grid, self.config, scale=scale, key_mask=key_mask))
        measured = mark(query.device)
        output = dense_attention(query, key, value, scale=scale, key_mask=key_mask)
        marks = started, measured, mark(query.device)
        self._records.add(self._step, self._name, layer, None, torch.zeros(query.shape[1]), marks)
        return output

    def _target(self, step: Step) -> float:
        """Saving to ask of a step: as scheduled, plus its part of what the window has fallen short so far."""
        own = [
            r
            for r in self.records
            if r["pass"] == self._name and r["kind"] != "cached" and self.steps[r["step"]].in_window
        ]
        if not step.in_window or not own:
            return step.saving_target
        done = sum(_mean_by_step(own).values())
        left = [s for s in self.steps if s.in_window and s.index >= step.index]
        scheduled = sum(s.saving_target - (s.kind == "refresh") for s in left)
        owed = self.config.budget * sum(s.in_window for s in self.steps) - done
        share = step.saving_target / sum(s.saving_target for s in left)
        return min(max(step.saving_target + (owed - scheduled) * share, 0.0), self.config.ceiling)


def summarise_saving(records: list[dict], steps: tuple[Step, ...], kind: str) -> dict:
    """Share of attention saved, averaged over layers, heads and passes.

    kind: "realised" or "theoretical"; reuse_steps: over the reuse window; all_steps: over the whole run;
    per_step: one number per denoising step, 0 where attention was dense or has not run.
    """
    means = _mean_by_step(records)
    per_step = [means.get(step.index, 0.0) for step in steps]
    window = [per_step[step.index] for step in steps if step.in_window]
    return {
        "kind": kind,
        "reuse_steps": sum(window) / max(len(window), 1),
        "all_steps": sum(per_step) / max(len(per_step), 1),
        "per_step": per_step,
    }


def saving_by_head(records: list[dict]) -> dict[str, list[float]]:
    """Share of attention saved by every head of every layer, by the layer's name: mean over all steps and passes."""
    savings: dict[str, list[list[float]]] = {}
    for record in records:
        savings.setdefault(record["layer"], []).append(record["saving"])
    return {layer: [sum(head) / len(head) for head in zip(*rows, strict=True)] for layer, rows in savings.items()}


def _mean_by_step(records: list[dict]) -> dict[int, float]:
    """Mean saving over passes, layers and heads of every step that has records."""
    savings: dict[int, list[float]] = {}
    for record in records:
        savings.setdefault(record["step"], []).extend(record["saving"])
    return {step: sum(values) / len(values) for step, values in savings.items()}
