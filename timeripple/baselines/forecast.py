"""Forecast of the whole block stack: the change it makes, output minus input, is continued along the steps that were
computed, which lie as evenly as can be after the first few.

The plainest of all step caches, and not of any paper: TaylorSeer continues every module by itself, Δ-DiT repeats the
change of half of the blocks. It is here so that whatever is more complicated has to be better.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from timeripple.attention.method import require
from timeripple.baselines.block_stack import StackCache, Streams, leaving_out
from timeripple.baselines.settings import NamedSettings


@dataclass(frozen=True)
class ForecastConfig(NamedSettings, name="forecast"):
    """share: of the steps that are computed, the first and the last among them; order: of the polynomial through the
    last order + 1 of them, 0: the change as it was; start: of the steps that are computed, those without a gap at the
    start."""

    share: float = 0.45
    order: int = 1
    start: int = 1

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, f"share {self.share} is not a share of the steps; give more than 0, at most 1")
        require(self.order in (0, 1, 2), f"order {self.order} is unknown; choose from 0, 1, 2")
        require(self.start >= 1, f"start {self.start} is not a number of steps; give 1 or more")

    def computed(self, num_inference_steps: int) -> tuple[int, ...]:
        """The steps that are computed."""
        count = min(max(2, round(self.share * num_inference_steps)), num_inference_steps)
        dense = max(0, min(self.start, count - 1) - 1)  # and from the last of the start on evenly
        rest = evenly_spaced(max(2, count - dense), num_inference_steps - dense)
        return (*range(dense), *(dense + step for step in rest))

    def applied(self, pipeline: DiffusionPipeline, num_inference_steps: int) -> AbstractContextManager[None]:
        return leaving_out(pipeline, partial(ForecastCache, self.computed(num_inference_steps), self.order))


def evenly_spaced(count: int, steps: int) -> tuple[int, ...]:
    """`count` of so many steps, from the first to the last, in gaps as equal as can be."""
    return tuple(sorted({round(i * (steps - 1) / (count - 1)) for i in range(count)}))


class ForecastCache(StackCache):
    def __init__(self, steps: tuple[int, ...], order: int):
        self.steps, self.order = frozenset(steps), order
        self.changes: dict[int, Streams] = {}  # by step, the last order + 1, float32

    def instead(self, step: int, entered: Streams, arguments: dict[str, Any]) -> Streams | None:
        if step in self.steps:
            return None
        weights, kept = lagrange(tuple(self.changes), step), list(self.changes.values())
        changes = (weighted(weights, [each[i] for each in kept]) for i in range(len(kept[0])))
        return tuple((into + change).to(into.dtype) for into, change in zip(entered, changes, strict=False))

    def computed(self, step: int, entered: Streams, left: Streams) -> None:
        self.changes[step] = difference(left, entered)
        if len(self.changes) > self.order + 1:
            del self.changes[min(self.changes)]


def lagrange(steps: tuple[int, ...], step: int) -> list[float]:
    """Weights of the values at `steps` with which the polynomial through them is read at `step`."""
    return [prod((step - other) / (own - other) for other in steps if other != own) for own in steps]


def weighted(weights: list[float], tensors: list[Tensor]) -> Tensor:
    """Their weighted sum, float32."""
    total = torch.zeros_like(tensors[0], dtype=torch.float32)
    for weight, tensor in zip(weights, tensors, strict=True):
        total.add_(tensor.float(), alpha=weight)
    return total


def difference(left: Streams, entered: Streams) -> tuple[Tensor, ...]:
    """What the stack changed, float32; streams that it does not return are left out."""
    return tuple(out.float() - into.float() for out, into in zip(left, entered, strict=False))
