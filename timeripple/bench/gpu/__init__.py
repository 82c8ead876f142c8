"""What a GPU shall tell: every part in a process of its own, whose failure is a finding and not the end."""

from timeripple.bench.gpu.suite import PARTS, run_parts

__all__ = ["PARTS", "run_parts"]
