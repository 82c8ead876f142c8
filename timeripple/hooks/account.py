"""The account of a clip: what attention saved and took in all transformers of a pipeline, and in all sections of it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from timeripple.attention.method import AttentionMethod, Step
from timeripple.attention.records import summarise_saving

NEAR = 0.02  # how far a saving may stay below its budget before it is worth a word


@dataclass(frozen=True)
class Part:
    """The run of one transformer in one section. records: as `Records.read`; steps: of the schedule; choosing_seconds:
    spent on thresholds, beside what the records say; storage: as `residuals.Storage.report`; chosen: as
    `cost.SpeedupRun` has it."""

    records: list[dict[str, Any]]
    steps: Sequence[Step]
    grid: list[int] | None
    held_bytes: int
    choosing_seconds: float
    storage: dict[str, Any] | None
    chosen: dict[str, Any] | None


class Account:
    """Of the clip that is made, or was made last. Shared by the transformers of a pipeline, which take turns.

    transformers: how many there are; warns: whether a budget that a clip did not meet is said, once.
    """

    def __init__(self, config: AttentionMethod | None, transformers: int, warns: bool):
        self.config, self.transformers, self.warns = config, transformers, warns
        self._clip = 0
        self._parts: dict[int, dict[int, Part]] = {}  # by run and transformer
        self._closed: dict[int, int] = {}  # layers by transformer

    def begin(self, clip: int) -> None:
        """A run begins that belongs to this clip."""
        if clip != self._clip:
            self._clip, self._parts = clip, {}
        self._closed = {}

    def note(self, clip: int, run: int, who: int, part: Part) -> None:
        """What the run of a transformer has come to so far; runs of earlier clips, which were left, do not count."""
        if clip == self._clip:
            self._parts.setdefault(run, {})[who] = part

    def close(self, who: int, layers: int) -> None:
        """The clip is over, says a transformer of so many layers; the last to do so has the budget looked at."""
        self._closed[who] = layers
        if not self.warns or len(self._closed) < self.transformers or not self._parts:
            return
        numbers = summarise(self.config, sum(self._closed.values()), self.sections)
        steps = {record["step"] for record in numbers["records"]}
        is_whole = numbers["saving"] is not None and len(steps) == len(numbers["saving"]["per_step"])
        if is_whole and (why := shortfall(self.config, numbers)):
            warnings.warn(f"{numbers['method']}: {why}.", stacklevel=2)
            self.warns = False

    @property
    def sections(self) -> list[list[Part]]:
        """The runs of the transformers in each, in the order of the sections."""
        return [list(self._parts[run].values()) for run in sorted(self._parts)]

    def __reduce__(self) -> Any:
        """Of clips, nothing is copied or pickled."""
        return Account, (self.config, self.transformers, self.warns)


def summarise(config: AttentionMethod | None, layers: int, sections: list[list[Part]]) -> dict[str, Any]:
    """See `hooks.summary`; steps are counted on from section to section."""
    records: list[dict[str, Any]] = []
    steps: list[Step] = []
    for parts in sections:
        first = len(steps)
        records += [record | {"step": first + record["step"]} for part in parts for record in part.records]
        steps += [replace(step, index=first + step.index) for step in parts[0].steps]
    every = [part for parts in sections for part in parts]
    plan = sum(record["plan_seconds"] for record in records) + sum(part.choosing_seconds for part in every)
    attention = plan + sum(record["attention_seconds"] for record in records)
    reuses = config is not None and config.granularity is not None and steps
    return {
        "method": config.label if config else "dense",
        "granularity": config.granularity if config else None,
        "layers": layers,
        "grid": next((part.grid for part in reversed(every) if part.grid), None),
        "seconds": {"attention": attention, "plan": plan},
        "saving": summarise_saving(records, tuple(steps), config.kind) if config and reuses else None,
        "held_bytes": max((sum(part.held_bytes for part in parts) for parts in sections), default=0),
        "storage": _storage(sections[-1]) if sections else None,
        "chosen": next((part.chosen for part in reversed(every) if part.chosen), None),
        "records": records,
    }


def _storage(parts: list[Part]) -> dict[str, Any] | None:
    """Of all transformers together; they keep alike."""
    reports = [part.storage for part in parts if part.storage]
    return {**reports[0], "layers": sum(report["layers"] for report in reports)} if reports else None


def shortfall(config: AttentionMethod | None, numbers: dict[str, Any]) -> str | None:
    """One clause on a budget or a speed-up that was not met, with what was reached and why; None where it was.

    numbers: as `hooks.summary` gives them.
    """
    asked, chosen, saving = getattr(config, "speedup", None), numbers.get("chosen"), numbers["saving"]
    budget = chosen["saving"] if asked and chosen else getattr(config, "budget", None)
    if asked and chosen and chosen["speedup"] < asked * (1 - NEAR):
        if not chosen["budget"]:
            return "attention stayed dense, as reuse is not faster here at this size"
        return f"attention was to be {asked:g} times as fast and can be {chosen['speedup']:.2f} times here at this size"
    if budget is None or saving is None or saving["reuse_steps"] >= budget - NEAR:
        return None
    storage, layers = numbers["storage"], numbers["layers"]
    why = "text, a small grid or the refreshes leave no more to save"
    if numbers["granularity"] == "output":
        why = "only whole steps can be left out"
    if all(record["kind"] == "dense" for record in numbers["records"]):
        why = "its schedule has every step dense"
    if not numbers["records"]:
        why = "attention stayed dense"
    elif storage and storage["dtype"] == "float8_e4m3fn" and storage["layers"] < layers:
        why = f"memory was enough for the errors of {storage['layers']} of {layers} layers"
    wanted = f" for {asked:g} times the speed" if asked else ""
    reached = round(saving["reuse_steps"], 2) + 0.0  # never "-0%"
    return f"{budget:.0%} of the attention was to be saved{wanted} and {reached:.0%} was, as {why}"
