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
from torch import Tensor

from timeripple.attention.call import AttentionCall
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
    """`CountedRun` that returns outputs of earlier steps: of whole modules, as PAB does, which saves projections too;
    inside a compiled graph, which no module can be left out of, of their attention, from which the same follows."""

    def __init__(self, steps: tuple[Step, ...]):
        super().__init__(steps)
        self._outputs: dict[tuple[str, str], tuple[torch.Size, Any]] = {}
        self._in_module = False

    def module(self, layer: str, shape: torch.Size, forward: Callable[[], Any]) -> Any:
        """The output of a whole self-attention module."""
        output = self._old(layer, shape)
        if output is None:
            self._in_module = True
            try:
                output = forward()
            finally:
                self._in_module = False
            self._outputs[self._name, layer] = shape, output
        return output

    def attention(self, layer: str, call: AttentionCall) -> Tensor:
        """The output of attention, [batch, heads, tokens, d]: a copy, as compiled graphs write over what they get."""
        if self._in_module:
            return super().attention(layer, call)
        output = self._old(layer, call.query.shape)
        if output is None:
            output = super().attention(layer, call)
            self._outputs[self._name, layer] = call.query.shape, output
        else:
            self.skipped(layer, call.heads)
        return output.clone()

    def _old(self, layer: str, shape: torch.Size) -> Any:
        """What was kept of inputs of this shape, if it is to return at this step, or None."""
        kept_shape, output = self._outputs.get((self._name, layer), (None, None))
        return output if self._step.kind == "reuse" and kept_shape == shape else None

    @property
    def held_bytes(self) -> int:
        """Memory held by the outputs of all passes."""
        outputs = [output for _, output in self._outputs.values()]  # of joint attention, text beside video
        return sum(part.nbytes for output in outputs for part in (output if isinstance(output, tuple) else (output,)))
