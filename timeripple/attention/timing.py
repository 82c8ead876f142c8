"""How things are timed, and on what machine."""

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

Mark = float | torch.cuda.Event


def now(device: torch.device | str = "cpu") -> float:
    """Wall clock in seconds, once `device` has finished what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def mark(device: torch.device) -> Mark:
    """Now, without waiting: the wall clock, or on CUDA an event in the queue of the device."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def elapsed(start: Mark, end: Mark) -> float:
    """Seconds between two marks; waits until the device has reached the second."""
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    assert not isinstance(start, float) and not isinstance(end, float), "both marks are of one device"
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


class Stopwatch:
    """Wall clock since it was made, less what was spent inside `paused()`."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = device
        self._start = now(device)

    @property
    def seconds(self) -> float:
        return now(self.device) - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of the block out."""
        start = now(self.device)
        try:
            yield
        finally:
            self._start += now(self.device) - start


@contextmanager
def peak_memory(device: torch.device | str = "cpu") -> Iterator[Callable[[], int | None]]:
    """Yields what returns the most bytes held since: by CUDA tensors, or by the process as Linux counts it.

    None where neither can be asked.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # sets the process's high-water mark back
    except OSError:
        yield lambda: None
        return
    status = Path("/proc/self/status")

    def most() -> int:
        rows = status.read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(row for row in rows if row.startswith("VmHWM")).split()[1])

    yield most


def load() -> float | None:
    """Processes that want to run, mean of the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def environment(pipeline: Any = None) -> dict[str, Any]:
    """The machine as reports name it: device, cpu, amx (whether it multiplies matrices in
    hardware), avx512, threads, load (see there), platform, torch, date (UTC, ISO 8601).

    Of a diffusers pipeline with a transformer, the device it is on, the dtype in which it denoises, and whether blocks
    of it are compiled.
    """
    device = torch.device("cpu") if pipeline is None else pipeline.device
    parts = [] if pipeline is None else pipeline.transformer.modules()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": _cpu_model(),
        "amx": bool(torch.cpu.get_capabilities().get("amx_bf16", False)),
        "avx512": bool(torch.cpu.get_capabilities().get("avx512_f", False)),
        "cores": os.cpu_count(),
        "load": load(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "dtype": None if pipeline is None else str(pipeline.transformer.dtype).removeprefix("torch."),
        "compiled": any(part._compiled_call_impl is not None for part in parts),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
