"""What a search for the best method measured so far, and what its target makes of that."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from timeripple.attention.method import ConfigError
from timeripple.bench.pace import Pace
from timeripple.bench.sweep import Job
from timeripple.bench.work import family
from timeripple.clips.generate import Request
from timeripple.clips.methods import parse_method

LEAST = 2  # steps in which anything is tried
KEPT = 3  # one in so many goes on after a round, but never fewer than `FEWEST`
FEWEST = 3


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
    """What was measured so far, of methods on the first so many requests, and what the target makes of it.

    dense: the family whose steps are the price of dB, with the solver that all methods have.
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
        """Runs what is missing; methods that the pipeline does not suit are noted and left out from then on."""
        wanted = [Job(request, text) for request in self.requests[:prompts] for text in methods]
        missing = [job for job in wanted if job not in self.results and job.method not in self.refused]
        for job, result in self._run(missing).items():
            if "refused" in result:
                self.refused[job.method] = result["refused"]
            else:
                self.results[job] = result
                self.pace.add(family(job.method), result)

    def measured(self, prompts: int) -> list[str]:
        """The methods that were measured on so many requests."""
        texts = dict.fromkeys(job.method for job in self.results)
        return [text for text in texts if all(Job(r, text) in self.results for r in self.requests[:prompts])]

    def runs(self, text: str, prompts: int) -> list[dict[str, Any]]:
        return [self.results[Job(request, text)] for request in self.requests[:prompts]]

    def psnr(self, text: str, prompts: int) -> float:
        return fmean(run["psnr_converged"] for run in self.runs(text, prompts))

    def seconds(self, text: str, prompts: int) -> float:
        return self.pace.seconds(family(text), self.runs(text, prompts))

    @property
    def limit(self) -> float:
        """The seconds allowed, inf for a PSNR."""
        if self.target.speedup is None:
            return self.target.seconds or math.inf
        own = f"dense:steps={self.requests[0].steps}"
        self.measure([own], 1)
        return self.seconds(own, 1) / self.target.speedup

    def has_enough(self, text: str, prompts: int) -> bool:
        """Whether a method keeps the PSNR, or else takes more time than there is; so does whatever has more steps."""
        if self.target.psnr is not None:
            return self.psnr(text, prompts) >= self.target.psnr
        return self.seconds(text, prompts) > self.limit

    def aim(self, text: str, steps: int, prompts: int) -> int:
        """In how many steps a method would meet the target, if dB cost what dense pays for them and time were even."""
        if self.target.psnr is None:
            return int(steps * self.limit / self.seconds(text, prompts))
        return round(steps * math.exp(price(self) * (self.target.psnr - self.psnr(text, prompts))))

    def settle(self, guesses: dict[str, int], prompts: int, most: int, slack: float = 0.0) -> dict[str, int]:
        """The fewest steps that keep the PSNR, or the most within the time, of every family that can in `most` steps.

        Found for all of them at once, so that machines share the runs: from a guess to where it aims, then by bisection
        until what is left open is a share of `slack` of the steps.
        """
        low, high = dict.fromkeys(guesses, LEAST - 1), dict.fromkeys(guesses, most + 1)
        at = {name: min(max(steps, LEAST), most) for name, steps in guesses.items()}
        while at:
            texts = {name: f"{name}:steps={steps}" for name, steps in at.items()}
            self.measure([text for text in texts.values() if fits(text)], prompts)
            for name, text in texts.items():
                steps = at.pop(name)
                if text in self.refused:
                    high[name] = most + 1
                    continue
                enough = fits(text) and self.has_enough(text, prompts)
                (high if enough else low)[name] = steps
                is_open = low[name] < LEAST or high[name] > most
                if high[name] - low[name] > (1 if is_open else 1 + slack * steps):
                    there = self.aim(text, steps, prompts) if fits(text) else steps + 1
                    beyond = max(LEAST, min(there, steps - 1)) if enough else min(most, max(there, steps + 1))
                    at[name] = beyond if is_open else (low[name] + high[name]) // 2
        if self.target.psnr is not None:
            return {name: steps for name, steps in high.items() if steps <= most}
        known = {*self.measured(prompts)}
        return {name: steps for name, steps in low.items() if f"{name}:steps={steps}" in known}


def fits(text: str) -> bool:
    """Whether the settings of a method, which names its steps, fit them."""
    try:
        parse_method(text).check(LEAST)
    except ConfigError:
        return False
    return True


def best(names: list[str], cost: Callable[[str], float]) -> list[str]:
    """The third that costs least, the least first."""
    return sorted(names, key=cost)[: max(FEWEST, math.ceil(len(names) / KEPT))]


def merit(search: Search, name: str, steps: int, prompts: int) -> float:
    """What ranks families in the steps that the target takes, the lower the better: seconds, or else missing dB."""
    text = f"{name}:steps={steps}"
    return search.seconds(text, prompts) if search.target.psnr is not None else -search.psnr(text, prompts)


def score(search: Search, text: str) -> float:
    """What a method costs on the first prompt, in log seconds, the lower the better.

    dB are worth what dense pays for them in steps. What is lacking to the target, in dB or in time, costs twice as
    much: at that price itself, all numbers of steps of a family would be alike.
    """
    rate, target = price(search), search.target
    seconds, psnr = math.log(search.seconds(text, 1)), search.psnr(text, 1)
    if target.psnr is not None:
        return seconds + 2 * rate * max(0.0, target.psnr - psnr)
    return 2 * max(0.0, seconds - math.log(search.limit)) - rate * psnr


def price(search: Search) -> float:
    """Log seconds a dB, as dense steps cost them: the slope of a line through what was measured on the first prompt."""
    dense = [text for text in search.measured(1) if family(text) == search.dense]
    level = [search.psnr(text, 1) for text in dense]
    seconds = [math.log(search.seconds(text, 1)) for text in dense]
    if len(dense) < 2 or np.ptp(level) == 0:
        return 0.1
    return max(0.01, float(np.polyfit(level, seconds, 1)[0]))
