"""What a search for the best method measured so far, and what it makes of that for what it did not measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from statistics import fmean, median
from typing import Any

import numpy as np

from timeripple.attention.method import ConfigError
from timeripple.bench.pace import Pace
from timeripple.bench.sweep import Job
from timeripple.bench.work import family
from timeripple.clips.generate import Request
from timeripple.clips.methods import parse_method

LEAST = 2  # steps in which anything is tried
SLOPE = 7 / math.log(2)
"""dB for every e-fold of the steps, until dense was measured in two numbers of them."""
SHARED = 0.4
"""Share of what a prompt lies above the others with dense that it does with other methods, which lose most where dense
loses least."""
DOUBT, DOUBT_OF_STEPS = 0.4, 1.0
"""How wrong an estimate may be: dB for one prompt in place of many, falling to none when all are in, and dB an e-fold
of the steps to those measured. Less misses the best, more measures nearly everything (tried on the dB that
`assets/benchmarks/gpu/h200-work.json` has)."""
NEAR_MISS = 0.1  # dB that numbers of steps between those measured may be better than a line says


@dataclass(frozen=True)
class Target:
    """One of: psnr in dB to the converged clip, to be kept in the least time; speedup over dense in the pipeline's own
    number of steps, or seconds, in which to keep as much as can be. Raises ValueError, one sentence."""

    psnr: float | None = None
    speedup: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in asdict(self).values() if value is not None]
        if len(given) != 1:
            raise ValueError("Give one target: psnr in dB, such as 36, speedup, such as 2, or seconds, such as 20.")
        if not (math.isfinite(given[0]) and given[0] > 0):
            raise ValueError(f"The target is {given[0]:g}; give more than 0.")


class Search:
    """What was measured so far: methods, each in some numbers of steps, on some of the requests.

    What is not measured yet is estimated. dB rise with log steps, between those of a family that were measured in a
    line and beyond them as dense's do. By how much a prompt lies above the mean of all is `SHARED` of what it is for
    dense, until the family itself was measured on all. Seconds go with the steps.

    dense: the family that says so, with the solver that all methods have.
    """

    def __init__(
        self,
        run: Callable[[list[Job]], dict[Job, dict[str, Any]]],
        requests: Sequence[Request],
        target: Target,
    ):
        self._run, self.requests, self.target = run, requests, target
        self.results: dict[Job, dict[str, Any]] = {}
        self.pace = Pace()
        self.refused: dict[str, str] = {}
        self.dense = "dense"

    def measure(self, methods: Sequence[str], prompts: int) -> None:
        """Runs what is missing; families that make no clip here are noted and left out from then on."""
        wanted = dict.fromkeys(Job(request, text) for request in self.requests[:prompts] for text in methods)
        missing = [job for job in wanted if job not in self.results and family(job.method) not in self.refused]
        for job, result in self._run(missing).items() if missing else ():
            if "refused" in result:
                self.refused[family(job.method)] = result["refused"]
            else:
                self.results[job] = result
                self.pace.add(family(job.method), result)

    def measured(self, prompts: int) -> list[str]:
        """The methods that were measured on so many requests."""
        return [text for text in dict.fromkeys(job.method for job in self.results) if self.prompts(text) >= prompts]

    def prompts(self, text: str) -> int:
        """On how many requests a method was measured."""
        return sum(Job(request, text) in self.results for request in self.requests)

    def runs(self, text: str) -> list[dict[str, Any]]:
        jobs = (Job(request, text) for request in self.requests)
        return [self.results[job] for job in jobs if job in self.results]

    def psnr(self, text: str) -> float:
        """Mean over the requests it was measured on."""
        return fmean(run["psnr_converged"] for run in self.runs(text))

    def seconds(self, text: str) -> float:
        """Mean over the requests it was measured on."""
        return self.pace.seconds(family(text), self.runs(text))

    @cached_property
    def limit(self) -> float:
        """The seconds allowed, inf for a PSNR. For a speed-up dense is run, its dB left aside: in so many steps it may
        be the converged clip itself. Raises ValueError where it makes no clip."""
        if self.target.speedup is None:
            return self.target.seconds or math.inf
        own = Job(self.requests[0], f"dense:steps={self.requests[0].steps}")
        result = self._run([own])[own]
        if "refused" in result:
            raise ValueError(result["refused"])
        self.pace.add("dense", result)
        return self.pace.seconds("dense", [result]) / self.target.speedup

    def steps_of(self, name: str) -> list[int]:
        """In which numbers of steps a family was measured."""
        return sorted({steps_in(job.method) for job in self.results if family(job.method) == name})

    def slope(self) -> float:
        """dB for every e-fold of the steps, as dense has them: of lines through every prompt's, in parallel."""
        apart = []
        for request in self.requests:
            own = [job for job in self.results if job.request == request and family(job.method) == self.dense]
            level = [(math.log(steps_in(job.method)), self.results[job]["psnr_converged"]) for job in own]
            apart += list(np.array(level) - np.mean(level, 0)) if level else []
        steps, level = np.array(apart).T
        return max(1.0, float(steps @ level / (steps @ steps))) if steps.any() else SLOPE

    def offsets(self, name: str) -> np.ndarray:
        """dB by which every prompt lies above the mean of all, [prompts]: as measured for a family, or else a share of
        what dense has."""
        everywhere = self.measured(len(self.requests))
        own = [text for text in everywhere if family(text) == name]
        texts = own or [text for text in everywhere if family(text) == self.dense]
        if not texts:
            return np.zeros(len(self.requests))
        level = np.array([[run["psnr_converged"] for run in self.runs(text)] for text in texts])
        return (level - level.mean(1, keepdims=True)).mean(0) * (1.0 if own else SHARED)

    def pair_up(self) -> None:
        """Puts those two requests first that together are most like all of them, as dense has it."""
        offsets = self.offsets(self.dense)
        if len(offsets) > 2:
            pair = min(combinations(range(len(offsets)), 2), key=lambda pair: abs(offsets[[*pair]].sum()))
            self.requests = [self.requests[i] for i in sorted(range(len(offsets)), key=lambda i: i not in pair)]

    def levels(self, name: str, most: int) -> tuple[np.ndarray, np.ndarray]:
        """dB of a family in `LEAST` to `most` steps, mean over all requests, and by how much they may be wrong."""
        steps, known, everything = np.arange(LEAST, most + 1), np.array(self.steps_of(name)), len(self.requests)
        texts = [f"{name}:steps={count}" for count in known]
        own = np.array([[Job(request, text) in self.results for request in self.requests] for text in texts])
        prompts, offsets = own.sum(1), self.offsets(name)
        level = [self.psnr(text) - offsets[ran].mean() for text, ran in zip(texts, own, strict=True)]
        beyond = np.log(steps / steps.clip(known[0], known[-1]))
        levels = np.interp(np.log(steps), np.log(known), level) + self.slope() * beyond
        distance = np.abs(np.log(steps)[:, None] - np.log(known))
        nearest = distance.argmin(1)
        doubt = DOUBT * np.sqrt(1 / prompts - 1 / everything)[nearest]
        doubt += DOUBT_OF_STEPS * distance.min(1) + NEAR_MISS * (distance.min(1) > 0)
        return levels, doubt

    def costs(self, name: str, most: int) -> np.ndarray:
        """Seconds of a family in `LEAST` to `most` steps, as measured or else estimated from the nearest."""
        steps, known = np.arange(LEAST, most + 1), np.array(self.steps_of(name))
        seconds = np.array([self.seconds(f"{name}:steps={count}") for count in known])
        nearest = np.abs(np.log(steps)[:, None] - np.log(known)).argmin(1)
        rest = median(self.pace.rest)
        return rest + (seconds[nearest] - rest) * steps / known[nearest]

    def offer(self, name: str, most: int) -> tuple[float, str] | None:
        """What ranks a family, the lower the better: the seconds it may take, if doubt is in its favour, or the dB that
        may be missing. And what of it has to be measured next, or was already on all requests, if that is how it meets
        the target best. None if it cannot meet the target."""
        if name in self.refused:
            return None
        (levels, doubt), costs = self.levels(name, most), self.costs(name, most)
        texts = [f"{name}:steps={steps}" for steps in range(LEAST, most + 1)]
        able = np.array([fits(text) for text in texts])
        if self.target.psnr is None:
            within = np.flatnonzero(able & (costs <= self.limit))
            return (-(levels + doubt)[within[-1]], texts[within[-1]]) if len(within) else None
        hoped = cheapest(costs, able & (levels + doubt >= self.target.psnr))
        expected = cheapest(costs, able & (levels >= self.target.psnr))
        if hoped is None:
            return None
        if expected is not None and self.prompts(texts[expected]) < len(self.requests):
            return costs[hoped], texts[expected]
        return costs[hoped], texts[hoped]

    def best(self, names: Sequence[str], most: int) -> list[str]:
        """What the families offer, the best first."""
        return [text for _, text in sorted(filter(None, (self.offer(name, most) for name in names)))]

    def find(self, names: Sequence[str], most: int, at_once: int = 1) -> str | None:
        """What is best of all, measured on all requests: whatever looks best is measured, first on `at_once` of them
        and then on twice as many, until that is what looks best; None where nothing reaches the target."""
        while offers := self.best(names, most):
            known = self.prompts(offers[0])
            if known == len(self.requests):
                return offers[0]
            self.measure(offers[:1], max(at_once, 2 * known))
        return None


def cheapest(costs: np.ndarray, able: np.ndarray) -> int | None:
    """The place of the least cost that is able to."""
    return int(np.where(able, costs, np.inf).argmin()) if able.any() else None


def steps_in(text: str) -> int:
    """The number of steps that a method names."""
    steps = parse_method(text).steps
    assert steps is not None
    return steps


@lru_cache(maxsize=4096)
def fits(text: str) -> bool:
    """Whether the settings of a method, which names its steps, fit them."""
    try:
        parse_method(text).check(LEAST)
    except ConfigError:
        return False
    return True
