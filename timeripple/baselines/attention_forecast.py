"""Forecast of attention outputs: at the refreshes of token reuse attention is computed, and at every step between its
output is continued along the last two, with nothing computed there.

Token reuse without its reused attention: what it loses against `token` of the same budget is what fresh, if coarse,
attention is worth beside the caching of an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.config import ReuseConfig
from timeripple.attention.dispatch import AttentionStatistics
from timeripple.attention.run import Kept, ReuseRun
from timeripple.attention.timing import mark
from timeripple.baselines.settings import as_reuse

SETTINGS = ("budget", "refresh", "extrapolate", "dense_first", "dense_last")


@dataclass(frozen=True)
class AttentionForecastConfig(ReuseConfig):
    """The schedule is that of token reuse with the same settings; budget is what that saves, not what this does."""

    @property
    def label(self) -> str:
        return "attention-forecast" + super().label.removeprefix(self.granularity)

    def start(self, num_inference_steps: int) -> AttentionForecastRun:
        return AttentionForecastRun(self, num_inference_steps)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `attention-forecast[:budget][:key=value...]`."""
        return super().parse(as_reuse("token", text, SETTINGS))


class AttentionForecastRun(ReuseRun):
    """`ReuseRun` whose reused output is zero, so that what a refresh keeps as its error is the output itself."""

    def _reuse(
        self, layer: str, call: AttentionCall, kept: Kept | None, residual: Tensor | None
    ) -> tuple[Tensor, AttentionStatistics]:
        now = mark(call.device)
        output = torch.zeros_like(call.query) if residual is None else residual.to(call.query.dtype, copy=True)
        saving = torch.ones(call.heads, dtype=torch.float64)
        return output, AttentionStatistics(saving, "realised", None, (now, now, now), "torch", None, None)

    def _target(self, step: object) -> float:
        """There is no plan to ask a saving of."""
        return 0.0
