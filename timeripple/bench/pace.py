"""How long a generation takes on this machine, from what its steps took: of every kind of step the median, so that what
a busy machine did to single steps or whole runs does not decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import numpy as np

from timeripple.bench.front import RESAMPLES, bounds
from timeripple.clips.generate import Generation


def timing(generation: Generation) -> dict[str, Any]:
    """What `Pace.add` takes of a generation: step_kinds, step_seconds and rest_seconds, all that is no step."""
    steps = generation.step_seconds
    return {
        "step_kinds": step_kinds(generation.summary["records"], len(steps)),
        "step_seconds": list(steps),
        "rest_seconds": generation.seconds["total"] - sum(steps),
    }


def step_kinds(records: Iterable[dict[str, Any]], steps: int) -> list[str]:
    """What was done at every step: the kinds of its records, and the share of attention that was saved, to a tenth."""
    kinds: list[set[str]] = [set() for _ in range(steps)]
    savings: list[list[float]] = [[] for _ in range(steps)]
    for record in records:
        if record["step"] < steps:
            kinds[record["step"]].add(record["kind"])
            savings[record["step"]] += record["saving"]
    return [f"{'+'.join(sorted(own))} {fmean(saved or [0]):.1f}" for own, saved in zip(kinds, savings, strict=True)]


@dataclass
class Pace:
    """Seconds measured so far: steps by method without its number of steps and by kind, and what is no step."""

    steps: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    rest: list[float] = field(default_factory=list)

    def add(self, family: str, run: dict[str, Any]) -> None:
        """run: as `timing` gives it."""
        for kind, seconds in zip(run["step_kinds"], run["step_seconds"], strict=True):
            self.steps.setdefault((family, kind), []).append(seconds)
        self.rest.append(run["rest_seconds"])

    def seconds(self, family: str, runs: Sequence[dict[str, Any]]) -> float:
        """Of a generation, mean over runs that did these kinds of steps."""
        counts = Counter(kind for run in runs for kind in run["step_kinds"])
        steps = sum(count * median(self.steps[family, kind]) for kind, count in counts.items())
        return steps / len(runs) + median(self.rest)

    def interval(self, family: str, runs: Sequence[dict[str, Any]]) -> list[float]:
        """95 % bootstrap interval of `seconds` over the steps that were measured."""
        rng = np.random.default_rng(0)

        def medians(values: list[float]) -> np.ndarray:
            return np.median(rng.choice(values, (RESAMPLES, len(values))), axis=1)

        counts = Counter(kind for run in runs for kind in run["step_kinds"])
        steps = sum(count * medians(self.steps[family, kind]) for kind, count in counts.items())
        return bounds(steps / len(runs) + medians(self.rest))
