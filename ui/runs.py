"""Runs that outlive the page that started them: one worker, a bounded and fair queue, results kept for a while.

A run is known by its id alone. Ids cannot be guessed and are never listed, so visitors see only their own runs. What
is finished is noted in an index on disk, from which the next process takes it up.
"""

import contextvars
import logging
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradio.context import LocalContext

from timeripple.clips.generate import Cancelled
from ui.index import claim
from ui.limits import Limits

logger = logging.getLogger(__name__)
CLOSING_SECONDS = 10


class QueueFull(ValueError):
    """No more runs can wait; the message is one sentence for the visitor."""


def visitor_now() -> str:
    """Whose request is being answered: the session of the open page or of the program that calls; "" for none."""
    request = LocalContext.request.get(None)
    return getattr(request, "session_hash", None) or ""


@dataclass(eq=False)
class Run:
    """One piece of work, its progress and its outcome.

    state: queued, running, done, cancelled or failed. progress: the latest event of each method; previews: of all its
    steps so far. result: what the work returned, once done; error: one sentence, if it failed; bytes: size of its
    folder. version: grows with every change that shows. visitor: who asked for it; viewers: whose open pages show it.
    """

    id: str
    work: Callable[["Run"], Any] | None
    settings: tuple
    folder: Path
    visitor: str = ""
    state: str = "queued"
    progress: dict = field(default_factory=dict)
    previews: dict = field(default_factory=dict)
    result: Any = None
    error: str | None = None
    bytes: int = 0
    version: int = 0
    changed_at: float = field(default_factory=time.time)
    stop: threading.Event = field(default_factory=threading.Event)
    viewers: set[str] = field(default_factory=set)

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
        self.changed_at = time.time()
        self.version += 1


class Runs:
    """The registry: starts runs one after the other in a thread of its own, keeps the outcome within `limits`."""

    def __init__(self, limits: Limits, parent: str | Path):
        """`parent` holds the folder of the runs, with what an earlier process left there."""
        self.limits = limits
        self._index = claim(Path(parent))
        self._folder, self.alone = self._index.folder, self._index.alone
        self._lock = threading.Condition()
        self._turns: Counter[str] = Counter()  # when each visitor had a run started last
        self._recorded: dict[str, Run] = {}
        self._runs = {  # oldest first
            kept["id"]: Run(work=None, state="done", folder=self._folder / kept["id"], **kept)
            for kept in self._index.kept()
        }
        self._current: Run | None = None  # what the worker is at, also after it was cancelled
        self._closing = False
        self._clean()
        self._worker = threading.Thread(target=self._work, name="timeripple-runs", daemon=True)
        self._worker.start()

    def submit(self, work: Callable[[Run], Any], settings: tuple = (), visitor: str | None = None) -> Run:
        """Queues `work`, which is called with its run, in the context of this call: it writes to `run.folder`, calls
        `run.report` with every step and raises Cancelled soon after `run.stop` is set. Who asks has it in view from the
        beginning. Raises QueueFull."""
        visitor = visitor_now() if visitor is None else visitor
        context = contextvars.copy_context()  # ZeroGPU takes the visitor's quota from it
        name = secrets.token_urlsafe(16)
        run = Run(name, lambda run: context.run(work, run), settings, self._folder / name, visitor)
        with self._lock:
            unfinished = [run for run in self._runs.values() if not run.finished]
            own = sum(run.visitor == visitor for run in unfinished)
            if own >= self.limits.max_visitor_runs:
                raise QueueFull(f"You have {own} runs waiting already; let one finish or cancel it first.")
            waiting = sum(run.state == "queued" for run in unfinished)
            if waiting >= self.limits.max_queue:
                raise QueueFull(f"{waiting} runs are waiting already; please try again in a minute.")
            self._runs[name] = run
            if here := visitor_now():
                run.viewers.add(here)
            self._lock.notify_all()
        return run

    def adopt(self, folder: Path, result: Any, settings: tuple) -> Run:
        """A finished run that shows what lies in `folder`, recorded before: one for all visitors, and never forgotten
        while the process lives."""
        name = f"recorded-{folder.name}"
        with self._lock:
            if name not in self._recorded:
                shutil.copytree(folder, self._folder / name, dirs_exist_ok=True)
                self._recorded[name] = Run(name, None, settings, self._folder / name, state="done", result=result)
            return self._recorded[name]

    def find(self, id: str | None) -> Run | None:
        """The run with this id, or None if there is none or it is no longer kept; it is in view of who asks."""
        with self._lock:
            self._clean()
            run = self._recorded.get(id) or self._runs.get(id)
            if run and (visitor := visitor_now()):
                run.viewers.add(visitor)
            return run

    def leave(self, visitor: str) -> None:
        """This visitor's page is closed: nothing is in its view any more."""
        with self._lock:
            for run in [*self._runs.values(), *self._recorded.values()]:
                run.viewers.discard(visitor)

    def ahead(self, run: Run) -> int:
        """How many runs come before this one."""
        with self._lock:
            if run.state != "queued":
                return 0
            return list(self._line()).index(run) + (self._current is not None)

    def cancel(self, id: str | None) -> None:
        """Stops a run: its visitor is told at once, the worker leaves it after the step in progress."""
        with self._lock:
            run = self._runs.get(id)
            if run and not run.finished:
                run.stop.set()
                run.changed(state="cancelled", work=None)
                self._lock.notify_all()

    def wait(self, run: Run, seconds: float | None = None) -> bool:
        """Waits until the run has finished, at most so long; says whether it has."""
        with self._lock:
            return self._lock.wait_for(lambda: run.finished, seconds)

    def idle(self, seconds: float) -> bool:
        """Waits until the worker is at nothing, at most so long; says whether it is."""
        with self._lock:
            return self._lock.wait_for(lambda: self._current is None, seconds)

    def close(self) -> bool:
        """Stops what runs and waits, keeps what is finished for the next process; says whether the worker is done."""
        with self._lock:
            self._closing = True
            for run in self._runs.values():
                if not run.finished:
                    run.stop.set()
                    run.changed(state="failed", error="The server is being stopped; please generate again later.")
            self._lock.notify_all()
        self._worker.join(CLOSING_SECONDS)
        self._index.close()
        return not self._worker.is_alive()

    def _work(self) -> None:
        while not self._closing:
            with self._lock:
                self._lock.wait_for(lambda: self._closing or next(self._line(), None), timeout=60)
                self._clean()
                run = next(self._line(), None)
                if run is None or self._closing:
                    continue
                self._current = run
                self._turns[run.visitor] = max(self._turns.values(), default=0) + 1
                run.changed(state="running")
            overdue = threading.Timer(self.limits.max_wall_seconds, run.stop.set)
            overdue.start()
            outcome = self._outcome(run)
            overdue.cancel()
            with self._lock:
                self._finish(run, outcome)
                self._current = None
                self._clean()
                self._lock.notify_all()

    def _finish(self, run: Run, outcome: dict) -> None:
        """Notes what came of a run, unless it was cancelled meanwhile, and removes what is no result."""
        run.work = None
        if not run.finished:
            size = sum(file.stat().st_size for file in run.folder.glob("*"))
            if size > self.limits.max_megabytes * 1_000_000:
                outcome = {
                    "state": "failed",
                    "error": f"This result has {size // 1_000_000:,} MB; the limit here is "
                    f"{self.limits.max_megabytes:,}, so ask for a smaller size.",
                }
            run.changed(**outcome, bytes=size)
            if run.state == "done":
                self._index.add(run)
        if run.state != "done":
            shutil.rmtree(run.folder, ignore_errors=True)

    def _line(self) -> Iterator[Run]:
        """Runs that wait, in the order of their turn: one of every visitor, then the next of every visitor."""
        waiting = [run for run in self._runs.values() if run.state == "queued"]
        turns = self._turns.copy()
        while waiting:
            run = min(waiting, key=lambda run: turns[run.visitor])  # of equals the oldest
            turns[run.visitor] = max(turns.values(), default=0) + 1
            waiting.remove(run)
            yield run

    def _outcome(self, run: Run) -> dict:
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            return {"state": "done", "result": run.work(run)}
        except Cancelled:
            seconds = self.limits.max_wall_seconds
            return {"state": "failed", "error": f"The run was stopped after {seconds:,} seconds, the limit here."}
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
        """Forgets finished runs that are too old, or too many or too large together: of the visitor who has most of
        them the oldest, those that are in view last."""
        kept = [run for run in self._runs.values() if run.finished and run is not self._current]
        oldest_allowed = time.time() - self.limits.max_age
        for run in list(kept):
            if run.changed_at < oldest_allowed and not run.viewers:
                self._forget(run, kept)
        while kept and (
            len(kept) > self.limits.max_kept or sum(run.bytes for run in kept) > self.limits.max_megabytes * 1_000_000
        ):
            share = Counter(run.visitor for run in kept)
            if len(kept) <= self.limits.max_kept:
                for run in kept:
                    share[run.visitor] += run.bytes
            self._forget(max(kept, key=lambda run: (not run.viewers, share[run.visitor])), kept)
        present = {run.visitor for run in self._runs.values()}
        self._turns = Counter({visitor: turn for visitor, turn in self._turns.items() if visitor in present})

    def _forget(self, run: Run, kept: list[Run]) -> None:
        kept.remove(run)
        del self._runs[run.id]
        self._index.remove(run.id)
        shutil.rmtree(run.folder, ignore_errors=True)
