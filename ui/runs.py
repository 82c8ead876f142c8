"""Runs that outlive the page that started them: one worker, a bounded queue, results kept for a while.

A run is known by its id alone. Ids cannot be guessed and are never listed, so visitors see only their own runs.
"""

import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from timeripple.clips.generate import Cancelled, Request

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one app allows; `from_environment` reads each from TIMERIPPLE_<NAME IN CAPITALS>.

    max_tokens, max_steps: of one generation. max_queue: runs that may wait for their turn. max_kept: finished runs
    kept; max_age: for how many seconds; max_megabytes: on how much disk. max_upload_megabytes, max_upload_pixels,
    max_upload_seconds: of a visitor's file, of a frame of it and of its length. Runs share one model, so they go one
    after the other.
    """

    max_tokens: int = 16_384
    max_steps: int = 50
    max_queue: int = 8
    max_kept: int = 50
    max_age: int = 7200
    max_megabytes: int = 500
    max_upload_megabytes: int = 8
    max_upload_pixels: int = 16_777_216
    max_upload_seconds: int = 60

    def __post_init__(self):
        for each in fields(self):
            if getattr(self, each.name) < 1:
                raise ValueError(f"{each.name} is {getattr(self, each.name)}; give at least 1, such as {each.default}.")

    def check(self, pipeline, request: Request) -> None:
        """Raises ValueError, one sentence, for a request that is too large."""
        self.check_steps(request)
        if (tokens := request.tokens(pipeline)) > self.max_tokens:
            raise ValueError(f"This size is {tokens:,} tokens; the limit here is {self.max_tokens:,}.")

    def check_steps(self, request: Request) -> None:
        """Raises ValueError, one sentence, for too many steps."""
        if request.steps > self.max_steps:
            raise ValueError(f"These are {request.steps} steps; the limit here is {self.max_steps}.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Limits":
        """Raises ValueError, one sentence, for a variable that is no whole number of at least 1."""
        values = {}
        for each in fields(cls):
            variable = f"TIMERIPPLE_{each.name.upper()}"
            text = environment.get(variable, str(each.default))
            if not text.strip().isdecimal() or int(text) < 1:
                raise ValueError(f"{variable} is {text!r}; give a whole number of at least 1, such as {each.default}.")
            values[each.name] = int(text)
        return cls(**values)


class QueueFull(ValueError):
    """No more runs can wait; the message is one sentence for the visitor."""


@dataclass(eq=False)
class Run:
    """One piece of work, its progress and its outcome.

    state: queued, running, done, cancelled or failed. progress: the latest event of each method; previews: of all its
    steps so far. result: what the work returned, once done; error: one sentence, if it failed; bytes: size of its
    folder. version: grows with every change that shows.
    """

    id: str
    work: Callable[["Run"], Any]
    settings: tuple
    folder: Path
    state: str = "queued"
    progress: dict = field(default_factory=dict)
    previews: dict = field(default_factory=dict)
    result: Any = None
    error: str | None = None
    bytes: int = 0
    version: int = 0
    changed_at: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def finished(self) -> bool:
        return self.state in ("done", "cancelled", "failed")

    def report(self, *event) -> None:
        """Takes note of a step: a StepEvent, under the name of its method, or (done, all), as "step"."""
        name, value = ("step", event) if len(event) == 2 else (event[0].method, event[0])
        if getattr(value, "preview", None) is not None:
            self.previews.setdefault(name, []).append(value.preview)
        self.changed(progress={**self.progress, name: value})

    def changed(self, **attributes) -> None:
        for name, value in attributes.items():
            setattr(self, name, value)
        self.changed_at = time.monotonic()
        self.version += 1


class Runs:
    """The registry: starts runs one after the other in a thread of its own, keeps the outcome within `limits`."""

    def __init__(self, limits: Limits, parent: str | Path):
        """`parent` holds the folder of the runs, which goes when the process ends."""
        Path(parent).mkdir(parents=True, exist_ok=True)
        self.limits = limits
        self._folder = tempfile.TemporaryDirectory(prefix="runs-", dir=parent, ignore_cleanup_errors=True)
        self._runs: dict[str, Run] = {}  # oldest first
        self._lock = threading.Condition()
        threading.Thread(target=self._work, name="timeripple-runs", daemon=True).start()

    def submit(self, work: Callable[[Run], Any], settings: tuple = ()) -> Run:
        """Queues `work`, which is called with its run: it writes to `run.folder`, calls `run.report` with every step
        and raises Cancelled soon after `run.stop` is set. Raises QueueFull."""
        with self._lock:
            waiting = sum(run.state == "queued" for run in self._runs.values())
            if waiting >= self.limits.max_queue:
                raise QueueFull(f"{waiting} runs are waiting already; please try again in a minute.")
            name = secrets.token_urlsafe(16)
            run = self._runs[name] = Run(name, work, settings, Path(self._folder.name) / name)
            self._lock.notify_all()
        return run

    def adopt(self, folder: Path, result: Any, settings: tuple) -> Run:
        """A finished run with a copy of what lies in `folder`, for results that were recorded before."""
        name = secrets.token_urlsafe(16)
        run = Run(name, None, settings, Path(self._folder.name) / name, state="done", result=result)
        shutil.copytree(folder, run.folder)
        run.bytes = sum(file.stat().st_size for file in run.folder.glob("*"))
        with self._lock:
            self._runs[name] = run
            self._clean()
        return run

    def find(self, id: str | None) -> Run | None:
        """The run with this id, or None if there is none or it is no longer kept."""
        with self._lock:
            self._clean()
            return self._runs.get(id)

    def ahead(self, run: Run) -> int:
        """How many runs come before this one."""
        with self._lock:
            earlier = list(self._runs)[: list(self._runs).index(run.id)] if run.id in self._runs else []
            return sum(not self._runs[id].finished for id in earlier)

    def cancel(self, id: str | None) -> None:
        """Stops a run: at once if it waits, after the step in progress if it runs."""
        with self._lock:
            run = self._runs.get(id)
            if run and not run.finished:
                run.stop.set()
                run.changed(state="cancelled" if run.state == "queued" else run.state)
                self._lock.notify_all()

    def wait(self, run: Run, seconds: float | None = None) -> bool:
        """Waits until the run has finished, at most so long; says whether it has."""
        with self._lock:
            return self._lock.wait_for(lambda: run.finished, seconds)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._next() is not None, timeout=60)
                self._clean()
                if (run := self._next()) is None:
                    continue
                run.changed(state="running")
            outcome = self._outcome(run)
            if outcome["state"] != "done":
                shutil.rmtree(run.folder, ignore_errors=True)
            with self._lock:
                run.changed(**outcome, bytes=sum(file.stat().st_size for file in run.folder.glob("*")))
                self._clean()
                self._lock.notify_all()

    def _next(self) -> Run | None:
        return next((run for run in self._runs.values() if run.state == "queued"), None)

    def _outcome(self, run: Run) -> dict:
        try:
            run.folder.mkdir(parents=True)
            return {"state": "done", "result": run.work(run)}
        except Cancelled:
            return {"state": "cancelled"}
        except ValueError as error:
            return {"state": "failed", "error": str(error)}
        except OSError as error:
            logger.exception("run failed")
            reason = error.strerror or getattr(error.__cause__, "strerror", None) or "the disk refused"
            return {"state": "failed", "error": f"The result could not be written: {reason.lower()}."}
        except Exception as error:
            logger.exception("run failed")
            return {"state": "failed", "error": f"The run stopped on an unexpected {type(error).__name__}; try again."}

    def _clean(self) -> None:
        """Forgets finished runs that are too old, too many or too large together, oldest first."""
        kept = [run for run in self._runs.values() if run.finished]
        oldest_allowed = time.monotonic() - self.limits.max_age
        for run in list(kept):
            too_large = sum(run.bytes for run in kept) > self.limits.max_megabytes * 1_000_000
            if too_large or len(kept) > self.limits.max_kept or run.changed_at < oldest_allowed:
                shutil.rmtree(run.folder, ignore_errors=True)
                kept.remove(run)
                del self._runs[run.id]
