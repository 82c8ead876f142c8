"""The clock of a run: which denoising step and guidance pass a forward pass of the transformer belongs to.

It is never guessed. In this order it is read off

1. what the pipeline says through `cache_context(name, step_index=, num_inference_steps=)`;
2. the loop of the pipeline in which reuse was enabled: `_current_timestep` is another object at every turn of it, its
   scheduler's `timesteps` at every run, and its scheduler's `step_index` moves once the turn has taken its step;
3. the calls, counted by pass, where there is no such pipeline.

Timesteps are only compared, never counted: in half precision two steps may round to the same one, and solvers of second
order call twice at one. Where these contradict each other the clock raises `UnknownStep`, and attention stays dense.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

LEFT_OUT = {"LTXI2VLongMultiPromptPipeline": 1}
"""Pipelines whose loop leaves out the last timesteps of its schedule, and how many."""


def turns(pipeline: Any) -> int | None:
    """How many denoising steps the loop of a pipeline has, once it has begun."""
    scheduled: int | None = getattr(pipeline, "num_timesteps", None)
    return scheduled and scheduled - LEFT_OUT.get(type(pipeline).__name__, 0)


class UnknownStep(ValueError):
    """Nothing says for certain which step a forward pass belongs to; the message is one clause."""


@dataclass(frozen=True)
class Moment:
    """Where a forward pass is: the number of the run and of the clip that it belongs to, the name of its guidance pass,
    its step from 0 and how many there are. Clips that are made in sections have a run for each."""

    run: int
    clip: int
    name: str
    step: int
    total: int


class StepClock:
    """Shared by the transformers of a pipeline, which take turns in one run.

    target: the pipeline in which reuse was enabled, or the transformer alone. num_inference_steps: the number of steps
    for pipelines that do not tell it.
    """

    def __init__(self, target: Any, num_inference_steps: int | None = None):
        self.total = num_inference_steps
        self._target = _reference(target)
        self._run = self._clip = 0
        self._left: Any = None  # `_current_timestep` of a run that is over or was left
        self._forget()

    def _forget(self) -> None:
        self._source: str | None = None
        self._step, self._steps = -1, 0
        self._seen: list[tuple[int, str]] = []  # passes of this step, with the transformer that made them
        self._passes = 0  # of the first step
        self._timesteps: Any = None  # of the scheduler
        self._current: Any = None  # of the pipeline
        self._index: int | None = None  # of the scheduler, when the step began
        self._first: Tensor | None = None  # the timestep that was given first, and the last one
        self._last: Tensor | None = None
        self._leader: str | None = None  # the pass whose calls are counted, None where passes have no names
        self._lost: str | None = None

    def reset(self) -> None:
        """The run is over, or was left: the next forward pass begins another."""
        self._left = getattr(self._target(), "_current_timestep", None)
        self._forget()

    def moment(self, transformer: Any, context: Any, timestep: Any) -> Moment:
        """Of the forward pass that begins. context: diffusers' CacheContext, or None; timestep: as the transformer is
        given it. Raises UnknownStep."""
        pipeline = self._target()
        current = getattr(pipeline, "_current_timestep", None)
        in_loop = current is not None and current is not self._left
        name = None if context is None else context.name
        total = (context and context.num_inference_steps) or self._total_of(pipeline, in_loop)
        if context is not None and context.step_index is not None:
            self._told(context.step_index, (id(transformer), context.name), pipeline, current)
        elif in_loop:
            total = turns(pipeline)
            self._watched(name, pipeline, current)
        elif timestep is None:
            raise UnknownStep("the transformer is told no timestep")
        elif total is not None:
            self._counted(name, torch.as_tensor(timestep).detach().clone(), total)
        if total is None:
            raise UnknownStep("the number of steps is unknown; give num_inference_steps to enable")
        if self._step >= total:
            raise UnknownStep(f"the pipeline takes more than {total} steps; give num_inference_steps to enable")
        self._steps = total
        return self._enter(transformer, name)

    def times(self, total: int) -> list[float] | None:
        """The timesteps of the run in progress, where the scheduler of a pipeline has one for each of so many steps."""
        timesteps = getattr(getattr(self._target(), "scheduler", None), "timesteps", None)
        if not isinstance(timesteps, Tensor) or timesteps.shape != (total,):
            return None
        times = timesteps.tolist()
        return times if all(later < earlier for earlier, later in pairwise(times)) else None

    def _total_of(self, pipeline: Any, in_loop: bool) -> int | None:
        """What a pipeline says outside its loop is of another run."""
        is_known = in_loop or not hasattr(pipeline, "_current_timestep")
        return (turns(pipeline) if is_known else None) or self.total

    def _enter(self, transformer: Any, name: str | None) -> Moment:
        """Takes note of a pass in the step that was found."""
        number = len(self._seen)
        if name is None:
            if self._step > 0 and number >= self._passes:
                raise UnknownStep(f"the first step had {self._passes} forward passes, and this one has more")
            name = f"pass {number}"
        if (id(transformer), name) in self._seen:
            raise UnknownStep(f"pass {name!r} comes twice in one step")
        self._seen.append((id(transformer), name))
        if self._step == 0:
            self._passes = len(self._seen)
        return Moment(self._run, self._clip, name, self._step, self._steps)

    def _begin(self, source: str, of_same_clip: bool = False) -> None:
        """A run begins with the call in progress."""
        self._forget()
        self._run += 1
        self._clip += not of_same_clip
        self._source = source

    def _take(self, step: int) -> None:
        self._step, self._seen = step, []

    def _told(self, step: int, who: tuple[int, str], pipeline: Any, current: Any) -> None:
        """The pipeline says the step."""
        same_turn = current is not None and current is self._current
        begun_anew = step == self._step == 0 and who in self._seen and not same_turn
        if self._source != "told" or step < self._step or begun_anew:
            self._begin("told")
        if step != self._step:
            self._take(step)
            self._current, self._index = current, _step_index(pipeline)
        elif same_turn and _step_index(pipeline) != self._index:
            raise UnknownStep("the transformer is called after the scheduler has taken the step")

    def _watched(self, name: str | None, pipeline: Any, current: Any) -> None:
        """The pipeline says nothing, and its loop is read."""
        if self._source == "told" and current is self._current:
            raise UnknownStep("the transformer is called outside the passes that the pipeline names")
        timesteps = pipeline.scheduler.timesteps
        moved = current is not self._current
        complete = self._source == "watched" and self._step + 1 == self._steps  # and what follows is another section
        called_anew = _called_anew(pipeline)
        if self._source is None and not _at_first_step(pipeline):
            raise UnknownStep("reuse was switched on while the pipeline was at work; it begins with the next clip")
        if called_anew or self._source != "watched" or timesteps is not self._timesteps or (moved and complete):
            self._begin("watched", of_same_clip=complete and not called_anew)
            self._timesteps, self._leader = timesteps, name
        if moved:
            self._take(self._step + 1)
            self._current, self._index = current, _step_index(pipeline)
        elif _step_index(pipeline) != self._index:
            raise UnknownStep("the transformer is called after the scheduler has taken the step")
        if (name is None) != (self._leader is None):
            raise UnknownStep("the transformer is called outside the passes that the pipeline names")

    def _counted(self, name: str | None, timestep: Tensor, total: int) -> None:
        """Nobody says anything: the calls of a pass are counted."""
        if self._source not in (None, "counted"):
            raise UnknownStep("the transformer is called outside the steps of the pipeline")
        starts_over, moved = _equal(timestep, self._first), not _equal(timestep, self._last)
        has_all = len(self._seen) >= self._passes if name is None else name in [seen for _, seen in self._seen]
        if self._first is None or (starts_over and (moved or (self._step + 1 == total and has_all))):
            self._begin("counted")
            self._first, self._leader = timestep, name
            self._take(0)
        elif (name is None) != (self._leader is None):
            self._lost = "some forward passes are named and others are not"
        elif name is None:
            self._count_unnamed(moved)
        elif name == self._leader:
            if starts_over:
                self._lost = "two steps have the timestep of the first, or the run was begun anew"
            self._take(self._step + 1)
        self._last = timestep
        if self._lost is not None:
            raise UnknownStep(self._lost)

    def _count_unnamed(self, moved: bool) -> None:
        """Every step has as many passes as the first, at one timestep."""
        if len(self._seen) == self._passes and (moved or self._step > 0):
            self._take(self._step + 1)
        elif moved:
            self._lost = f"the first step had {self._passes} forward passes at one timestep, and a later one has fewer"

    def __deepcopy__(self, memo: dict[int, Any]) -> StepClock:
        """Of a copied pipeline the clock is the copy's; that of a transformer copied alone is nobody's."""
        memo[id(self)] = copied = StepClock(memo.get(id(self._target())), self.total)
        return copied

    def __reduce__(self) -> Any:
        return StepClock, (None, self.total)


def _reference(target: Any) -> Callable[[], Any]:
    """Weak where that can be, so that a pipeline may go while its transformer stays."""
    try:
        return weakref.ref(target)
    except TypeError:
        return lambda: target


def _called_anew(pipeline: Any) -> bool:
    """Whether a pipeline was called since this was asked last: it then sets `_interrupt` to False, which is made 0
    here, as that says the same. Calls that failed in decoding do not say that they are over."""
    called = getattr(pipeline, "_interrupt", None) is False
    if called:
        pipeline._interrupt = 0
    return called


def _at_first_step(pipeline: Any) -> bool:
    """Whether a loop has taken no step yet, as far as its scheduler says. Video to video begins at a later one."""
    left_out = len(pipeline.scheduler.timesteps) - (turns(pipeline) or 0)
    return _step_index(pipeline) in (None, 0, left_out, getattr(pipeline.scheduler, "begin_index", None))


def _step_index(pipeline: Any) -> int | None:
    return getattr(getattr(pipeline, "scheduler", None), "step_index", None)


def _equal(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape == b.shape and torch.equal(a, b)
