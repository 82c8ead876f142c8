"""What a method of attention offers: the one contract between methods, the run of a generation and the hooks.

Anything that `hooks.enable` takes is an `AttentionMethod`; its `start` gives the `AttentionRun` of one generation. A
method whose run is a `ReuseRun` is a `ReuseMethod`: it measures a call, which gives a `Curve`, which plans at a
threshold, which gives a `Plan`, which is carried out. Our own reuse is `config.ReuseConfig`, whose granularities are
values of `Granularity`, one file each in `plans`; the peers are one file each in `timeripple/baselines`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from timeripple.attention.call import AttentionCall

Kind = Literal["realised", "theoretical"]
"""Of a saving: work that was really left out, or products that reuse would make unnecessary."""


class ConfigError(ValueError):
    """A setting that cannot work; the message is one sentence that names the value and the remedy."""


@dataclass(frozen=True)
class Step:
    """What attention does at one denoising step.

    kind: "dense" computes everything; "reuse" reuses; "refresh" computes both, outputs the dense result and keeps the
    difference for the steps that follow. saving_target: saving asked of the reusing computation, before the dense
    cost of a refresh is taken off; None under a threshold. theta: threshold of this step; None under a budget.
    in_window: whether the step counts in the saving over the reuse window.
    """

    index: int
    kind: Literal["dense", "refresh", "reuse"]
    saving_target: float | None = None
    theta: float | None = None
    in_window: bool = False


def dense_steps(num_inference_steps: int) -> tuple[Step, ...]:
    """A schedule in which attention is never left out by its method, and every step counts."""
    return tuple(Step(index, "dense", in_window=True) for index in range(num_inference_steps))


class AttentionMethod(Protocol):
    """What `hooks.enable` takes: settings of one way to compute attention."""

    @property
    def label(self) -> str:
        """Short name that is safe in file names, e.g. "token-0.75"."""

    @property
    def granularity(self) -> str | None:
        """What is reused, skipped or kept; None where nothing is."""

    @property
    def kind(self) -> Kind:
        """Of its saving."""

    def schedule(self, num_inference_steps: int) -> tuple[Step, ...]:
        """What each denoising step does. Raises ConfigError for settings that do not fit so many steps."""

    def start(self, num_inference_steps: int) -> AttentionRun:
        """The state of one generation."""


class AttentionRun(Protocol):
    """Attention of one generation, called by the hooks for every forward pass of the transformer.

    Beyond this a run may have `limit_memory(limit, layers)`, `set_times(times)` and `storage`, see `run.ReuseRun`, and
    `module(layer, shape, forward)`, which stands in for a whole self-attention module on hidden states of this shape,
    where it is not in a compiled graph. The batch and the grid may change from one forward pass to the next.
    """

    @property
    def records(self) -> list[dict[str, Any]]:
        """See `records.Records.read`."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """The schedule."""

    @property
    def held_bytes(self) -> int:
        """Memory held for later steps."""

    def begin_forward(self, pass_name: str, step_index: int) -> None:
        """Opens a forward pass. Raises ValueError for a step the schedule does not have."""

    def attention(self, layer: str, call: AttentionCall) -> Tensor:
        """Output of one layer, [batch, heads, tokens, d]."""

    def skipped(self, layer: str, heads: int) -> None:
        """Takes note of a layer whose attention was not asked for in this forward pass, as caches have it."""

    def end_forward(self) -> None:
        """Closes the forward pass."""


class Plan(Protocol):
    """What is computed of one call, and of every other of its shape: batch and tokens, text included. saving: [heads],
    mean over the batch."""

    @property
    def saving(self) -> Tensor: ...
    @property
    def batch(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

    def carry_out(self, call: AttentionCall) -> Tensor:
        """The output, like `call.query`, computed by PyTorch on any device."""


class Curve(Protocol):
    """The saving of one call as a function of the threshold. Thresholds are strict: nothing is below 0."""

    @property
    def highest(self) -> Tensor:
        """The largest threshold at which something changes, without dimensions."""

    def saving(self, theta: float | Tensor) -> Tensor:
        """[heads] savings for a number, [heads, n] for n thresholds; mean over the batch."""

    def plan(self, call: AttentionCall, theta: float | Tensor) -> Plan:
        """What to compute at a threshold; call: the one that was measured."""


class ReuseMethod(AttentionMethod, Protocol):
    """A method whose run is a `ReuseRun`.

    budget: share of attention to save over the reuse window, or theta: a threshold. ceiling: the largest saving of a
    step. feedback: whether the error of reuse is measured at refresh steps and given back; extrapolate: along its last
    change. plans_last: whether a plan fits later passes and steps, too.
    """

    @property
    def budget(self) -> float | None: ...
    @property
    def theta(self) -> float | None: ...
    @property
    def ceiling(self) -> float: ...
    @property
    def feedback(self) -> bool: ...
    @property
    def extrapolate(self) -> bool: ...
    @property
    def plans_last(self) -> bool: ...

    def measure(self, call: AttentionCall) -> Curve:
        """The saving of this call at every threshold."""


class ReuseSettings(Protocol):
    """What granularities read of the settings of reuse, see `config.ReuseConfig`."""

    @property
    def axes(self) -> tuple[str, ...]: ...
    @property
    def metric(self) -> str: ...
    @property
    def window(self) -> int: ...
    @property
    def query_tile(self) -> tuple[int, int, int]: ...


@dataclass(frozen=True)
class Granularity:
    """What is reused, in one piece or another: a value of this for every file in `plans`, listed in `config`.

    kind: of its saving. measure: from a call and settings to its curve. ceiling: the saving of a step at which every
    window is reused completely, from the share of tokens that are left. comfort, comfort_with_feedback: the share of
    the ceiling that an automatic choice stays below: near it, everything merges and quality falls steeply.
    plans_last: as in `ReuseMethod`. refreshes: whether feedback is on unless it is asked for. any_window: whether
    windows may be larger than two tokens along an axis.
    """

    name: str
    kind: Kind
    measure: Callable[[AttentionCall, ReuseSettings], Curve]
    ceiling: Callable[[float], float]
    comfort: float
    comfort_with_feedback: float
    plans_last: bool = True
    refreshes: bool = True
    any_window: bool = False


def is_count(value: object, least: int) -> bool:
    """A whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def require(condition: object, problem: str, known: Iterable[str] | None = None) -> None:
    """Raises ConfigError unless the condition holds: the problem, and what to choose from, as one sentence."""
    if not condition:
        raise ConfigError(problem + (f"; choose from {', '.join(known)}" if known else "") + ".")
