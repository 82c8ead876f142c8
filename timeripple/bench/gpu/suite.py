"""Runs the parts one after the other, each in a process of its own with its own time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from timeripple.bench.gpu.findings import write_json

MARGIN = 8  # seconds a part has less than its process, so that it can end by itself
LAST_WORDS = 600  # characters


@dataclass(frozen=True)
class Part:
    """seconds: the most its process may take, None: all that is left; columns: of the table that is printed."""

    seconds: float | None
    columns: tuple[str, ...]


PARTS = {  # by worth
    "kernels": Part(110, ("kernel", "dtype", "head_dim", "cases", "failed", "worst_error")),
    "attention": Part(150, ("shape", "method", "ms", "plan_ms", "speedup", "tflops", "saving", "relative_error")),
    "end-to-end": Part(120, ("tokens", "method", "seconds", "speedup", "attention_share", "saving", "psnr")),
    "denoising": Part(140, ("shape", "method", "steps", "seconds", "speedup", "failure")),
    "pipelines": Part(120, ("pipeline", "how", "dtype", "passed", "relative_error", "failure")),
    "training": Part(None, ()),
}


def run_parts(
    out: Path,
    minutes: float = 10,
    parts: Sequence[str] = tuple(PARTS),
    device: str = "cuda:0",
    small: bool = False,
    on_part: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """What every part found, as it is in out/<part>.json; on_part is called with each when it is done.

    minutes: for all parts together; those for which nothing is left say so. small: tiny sizes, for a rehearsal
    without a GPU. A part that hangs, fails or is killed has that as its outcome, beside what it had found until then.
    Raises ValueError for an unknown part, OSError where the folder cannot be written.
    """
    for name in parts:
        if name not in PARTS:
            raise ValueError(f"The part {name!r} is unknown; choose from {', '.join(PARTS)}.")
    if not minutes > 0:
        raise ValueError(f"The time is {minutes} minutes; give more than 0, such as 10.")
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    documents = []
    for name in parts:
        left = end - time.monotonic()
        most = PARTS[name].seconds
        limit = left if most is None else min(left, most)
        documents.append(run_part(name, out / f"{name}.json", limit, device, small))
        if on_part is not None:
            on_part(documents[-1])
    return documents


def run_part(name: str, path: Path, seconds: float, device: str, small: bool) -> dict[str, Any]:
    """One part in a child process, killed with its own children after `seconds`."""
    path.unlink(missing_ok=True)
    if seconds <= MARGIN:
        return _settle(name, path, "left out: no time was left")
    command = [sys.executable, "-m", "timeripple.bench.gpu", name, str(path), device, f"{seconds - MARGIN:.1f}"]
    started = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [*command, *(["--small"] if small else [])], stdout=errors, stderr=errors, start_new_session=True
        )
        try:
            code = child.wait(seconds)
            outcome = None
        except subprocess.TimeoutExpired:
            code, outcome = None, f"killed after {seconds:.0f} s"
        finally:
            _kill_group(child)
        if code:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            outcome = f"died of {how} after {time.monotonic() - started:.0f} s"
        said = last_words(errors) if outcome else ""
    return _settle(name, path, outcome, said)


def last_words(file: IO[bytes]) -> str:
    """The end of what a process wrote."""
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - LAST_WORDS))
    return file.read().decode("utf-8", "replace").strip()


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """Ends a child and whatever it started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # one that the driver holds cannot be ended, and is left behind
        child.wait(10)


def _settle(name: str, path: Path, outcome: str | None, said: str = "") -> dict[str, Any]:
    """The part's document, with the outcome that its process could not write itself."""
    document: dict[str, Any] = {
        "part": name,
        "kind": "measured here",
        "outcome": outcome,
        "environment": {},
        "rows": [],
    }
    if path.exists():
        document = json.loads(path.read_text(encoding="utf-8"))
    if document["outcome"] in (None, "unfinished"):
        document["outcome"] = outcome or "ended without a word"
    if said:
        document["last_words"] = said
    write_json(path, document)
    path.with_suffix(".part").unlink(missing_ok=True)
    return document
