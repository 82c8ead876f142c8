"""Caching the outputs of self-attention, after Pyramid Attention Broadcast (PAB, arXiv 2408.12588).

Attention outputs differ little between neighbouring denoising steps, so PAB computes a self-attention module at every
n-th step and returns its output again at the steps between. PAB's range of timesteps is our reuse window, and we take
self-attention only, as its spatial and temporal attention are one in the models here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from timeripple.attention.run import Records, summarise_saving
from timeripple.attention.torch_backend import dense_attention
from timeripple.config import (
    DEFAULT_BUDGET,
    DEFAULT_DENSE_FIRST,
    DEFAULT_DENSE_LAST,
    ConfigError,
    ReuseConfig,
    Step,
)
from timeripple.grid import TokenGrid
from timeripple.timing import mark


@dataclass(frozen=True)
class OutputCacheConfig:
    """budget: share of the steps of the reuse window that return a cached output; the rest as in `ReuseConfig`.

    Raises ConfigError for values that cannot work.
    """

    budget: float = DEFAULT_BUDGET
    dense_first: float = DEFAULT_DENSE_FIRST
    dense_last: int = DEFAULT_DENSE_LAST
    granularity = "output"
    theta = None

    def __post_init__(self):
        if not 0 <= self.budget < 1:
            raise ConfigError(
                f"budget {self.budget} is not a share of the attention; give a number from 0 up to, not including, 1."
            )
        self._window()

    @property
    def label(self) -> str:
        settings = {f.name: getattr(self, f.name) for f in fields(self)[1:] if getattr(self, f.name) != f.default}
        return "-".join([f"output-cache-{self.budget:g}", *(f"{name}={value}" for name, value in settings.items())])

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

    @classmethod
    def parse(cls, text: str) -> OutputCacheConfig:
        """Reads `output-cache[:budget][:dense_first=share][:dense_last=steps]`."""
        types = {"budget": float, "dense_first": float, "dense_last": int}
        values = {}
        for part in text.strip().split(":")[1:]:
            name, value = part.split("=", 1) if "=" in part else ("budget", part)
            if name not in types or name in values:
                problem = "given twice" if name in values else "unknown"
                raise ConfigError(f"setting {name!r} in {text!r} is {problem}; choose from {', '.join(types)}.")
            try:
                values[name] = types[name](value)
            except ValueError:
                raise ConfigError(f"{value!r} in {text!r} is not a value of {name}; give a number.") from None
        return cls(**values)


class OutputCacheRun:
    """Does for a cache of outputs what `ReuseRun` does for reuse, and keeps the same records."""

    def __init__(self, steps: tuple[Step, ...]):
        self.steps = steps
        self._records = Records()
        self._outputs: dict[tuple[str, str], Tensor] = {}

    def begin_forward(self, pass_name: str, step_index: int) -> None:
        self._name, self._step = pass_name, self.steps[step_index]

    def module(self, layer: str, forward: Callable[[], Tensor]) -> Tensor:
        """The output of a whole self-attention module, as PAB caches it: projections are saved as well."""
        if self._step.kind == "reuse" and (self._name, layer) in self._outputs:
            return self._outputs[self._name, layer]
        self._outputs[self._name, layer] = output = forward()
        return output

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
        """[batch, heads, tokens, d], dense."""
        start = mark(query.device)
        output = dense_attention(query, key, value, scale=scale, key_mask=key_mask)
        self._records.add(
            self._step, self._name, layer, None, torch.zeros(query.shape[1]), (start, start, mark(query.device))
        )
        return output

    def skipped(self, layer: str, heads: int) -> None:
        """Takes note of a layer whose output came from the cache."""
        self._records.add_skipped(self._step, self._name, layer, heads)

    def end_forward(self) -> None:
        """Nothing to close."""

    @property
    def records(self) -> list[dict]:
        """See `Records.read`."""
        return self._records.read()

    @property
    def held_bytes(self) -> int:
        """Memory held by the outputs of all passes."""
        return sum(output.nbytes for output in self._outputs.values())

    def saving(self) -> dict:
        """As `ReuseRun.saving`: share of attention saved."""
        return summarise_saving(self.records, self.steps, "realised")
