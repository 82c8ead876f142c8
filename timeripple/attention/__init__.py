"""The kernel core: query, key, value, grid and config in, output and statistics out."""

from timeripple.attention.dispatch import AttentionStatistics, ripple_attention
from timeripple.attention.run import ReuseRun

__all__ = ["AttentionStatistics", "ReuseRun", "ripple_attention"]
