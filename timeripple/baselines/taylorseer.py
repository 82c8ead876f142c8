"""TaylorSeer (arXiv 2503.06923), as diffusers has it: outputs of modules are continued as Taylor series in the step."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline, TaylorSeerCacheConfig

from timeripple.attention.method import require
from timeripple.baselines.settings import NamedSettings
from timeripple.baselines.step_cache import caching

MODULES = r"\w*blocks\.\d+\.(attn\d?|ffn?|ff_context|proj_out)"
"""Attention and feed-forward modules, which the paper continues."""


@dataclass(frozen=True)
class TaylorSeerConfig(NamedSettings, name="taylorseer"):
    """interval: every so many steps are computed; order: of the series; start: steps computed before it begins, after
    which one is left out; spacing: "start" for that, or "even": step 0 and every interval-th, as many fewer.

    The defaults are diffusers', and the paper's for video models.
    """

    interval: int = 5
    order: int = 1
    start: int = 3
    spacing: str = "start"

    def __post_init__(self) -> None:
        require(self.spacing in ("start", "even"), f"spacing {self.spacing!r} is unknown; choose from start, even")
        for name, least in (("interval", 1), ("order", 0), ("start", 1)):
            require(getattr(self, name) >= least, f"{name} {getattr(self, name)} is too small; give {least} or more")

    def computed(self, num_inference_steps: int) -> tuple[int, ...]:
        """The steps that are computed, as diffusers counts."""
        return tuple(
            step
            for step in range(num_inference_steps)
            if step < self._start or (step - self._start - 1) % self.interval == 0
        )

    @property
    def _start(self) -> int:
        """For diffusers, whose first step after the start is left out."""
        return -1 if self.spacing == "even" else self.start

    def applied(self, pipeline: DiffusionPipeline, num_inference_steps: int) -> AbstractContextManager[None]:
        return caching(
            pipeline,
            lambda: TaylorSeerCacheConfig(
                cache_interval=self.interval,
                max_order=self.order,
                disable_cache_before_step=self._start,
                taylor_factors_dtype=torch.float32,
                cache_identifiers=[MODULES],
            ),
        )
