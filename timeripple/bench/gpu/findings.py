"""The JSON file of one part, written anew with every finding, so that what was measured before a time-out is there."""

from __future__ import annotations

import json
import math
import os
import subprocess
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class Findings:
    """What a part has found so far: {"part", "kind", "outcome", "seconds", "environment", "rows", ...}.

    outcome: "unfinished" until `end`; seconds: that the part has, of which `left` remain; notes: sentences.
    """

    def __init__(self, path: Path, part: str, environment: dict[str, Any], seconds: float):
        self.path, self._started, self._seconds = path, time.monotonic(), seconds
        self._lock = threading.Lock()
        self._document: dict[str, Any] = {
            "part": part,
            "kind": "measured here",
            "outcome": "unfinished",
            "seconds": 0.0,
            "environment": environment,
            "rows": [],
        }
        self._write()

    @property
    def left(self) -> float:
        """Seconds until this part has to be done."""
        return self._seconds - (time.monotonic() - self._started)

    def add(self, row: dict[str, Any], under: str = "rows") -> None:
        """Takes one more row; numbers that are not finite become None, as JSON has none."""
        with self._lock:
            self._document.setdefault(under, []).append({name: _finite(value) for name, value in row.items()})
            self._write()

    def note(self, sentence: str) -> None:
        with self._lock:
            self._document.setdefault("notes", []).append(sentence)
            self._write()

    def end(self, outcome: str) -> None:
        with self._lock:
            self._document["outcome"] = outcome
            self._write()

    def _write(self) -> None:
        self._document["seconds"] = round(time.monotonic() - self._started, 2)
        write_json(self.path, self._document)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """In one piece: a reader sees the old file or the new one."""
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(draft, path)


def reason(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def gpu_environment(device: str) -> dict[str, Any]:
    """`timing.environment` and, of a GPU, its driver, capability, memory, and what was built for it."""
    import torch

    from timeripple.attention.timing import environment

    found = environment() | {"cuda": torch.version.cuda, "hip": torch.version.hip, "date": _now()}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = None
    if torch.device(device).type != "cuda":
        return found | {"device": device}
    properties = torch.cuda.get_device_properties(device)
    return found | {
        "device": properties.name,
        "driver": _driver(),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=20).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return lines[0].strip() if lines else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
