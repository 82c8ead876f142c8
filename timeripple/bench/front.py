"""Who is ahead at equal quality: curves of dB over seconds, and how sure their difference is, paired by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t

RESAMPLES = 2000
LEVELS = tuple(range(30, 43, 2))
"""dB at which methods are compared."""


@dataclass(frozen=True)
class Point:
    """One configuration. family: what it is without its number of steps, so that points of one family are a curve;
    seconds, psnr: of every prompt, [prompts] in the same order everywhere."""

    method: str
    family: str
    ours: bool
    seconds: np.ndarray
    psnr: np.ndarray


def resamples(prompts: int, count: int = RESAMPLES) -> np.ndarray:
    """Weights of the prompts in bootstrap means, [count, prompts]; always the same ones."""
    drawn = np.random.default_rng(0).integers(prompts, size=(count, prompts))
    return np.stack([(drawn == prompt).sum(1) for prompt in range(prompts)], 1) / prompts


def interval(values: Sequence[float] | np.ndarray) -> list[float]:
    """95 % bootstrap interval of the mean over prompts."""
    return bounds(resamples(len(values)) @ np.asarray(values, float))


def t_interval(values: Sequence[float], others: int) -> list[float] | None:
    """95 % interval for the mean of so many others like these, from Student's t; None of a single value.

    Right for few values, where a bootstrap interval is too narrow: of four it holds the mean 77 times of 100.
    """
    count = len(values)
    if count < 2:
        return None
    half = float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) * np.sqrt(1 / count + 1 / others))
    return [float(np.mean(values)) - half, float(np.mean(values)) + half]


def bounds(values: np.ndarray) -> list[float]:
    """The middle 95 % of bootstrap values."""
    return [float(edge) for edge in np.percentile(values, (2.5, 97.5))]


def seconds_at(points: list[Point], psnr: float, weights: np.ndarray) -> np.ndarray:
    """Seconds that a family needs for so many dB, [samples], inf where it does not get there.

    points: of one family; weights: [samples, prompts] of the prompts in the means. That is the cheapest of the points
    that keep as many dB, and of the places between two neighbours in dB, log seconds in a line, where the curve
    crosses them; nothing is extrapolated.
    """
    level = np.stack([weights @ point.psnr for point in points], 1)
    seconds = np.stack([weights @ point.seconds for point in points], 1)
    order = level.argsort(1)
    level, seconds = np.take_along_axis(level, order, 1), np.take_along_axis(seconds, order, 1)
    enough = np.where(level >= psnr, seconds, np.inf).min(1)
    low, high = level[:, :-1], level[:, 1:]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = (psnr - low) / (high - low)
        between = np.exp((1 - share) * np.log(seconds[:, :-1]) + share * np.log(seconds[:, 1:]))
    crossing = np.where((low < psnr) & (psnr <= high), between, np.inf)
    return np.minimum(enough, crossing.min(1, initial=np.inf))


def families(points: list[Point], ours: bool) -> dict[str, list[Point]]:
    """Points of ours or of the others, by family."""
    found: dict[str, list[Point]] = {}
    for point in points:
        if point.ours == ours:
            found.setdefault(point.family, []).append(point)
    return found


def ahead(points: list[Point], levels: Sequence[float] = LEVELS) -> list[dict[str, Any]]:
    """`[{psnr, ours, best_other, ratio, interval}]` for every level that both sides reach, in some resamples too.

    ratio: seconds of the best of the others over those of our best family, at equal mean dB; interval: 95 % bootstrap
    over prompts, the same prompts for all, in which the others' best is chosen anew every time and ours is not.
    """
    mine, others = families(points, True), families(points, False)
    if not mine or not others:
        return []
    prompts = len(points[0].psnr)
    mean, drawn = np.full((1, prompts), 1 / prompts), resamples(prompts)
    rows = []
    for psnr in levels:
        cost = {name: float(seconds_at(each, psnr, mean)[0]) for side in (mine, others) for name, each in side.items()}
        best, other = min(mine, key=cost.__getitem__), min(others, key=cost.__getitem__)
        if not np.isfinite([cost[best], cost[other]]).all():
            continue
        rivals = np.stack([seconds_at(each, psnr, drawn) for each in others.values()]).min(0)
        with np.errstate(invalid="ignore"):  # where neither gets there
            ratios = rivals / seconds_at(mine[best], psnr, drawn)
        ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
        if not len(ratios):
            continue
        rows.append(
            {
                "psnr": psnr,
                "ours": best,
                "best_other": other,
                "ratio": cost[other] / cost[best],
                "interval": bounds(ratios),
            }
        )
    return rows
