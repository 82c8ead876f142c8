"""Peers behind the same door and the same account as our method, each with its source and recommended settings.

A baseline of attention is an `attention.method.AttentionMethod` with `parse`, which reads it from text. One that caches
more than attention is a step cache, see `step_cache`.
"""

from typing import Any

from timeripple.baselines.attention_forecast import AttentionForecastConfig
from timeripple.baselines.cache_dit import CacheDitConfig
from timeripple.baselines.compact import CompactConfig
from timeripple.baselines.delta_dit import DeltaDitConfig
from timeripple.baselines.ditfastattn import DitFastAttnConfig
from timeripple.baselines.easycache import EasyCacheConfig
from timeripple.baselines.faster_cache import FasterCacheConfig
from timeripple.baselines.first_block_cache import FirstBlockCacheConfig
from timeripple.baselines.forecast import ForecastConfig
from timeripple.baselines.hsa import HsaConfig
from timeripple.baselines.lightning_cp import LightningCpConfig
from timeripple.baselines.mag_cache import MagCacheConfig
from timeripple.baselines.output_cache import OutputCacheConfig
from timeripple.baselines.pab import PabConfig
from timeripple.baselines.rettention import RettentionConfig
from timeripple.baselines.skip import SkipConfig
from timeripple.baselines.sliding_window import SlidingWindowConfig
from timeripple.baselines.spectrum import SpectrumConfig
from timeripple.baselines.stacked import StackedConfig
from timeripple.baselines.step_cache import CountedConfig, StepCache
from timeripple.baselines.svg import SvgConfig
from timeripple.baselines.svg2 import Svg2Config
from timeripple.baselines.taylorseer import TaylorSeerConfig
from timeripple.baselines.teacache import TeaCacheConfig
from timeripple.baselines.thinned import ThinnedConfig
from timeripple.baselines.token_merge import TokenMergeConfig

__all__ = [
    "ATTENTION",
    "STEP_CACHES",
    "CountedConfig",
    "OutputCacheConfig",
    "SkipConfig",
    "StackedConfig",
    "StepCache",
    "ThinnedConfig",
]

ATTENTION: dict[str, Any] = {
    "output-cache": OutputCacheConfig,
    "attention-forecast": AttentionForecastConfig,
    "skip": SkipConfig,
    "svg": SvgConfig,
    "svg2": Svg2Config,
    "compact": CompactConfig,
    "sliding-window": SlidingWindowConfig,
    "ditfastattn": DitFastAttnConfig,
    "re-ttention": RettentionConfig,
    "token-merge": TokenMergeConfig,
}
"""Configs that compute attention otherwise, by name."""

STEP_CACHES: dict[str, Any] = {
    "pab": PabConfig,
    "faster-cache": FasterCacheConfig,
    "first-block-cache": FirstBlockCacheConfig,
    "mag-cache": MagCacheConfig,
    "taylorseer": TaylorSeerConfig,
    "delta-dit": DeltaDitConfig,
    "forecast": ForecastConfig,
    "spectrum": SpectrumConfig,
    "easycache": EasyCacheConfig,
    "teacache": TeaCacheConfig,
    "cache-dit": CacheDitConfig,
    "hsa": HsaConfig,
    "lightning-cp": LightningCpConfig,
}
"""Configs that leave modules out at some steps, by name."""
