"""EasyCache (arXiv 2507.02860): a step is left out while the change of the output, predicted from that of the latents
by their ratio at the last computed step, adds up to less than a threshold. Output minus latents then returns.

The first guidance pass decides for all, as in the authors' code for Wan.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from timeripple.attention.method import require
from timeripple.baselines.block_stack import StackCache, Streams, leaving_out
from timeripple.baselines.settings import NamedSettings


@dataclass(frozen=True)
class EasyCacheConfig(NamedSettings, name="easycache"):
    """threshold: of the added-up relative change, 0.05 for Wan 2.1 and 0.025 for HunyuanVideo; retention: share of the
    steps at the start that are computed, 10 of 50 in the paper. The last step is computed, too."""

    threshold: float = 0.05
    retention: float = 0.2

    def __post_init__(self) -> None:
        require(self.threshold >= 0, f"threshold {self.threshold} is negative; give 0 or more")
        require(0 <= self.retention <= 1, f"retention {self.retention} is not a share; give a number from 0 to 1")

    def applied(self, pipeline: DiffusionPipeline, num_inference_steps: int) -> AbstractContextManager[None]:
        kept = max(1, round(self.retention * num_inference_steps)), num_inference_steps - 1
        return leaving_out(pipeline, partial(EasyCache, self.threshold, *kept))


class EasyCache(StackCache):
    def __init__(self, threshold: float, start: int, last: int):
        self.threshold, self.start, self.last = threshold, start, last
        self.ratio: float | None = None  # of the output's change to the latents', at the last computed step
        self.added_up = 0.0
        self.leaves_out = False
        self.latents: Tensor | None = None  # of this step, and of the last computed one
        self.computed_latents: Tensor | None = None
        self.output: Tensor | None = None  # of the last computed step, and that minus its latents
        self.change: Tensor | None = None

    def begin(self, step: int, latents: Tensor) -> None:
        previous, self.latents = self.latents, latents
        if self.first is not self:
            self.leaves_out = self.first.leaves_out  # type: ignore[attr-defined]
            return
        self.leaves_out = False
        if self.start <= step < self.last and self.ratio is not None and previous is not None:
            assert self.output is not None
            self.added_up += self.ratio * mean_change(latents, previous) / float(self.output.float().abs().mean())
            self.leaves_out = self.added_up < self.threshold
        if not self.leaves_out:
            self.added_up = 0.0

    def instead(self, step: int, entered: Streams, arguments: dict[str, Any]) -> Streams | None:
        return entered if self.leaves_out else None

    def finish(self, output: Tensor) -> Tensor:
        assert self.latents is not None
        latents = self.latents[:, : output.shape[1]]  # without what the model is given beside them
        if self.leaves_out and self.change is not None:
            return latents + self.change
        if self.output is not None and self.computed_latents is not None:
            moved = mean_change(self.latents, self.computed_latents)
            self.ratio = mean_change(output, self.output) / moved if moved else None
        self.computed_latents, self.output, self.change = self.latents, output, output - latents
        return output

    def computed(self, step: int, entered: Streams, left: Streams) -> None:
        """Nothing of the blocks is kept."""


def mean_change(now: Tensor, before: Tensor) -> float:
    """Mean absolute difference."""
    return float((now.float() - before.float()).abs().mean())
