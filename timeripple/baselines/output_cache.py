"""Caching the outputs of self-attention, after Pyramid Attention Broadcast (PAB, arXiv 2408.12588).

Attention outputs differ little between neighbouring denoising steps, so PAB computes a self-attention module at every
n-th step and returns its output again at the steps between. PAB's range of timesteps is our reuse window, and we take
self-attention only, as its spatial and temporal attention are one in the models here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from timeripple.attention.config import DEFAULT_BUDGET, DEFAULT_DENSE_FIRST, DEFAULT_DENSE_LAST, ReuseConfig
from timeripple.attention.method import ConfigError, Kind, Step
from timeripple.baselines.settings import NamedSettings
from timeripple.baselines.step_cache import CountedRun


@dataclass(frozen=True)
class OutputCacheConfig(NamedSettings, name="output-cache"):
    """budget: share of the steps of the reuse window that return a cached output; the rest as in `ReuseConfig`.

    Raises ConfigError for values that cannot work.
    """

    budget: float = DEFAULT_BUDGET
    dense_first: float = DEFAULT_DENSE_FIRST
    dense_last: int = DEFAULT_DENSE_LAST
    granularity = "output"
    whole_modules = True  # see `OutputCacheRun.module`
    kind: ClassVar[Kind] = "realised"
    theta = None

    def __post_init__(self) -> None:
        if not 0 <= self.budget < 1:
            raise ConfigError(
                f"budget {self.budget} is not a share of the attention; give a number from 0 up to, not including, 1."
            )
        self._window()

    def _window(self) -> ReuseConfig:
        """Dense attention first and last, and the reuse window between, are those of our own method."""
        return ReuseConfig(theta=1, refresh=None, dense_first=self.dense_first, dense_last=self.dense_last)

    def schedule(self, num_inference_steps: int) -> tuple[Step, ...]:
        """Dense steps compute and keep the outputs; reuse steps return them.

        The window's dense steps lie as evenly as possible, so that no output is older than it has to be.
        """
        steps = self._window().schedule(num_inference_steps)
        window = [step.index for step in steps if step.in_window]
        computed = round((1 - self.budget) * len(window))
        chosen = {window[(i + 1) * (len(window) + 1) // (computed + 1) - 1] for i in range(computed)}
        return tuple(replace(step, theta=None, kind="dense" if step.index in chosen else step.kind) for step in steps)

    def start(self, num_inference_steps: int) -> OutputCacheRun:
        return OutputCacheRun(self.schedule(num_inference_steps))


class OutputCacheRun(CountedRun):
    """`CountedRun` that returns outputs of earlier steps."""

    def __init__(self, steps: tuple[Step, ...]):
        super().__init__(steps)
        self._outputs: dict[tuple[str, str], tuple[torch.Size, Any]] = {}

    def module(self, layer: str, shape: torch.Size, forward: Callable[[], Any]) -> Any:
        """The output of a whole self-attention module, as PAB caches it: projections are saved as well."""
        kept_shape, output = self._outputs.get((self._name, layer), (None, None))
        if self._step.kind != "reuse" or output is None or kept_shape != shape:
            output = forward()
            self._outputs[self._name, layer] = shape, output
        return output

    @property
    def held_bytes(self) -> int:
        """Memory held by the outputs of all passes."""
        outputs = [output for _, output in self._outputs.values()]  # of joint attention, text beside video
        return sum(part.nbytes for output in outputs for part in (output if isinstance(output, tuple) else (output,)))
