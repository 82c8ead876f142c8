"""Peers behind the same door and the same account as our method, each with its source.

A baseline is a frozen config with `label`, `granularity`, `budget`, `theta`, `schedule(num_inference_steps)`, `parse`
and `start(num_inference_steps)`, which returns what the hooks use like a `ReuseRun`.
"""

from timeripple.baselines.output_cache import OutputCacheConfig
from timeripple.baselines.skip import SkipConfig

__all__ = ["OutputCacheConfig", "SkipConfig"]
