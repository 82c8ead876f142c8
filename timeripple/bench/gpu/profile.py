"""What one call is made of: kernels on the device, and the gaps between them in which it waits for the host."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # torch does not list it among its exports
from torch.profiler import ProfilerActivity, profile

from timeripple.attention.timing import now

TOP = 14  # kernels listed one by one


def profile_call(call: Callable[[], object], device: torch.device, calls: int = 3) -> Iterator[dict[str, Any]]:
    """Rows {"name", "launches", "ms"} of one call, mean over `calls`: first the whole, then its longest kernels.

    The whole: "span", from its first kernel to the end of its last, "busy", in which any kernel runs, and "gaps", the
    rest. Without a GPU, operators of the CPU take the place of kernels.
    """
    for _ in range(calls):
        call()
    now(device)
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    spans = []
    kernels: dict[str, list[float]] = defaultdict(list)
    for _ in range(calls):
        with profile(activities=activities) as profiler:
            call()
            now(device)
        kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
        events = [event for event in profiler.events() if event.device_type == kind]
        ranges = sorted((event.time_range.start, event.time_range.end) for event in events)
        spans.append((ranges[-1][1] - ranges[0][0], _covered(ranges)))
        for event in events:
            kernels[event.name].append(event.time_range.end - event.time_range.start)
    span, busy = (sum(part) / calls for part in zip(*spans, strict=True))
    launches = sum(map(len, kernels.values())) / calls
    for name, microseconds in (("span", span), ("busy", busy), ("gaps", span - busy)):
        yield {"name": name, "launches": launches, "ms": microseconds / 1000}
    for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))[:TOP]:
        yield {"name": name[:120], "launches": len(times) / calls, "ms": sum(times) / calls / 1000}


def _covered(ranges: list[tuple[float, float]]) -> float:
    """Length of the union of intervals, which come in the order of their starts."""
    total, reached = 0.0, float("-inf")
    for start, end in ranges:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
