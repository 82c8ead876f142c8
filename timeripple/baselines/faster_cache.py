"""FasterCache (arXiv 2410.19355), as diffusers has it: attention outputs are continued from the last two, and the
unconditional half of guidance from the conditional one.

It works on guidance in one batch. Pond and the pipelines of CogVideoX, Mochi and Allegro can do that; Wan's and
HunyuanVideo's make two passes, and LTX-Video's latents have no frames that it could take apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from diffusers import DiffusionPipeline
from diffusers import FasterCacheConfig as DiffusersConfig

from timeripple.attention.method import ConfigError, require
from timeripple.baselines.settings import NamedSettings
from timeripple.baselines.step_cache import caching, refuse_model_offloading
from timeripple.hooks import transformers

TENSOR_FORMATS = {"CogVideoXTransformer3DModel": "BFCHW"}
BATCHED = ("CogVideoXPipeline", "MochiPipeline", "AllegroPipeline")


@dataclass(frozen=True)
class FasterCacheConfig(NamedSettings, name="faster-cache"):
    """skip_range: attention is computed at every so many steps, below timestep 681 of 1000; guidance_range: the
    unconditional half at every so many, below 641. Ranges and weights are diffusers', the paper's where it says."""

    skip_range: int = 2
    guidance_range: int = 5

    def __post_init__(self) -> None:
        for name in ("skip_range", "guidance_range"):
            require(getattr(self, name) >= 1, f"{name} {getattr(self, name)} is not a number of steps; give 1 or more")

    @contextmanager
    def applied(self, pipeline: DiffusionPipeline, num_inference_steps: int) -> Iterator[None]:
        """Raises ConfigError for pipelines that guide in two passes or are offloaded model by model."""
        can_batch = hasattr(pipeline, "batched_guidance")
        if not can_batch and type(pipeline).__name__ not in BATCHED:
            raise ConfigError(
                f"faster-cache needs guidance in one batch, and {type(pipeline).__name__} makes two passes."
            )
        refuse_model_offloading(pipeline, "faster-cache")
        kind = type(transformers(pipeline)[0]).__name__

        def config() -> DiffusersConfig:
            return DiffusersConfig(
                spatial_attention_block_skip_range=self.skip_range,
                unconditional_batch_skip_range=self.guidance_range,
                attention_weight_callback=lambda _: 1 - float(pipeline.current_timestep) / 1000,  # rises from 0 to 1
                tensor_format=TENSOR_FORMATS.get(kind, "BCFHW"),
                current_timestep_callback=lambda: float(pipeline.current_timestep),
            )

        if can_batch:
            pipeline.batched_guidance = True
        try:
            with caching(pipeline, config):
                yield
        finally:
            if can_batch:
                pipeline.batched_guidance = False
