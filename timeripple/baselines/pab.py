"""Pyramid Attention Broadcast (PAB, arXiv 2408.12588), as diffusers has it: attention modules whose outputs return."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from diffusers import DiffusionPipeline, PyramidAttentionBroadcastConfig
from diffusers.hooks.pyramid_attention_broadcast import _PYRAMID_ATTENTION_BROADCAST_HOOK

from timeripple.attention.method import require
from timeripple.baselines.settings import NamedSettings
from timeripple.baselines.step_cache import caching, state_per_pass


@dataclass(frozen=True)
class PabConfig(NamedSettings, name="pab"):
    """skip_range: self-attention is computed at every so many steps; start, end: at timesteps between these, of 1000.

    The defaults are those of diffusers' documentation for full attention over space and time.
    """

    skip_range: int = 2
    start: int = 100
    end: int = 800

    def __post_init__(self) -> None:
        require(self.skip_range >= 1, f"skip_range {self.skip_range} is not a number of steps; give 1 or more")
        require(0 <= self.start < self.end <= 1000, f"start {self.start} and end {self.end} are no range in 0 to 1000")

    @contextmanager
    def applied(self, pipeline: DiffusionPipeline, num_inference_steps: int) -> Iterator[None]:
        def config() -> PyramidAttentionBroadcastConfig:
            return PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=self.skip_range,
                spatial_attention_timestep_skip_range=(self.start, self.end),
                current_timestep_callback=lambda: pipeline.current_timestep.max(),  # of frames that have one each
            )

        with caching(pipeline, config), state_per_pass(pipeline, _PYRAMID_ATTENTION_BROADCAST_HOOK):
            yield
