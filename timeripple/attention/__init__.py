"""The kernel core: a call and a method in, output and statistics out."""

from timeripple.attention.call import AttentionCall
from timeripple.attention.config import ReuseConfig
from timeripple.attention.dispatch import AttentionStatistics, ripple_attention
from timeripple.attention.run import ReuseRun

__all__ = ["AttentionCall", "AttentionStatistics", "ReuseConfig", "ReuseRun", "ripple_attention"]
