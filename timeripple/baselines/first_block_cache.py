"""First-block cache (ParaAttention; diffusers): when the first block's residual hardly changes, the others' returns."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from diffusers import DiffusionPipeline
from diffusers import FirstBlockCacheConfig as DiffusersConfig

from timeripple.attention.method import require
from timeripple.baselines.settings import NamedSettings
from timeripple.baselines.step_cache import caching


@dataclass(frozen=True)
class FirstBlockCacheConfig(NamedSettings, name="first-block-cache"):
    """threshold: relative change of the first block's residual below which the step is skipped, usually 0.05 to 0.2."""

    threshold: float = 0.1

    def __post_init__(self) -> None:
        require(self.threshold >= 0, f"threshold {self.threshold} is negative; give 0 or more")

    def applied(self, pipeline: DiffusionPipeline, num_inference_steps: int) -> AbstractContextManager[None]:
        return caching(pipeline, lambda: DiffusersConfig(self.threshold))
