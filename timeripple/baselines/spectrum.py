"""Spectrum (arXiv 2603.01623, CVPR 2026): what leaves the last block is a function of the step, fitted by Chebyshev
polynomials with ridge regression to all steps computed so far.

Steps are mapped onto [-1, 1] over the whole run, where the authors' code takes 50 whatever the number.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from timeripple.attention.method import require
from timeripple.baselines.block_stack import StackCache, Streams, leaving_out
from timeripple.baselines.forecast import lagrange, weighted
from timeripple.baselines.settings import NamedSettings


@dataclass(frozen=True)
class SpectrumConfig(NamedSettings, name="spectrum"):
    """growth: by how much the distance between computed steps grows after each of them, alpha in the paper, 0.75 or 3;
    window: that distance at first; start: steps computed before; order: of the polynomials; ridge: lambda; weight: of
    the polynomials against the line through the last two computed steps, 1 in the paper, 0.5 in the authors' script."""

    growth: float = 0.75
    window: int = 2
    start: int = 5
    order: int = 4
    ridge: float = 0.1
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("growth", 0), ("window", 1), ("start", 1), ("order", 0)):
            require(getattr(self, name) >= least, f"{name} {getattr(self, name)} is too small; give {least} or more")
        require(self.ridge > 0, f"ridge {self.ridge} leaves the fit undetermined; give more than 0")
        require(0 <= self.weight <= 1, f"weight {self.weight} is not a share; give a number from 0 to 1")

    def computed(self, num_inference_steps: int) -> tuple[int, ...]:
        """The steps that are computed: all at the start, then at growing distances."""
        steps, window, left_out = list(range(min(self.start, num_inference_steps))), float(self.window), 0
        for step in range(self.start, num_inference_steps):
            left_out += 1
            if left_out % int(window) == 0:
                steps.append(step)
                window, left_out = window + self.growth, 0
        return tuple(steps)

    def applied(self, pipeline: DiffusionPipeline, num_inference_steps: int) -> AbstractContextManager[None]:
        return leaving_out(pipeline, partial(SpectrumCache, self, num_inference_steps))


class SpectrumCache(StackCache):
    def __init__(self, config: SpectrumConfig, num_inference_steps: int):
        self.config, self.steps = config, num_inference_steps
        self.wanted = frozenset(config.computed(num_inference_steps))
        self.left: dict[int, Streams] = {}  # by step, all that were computed

    def instead(self, step: int, entered: Streams, arguments: dict[str, Any]) -> Streams | None:
        if step in self.wanted:
            return None
        weights = self.weights(step)
        kept = list(self.left.values())
        return tuple(
            weighted(weights, [streams[i] for streams in kept]).to(entered[i].dtype) for i in range(len(kept[0]))
        )

    def computed(self, step: int, entered: Streams, left: Streams) -> None:
        self.left[step] = left

    def weights(self, step: int) -> list[float]:
        """Of the features of every computed step in the forecast: x (X'X + lambda I)^-1 X', blended with the line."""
        config, known = self.config, tuple(self.left)
        design = chebyshev(known, self.steps, config.order)
        gram = design.mT @ design + config.ridge * torch.eye(config.order + 1, dtype=torch.float64)
        fitted = chebyshev((step,), self.steps, config.order) @ torch.linalg.solve(gram, design.mT)
        last = known[-2:]
        line = [0.0] * (len(known) - len(last)) + lagrange(last, step)
        return [config.weight * a + (1 - config.weight) * b for a, b in zip(fitted[0].tolist(), line, strict=True)]


def chebyshev(at: tuple[int, ...], steps: int, order: int) -> Tensor:
    """T_0 to T_order at steps mapped from [0, steps] onto [-1, 1], float64 [len(at), order + 1]."""
    tau = 2 * torch.tensor(at, dtype=torch.float64) / steps - 1
    return torch.cos(torch.arange(order + 1) * torch.acos(tau)[:, None])
