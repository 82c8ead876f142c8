"""What reuse does to one call of attention, and what else could have been done: saving, error, what is reused where.

The method itself is `attention.plans` and `ripple_attention`; here it is only asked, and compared with the paper's
alternatives (arXiv 2511.12035, Figs. 5 and 7) and with itself some denoising steps later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from timeripple.attention import AttentionCall, ripple_attention
from timeripple.attention.config import GRANULARITIES, ReuseConfig
from timeripple.attention.grid import AXES, TokenGrid
from timeripple.attention.method import ConfigError, Curve
from timeripple.attention.plans import channel, token
from timeripple.attention.plans.channel import ChannelCurve, ChannelPlan
from timeripple.attention.plans.curve import Staircase, theta_for_saving
from timeripple.attention.plans.tile import TilePlan
from timeripple.attention.plans.token import TokenPlan
from timeripple.attention.similarity import reuse_mask
from timeripple.attention.timing import environment
from timeripple.attention.torch_backend import dense_attention
from timeripple.baselines import SkipConfig
from timeripple.clips.generate import Request
from timeripple.clips.methods import Method, parse_method
from timeripple.hooks import family_of
from timeripple.inspection.probe import Capture, capture

Kind = Literal["realised", "theoretical"]
EVERY = 1e9  # a threshold below which everything is
TRIALS = 12
REACHED = 0.01  # two savings are the same within this


@dataclass(frozen=True)
class Trial:
    """One call of attention done in another way than densely.

    name: what was done; saving: share of attention saved, [heads], of this kind; theta: the threshold it takes;
    error: |output - dense| / |dense|, [heads].
    """

    name: str
    saving: Tensor
    kind: Kind
    theta: float
    error: Tensor


@dataclass(frozen=True)
class Specimen:
    """One call of attention to try reuse on: measured once, asked at any threshold.

    query, key, value: [heads, tokens, d] after RoPE, as `Inspection.qkv` gives them; config: how to reuse. Its schedule
    plays no part: the budget is what this call shall save.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    grid: TokenGrid
    config: ReuseConfig

    @classmethod
    def of(cls, qkv: Tensor, grid: TokenGrid, config: ReuseConfig) -> Specimen:
        """From [3, heads, tokens, d]."""
        query, key, value = qkv
        return cls(query, key, value, grid, config)

    @cached_property
    def dense(self) -> Tensor:
        """Output of dense attention, [1, heads, tokens, d]."""
        return dense_attention(self.call)

    @cached_property
    def call(self) -> AttentionCall:
        """The call itself, of a batch of one."""
        return AttentionCall(self.query[None], self.key[None], self.value[None], self.grid)

    @cached_property
    def curve(self) -> Curve:
        """Saving at every threshold."""
        return self.config.measure(self.call)

    def try_reuse(self, theta: float | None = None, saving: float | None = None) -> Trial:
        """Reuse at a threshold, or at the one threshold at which the heads save this share on average; by default what
        the config says. Raises ValueError for both."""
        output, statistics = ripple_attention(self.call, self.config, theta=theta, saving=saving, curve=self.curve)
        return self._trial("reuse", output, statistics.saving, statistics.kind, statistics.theta)

    def reused(self, theta: float) -> Tensor:
        """Share of each video token of Q and of K that is taken from others at a threshold, [2, heads, t, y, x].

        channel: share of its channels that are reused; token: 1 - 1/n in a group of n tokens that share a row, which
        averages to the share of rows removed; tile: of the keys that a query does not have computed for it, and of
        the queries that have this key not computed for them.
        """
        grid, config = self.grid, self.config
        plan = self.curve.plan(self.call, theta) if theta > 0 else None
        if plan is None:
            shares = torch.zeros(2, len(self.query), grid.video_tokens)
        elif isinstance(plan, TilePlan):
            computed, total = plan.computed.double(), grid.video_tokens
            by_query = 1 - computed @ plan.window_sizes.double() / total
            by_key = 1 - plan.tile_sizes.double() @ computed / total
            shares = torch.stack([by_query[:, plan.tile], by_key[:, plan.window]])
        elif isinstance(plan, TokenPlan):
            sizes = [rows.sizes.gather(1, rows.owner)[:, grid.video] for rows in (plan.query, plan.key)]
            shares = 1 - 1 / torch.stack(sizes).double()
        else:
            masks = [reuse_mask(x, grid, theta, config.axes, config.window) for x in (self.query, self.key)]
            shares = torch.stack(masks)[..., grid.video, :].double().mean(-1)
        return grid.unflatten(shares[..., None])[..., 0].float()

    @cached_property
    def trials(self) -> list[Trial]:
        """Reuse at thresholds whose savings rise evenly to the largest there is."""
        largest = self.curve.saving(1.001 * self.curve.highest).mean().item()
        return [self.try_reuse(saving=largest * (number + 1) / TRIALS) for number in range(TRIALS)]

    def alternatives(self, saving: float) -> list[Trial]:
        """Reuse, and what the paper compares it with, all at this saving (Fig. 7); what cannot save as much is absent.

        skip tokens: the keys most like their neighbours are left out of the softmax for every query, as the paper does;
            one of each group that token reuse would merge stays. Queries are all computed.
        skip windows: the 2 x 2 x 2 windows of keys that a tile of queries attends to least are left out of its
            softmax, as sparse attention does: `baselines.skip`.
        zero: the entries of Q and K smallest in magnitude become 0, so that their partial scores need no product but
            stay in the sum.
        """
        tried = [self.try_reuse(saving=saving), self._skip_tokens(saving), self._skip_windows(saving)]
        tried.append(self._zero(saving))
        return [trial for trial in tried if trial.saving.mean() > saving - REACHED]

    def _skip_tokens(self, saving: float) -> Trial:
        curve = token.measure(self.call, ReuseConfig("token", axes=self.config.axes))
        never = replace(curve.query, thresholds=torch.full_like(curve.query.thresholds, math.inf))
        curve = replace(curve, query=never)
        theta = theta_for_saving([curve], saving)
        plan = curve.plan(self.call, theta)
        output = torch.empty_like(self.dense)
        for head, owner in enumerate(plan.key.owner):
            rows, order = owner.sort(stable=True)
            kept = order[torch.diff(rows, prepend=rows.new_tensor([-1])) > 0]  # the first token of every row
            rows = self.query[head], self.key[head, kept], self.value[head, kept]
            output[:, head] = scaled_dot_product_attention(*rows)
        return self._trial("skip tokens", output, plan.saving, "realised", theta)

    def _skip_windows(self, saving: float) -> Trial:
        output, statistics = ripple_attention(self.call, SkipConfig(budget=0), saving=saving)
        return self._trial("skip windows", output, statistics.saving, statistics.kind, statistics.theta)

    def _zero(self, saving: float) -> Trial:
        grid, channels = self.grid, self.query.shape[-1]
        sizes = [torch.full_like(x, math.inf) for x in (self.query, self.key)]  # text is never touched
        for size, x in zip(sizes, (self.query, self.key), strict=True):
            size[:, grid.video] = x[:, grid.video].abs()
        gain = torch.tensor(1 / grid.tokens)
        sides = (Staircase.build(x.mT.flatten(0, 1).contiguous(), gain) for x in sizes)
        query_side, key_side = sides
        curve = ChannelCurve(query_side, key_side, self.config.axes, self.config.window, 1, channels)
        theta = theta_for_saving([curve], saving)
        query, key = (
            x.masked_fill(size < theta, 0)[None] for x, size in zip((self.query, self.key), sizes, strict=True)
        )
        output = dense_attention(replace(self.call, query=query, key=key))
        return self._trial("zero", output, curve.saving(theta), "theoretical", theta)

    def _trial(self, name: str, output: Tensor, saving: Tensor, kind: Kind, theta: float | Tensor | None) -> Trial:
        return Trial(name, saving, kind, float(theta or 0.0), relative_change(output[0], self.dense[0]))


def relative_change(x: Tensor, reference: Tensor) -> Tensor:
    """|x - reference| / |reference| of every head of [heads, tokens, d]: [heads], 0 where nothing has changed."""
    change, norm = ((y.flatten(1).double()).norm(dim=1) for y in (x - reference, reference))
    return torch.where(change > 0, change / norm, 0.0)


def residual_drift(steps: Sequence[Tensor], grid: TokenGrid, config: ReuseConfig) -> Tensor:
    """How far the error of reuse moves away from what it was: |R(s) - R(s0)| / |R(s0)|, [steps, heads].

    steps: q, k and v of one layer at denoising steps in their order, [3, heads, tokens, d] each; s0 is the first. R is
    dense minus reused output, under the plan of s0, which is kept (channel reuse, whose plans hold values, plans anew
    at the threshold of s0). Below 1, giving R(s0) back leaves less error than not: that is why feedback works.
    """
    first, residuals = Specimen.of(steps[0], grid, config), []
    theta = first.try_reuse().theta
    plan = first.curve.plan(first.call, theta) if theta > 0 else None
    for call in (Specimen.of(step, grid, config).call for step in steps):
        reused, _ = ripple_attention(call, config, theta=theta, plan=plan if config.plans_last else None)
        residuals.append((dense_attention(call) - reused)[0])
    return torch.stack([relative_change(residual, residuals[0]) for residual in residuals])


def parse_reuse(text: str) -> ReuseConfig:
    """Reads "token:0.7", "channel:theta=0.3:axes=ty" and the like. Raises ConfigError for what is no reuse."""
    method = parse_method(text)
    if type(method.config) is not ReuseConfig:
        raise ConfigError(f"The method {text!r} reuses nothing; choose from {', '.join(GRANULARITIES)}.")
    if method.cache or method.steps or method.solver:
        raise ConfigError(f"Single calls are looked at here; leave steps, solver and step cache out of {text!r}.")
    return method.config


def laboratory_report(
    pipeline: DiffusionPipeline,
    request: Request,
    steps: Collection[int],
    config: ReuseConfig,
    *,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """What reuse saves and costs in a dense run at `steps` (from 0): rows, see `head_trials`; method; kind;
    environment. Callbacks and errors as in `probe.capture`."""
    captures = capture(pipeline, request, steps, on_step=on_step, should_stop=should_stop)
    return {
        "method": config.text,
        "rows": head_trials(captures, config),
        "kind": "measured here",
        "environment": environment(pipeline),
    }


def head_trials(captures: Sequence[Capture], config: ReuseConfig) -> list[dict[str, Any]]:
    """One row a step, layer and head: step, layer, head, theta, saving, kind, error, alternatives and drift.

    One threshold serves the heads of a layer. alternatives: [name, kind, saving, error] of what `Specimen.alternatives`
    tries at the saving of the head; drift: `residual_drift` from the first step that was captured.
    """
    rows: list[dict[str, Any]] = []
    layers: dict[str, Tensor] = {}
    for c in captures:
        qkv = torch.stack([c.query[0], c.key[0], c.value[0]]).float()
        first = layers.setdefault(c.layer, qkv)
        trial = Specimen.of(qkv, c.grid, config).try_reuse()
        drift = residual_drift([first, qkv], c.grid, config)[1].tolist()
        for head, (saving, error) in enumerate(zip(trial.saving.tolist(), trial.error.tolist(), strict=True)):
            others = Specimen.of(qkv[:, head : head + 1], c.grid, config).alternatives(saving)
            tried = [
                [other.name, other.kind, other.saving.item(), other.error.item()]
                for other in others
                if other.name != "reuse"
            ]
            place = {"step": c.step, "layer": c.layer, "head": head, "theta": trial.theta, "kind": trial.kind}
            rows.append(place | {"saving": saving, "error": error, "alternatives": tried, "drift": drift[head]})
    return rows


# --- Fig. 5: channels that reuse along the wrong axis ----------------------------------------------------------------


@dataclass(frozen=True)
class PairingConfig(ReuseConfig):
    """The channels of one RoPE group take the value of their neighbour along one axis, and nothing else is reused.

    group: "t", "y" or "x"; channels: first one and the one behind the last; axes: the axis. At the default theta
    every second token reuses, alike or not, so all pairings save the same. The first step is dense.
    """

    granularity: str = "channel"
    theta: float | None = EVERY
    refresh: int | str | None = None
    dense_first: float | str = 0.0
    dense_last: int | str = 0
    ramp: float | str = 0.0
    group: str = "t"
    channels: tuple[int, int] = (0, 1)

    @property
    def label(self) -> str:
        return f"{self.group}-channels-along-{''.join(self.axes)}"

    def measure(self, call: AttentionCall) -> PairingCurve:
        return PairingCurve(channel.measure(_part(call, slice(*self.channels)), self), slice(*self.channels))


def pairing_method(transformer: Any, group: str, axis: str, theta: float = EVERY) -> Method:
    """The method that has the channels of a RoPE group of `transformer` reuse along an axis of the token grid.

    Raises ConfigError for groups and axes that do not exist.
    """
    if group not in AXES:
        raise ConfigError(f"The channel group is {group!r}; choose from {', '.join(AXES)}.")
    family = family_of(transformer)
    channels = family.rope(transformer).get(group) if family else None
    if channels is None:
        raise ConfigError(f"{type(transformer).__name__} has no channels of group {group} alone; use a model that has.")
    config = PairingConfig(theta=theta, axes=(axis,), group=group, channels=(channels.start, channels.stop))
    return Method(config.label, config)


@dataclass(frozen=True)
class PairingCurve:
    """`curve` of some channels alone, whose plans leave the others as they are."""

    curve: ChannelCurve
    channels: slice

    @property
    def highest(self) -> Tensor:
        return self.curve.highest

    def saving(self, theta: float | Tensor) -> Tensor:
        """Of these channels alone."""
        return self.curve.saving(theta)

    def plan(self, call: AttentionCall, theta: float | Tensor) -> ChannelPlan:
        part = self.curve.plan(_part(call, self.channels), theta)
        query, key = call.query.clone(), call.key.clone()
        query[..., self.channels], key[..., self.channels] = part.query, part.key
        return ChannelPlan(query, key, part.saving * part.query.shape[-1] / query.shape[-1])


def _part(call: AttentionCall, channels: slice) -> AttentionCall:
    return replace(call, query=call.query[..., channels], key=call.key[..., channels])
