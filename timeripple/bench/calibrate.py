"""Settings without tuning by hand: the most saving that keeps a quality, or the best quality at a saving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from diffusers import DiffusionPipeline

from timeripple.attention.config import ReuseConfig
from timeripple.attention.method import ConfigError
from timeripple.clips.generate import Generation, Request, generate
from timeripple.clips.methods import Method, parse_method
from timeripple.clips.quality import measure

DENSE_FIRST = (0.0, 0.1, 0.2)  # shares of the steps that are dense at the start, at least one step
BUDGETS = tuple(round(0.3 + 0.025 * i, 3) for i in range(27))  # 0.3 to 0.95


@dataclass(frozen=True)
class Trial:
    """Settings and what they gave, averaged over the requests: psnr in dB against dense, saving over all steps."""

    config: ReuseConfig
    psnr: float
    saving: float


def calibrate(
    pipeline: DiffusionPipeline,
    requests: list[Request],
    *,
    psnr: float | None = None,
    saving: float | None = None,
    granularity: str = "token",
    on_run: Callable[[Trial], None] | None = None,
) -> Trial:
    """The best settings found for the number of steps of the requests.

    psnr: keep at least this, in dB, and save as much as possible; saving: save at least this share of the attention
    over all steps, and keep as much quality as possible. Give one of them. Quality falls as the budget rises, so for
    every length of the dense start the budget is found by bisection. on_run is called after every trial.

    Raises ValueError for what `check_targets` and `Request.check` refuse, and where nothing tried reaches the target.
    """
    check_targets(psnr, saving)
    for request in requests:
        request.check(pipeline)
    target = saving or 0.0
    references = [generate(pipeline, request, parse_method("dense")) for request in requests]
    found = []
    for dense_first in DENSE_FIRST:
        configs = _feasible(granularity, dense_first, requests[0].steps)
        low, high = 0, len(configs)  # trials below `low` are known to keep the target, those from `high` on to miss it
        while low < high:
            middle = (low + high) // 2
            trial = _try(pipeline, requests, references, configs[middle])
            if on_run is not None:
                on_run(trial)
            found.append(trial)
            good = trial.psnr >= psnr if psnr is not None else trial.saving < target
            low, high = (middle + 1, high) if good else (low, middle)
    if psnr is not None:
        kept = [trial for trial in found if trial.psnr >= psnr]
        if not kept:
            best = max(trial.psnr for trial in found)
            raise ValueError(f"No settings keep {psnr:g} dB; the best found keep {best:.1f} dB: lower the PSNR.")
        return max(kept, key=lambda trial: trial.saving)
    kept = [trial for trial in found if trial.saving >= target]
    if not kept:
        most = max(trial.saving for trial in found)
        raise ValueError(f"No settings save {target:g} over all steps; the most found is {most:.2f}: lower the saving.")
    return max(kept, key=lambda trial: trial.psnr)


def check_targets(psnr: float | None, saving: float | None) -> None:
    """Raise ValueError, one sentence, unless one target is given and possible."""
    if (psnr is None) == (saving is None):
        raise ValueError("Give one target: a PSNR in dB, such as 33, or a saving over all steps, such as 0.5.")
    if saving is not None and not 0 < saving < 1:
        raise ValueError(f"The saving is {saving}; give a share above 0 and below 1, such as 0.5.")


def _feasible(granularity: str, dense_first: float, steps: int) -> list[ReuseConfig]:
    """Settings with rising budgets that this many steps allow."""
    configs = []
    for budget in BUDGETS:
        try:
            config = ReuseConfig(granularity, budget=budget, dense_first=dense_first)
            config.schedule(steps)
        except ConfigError:
            break
        configs.append(config)
    return configs


def _try(
    pipeline: DiffusionPipeline, requests: list[Request], references: list[Generation], config: ReuseConfig
) -> Trial:
    method = Method(config.text, config)
    psnr, saving = [], []
    for request, reference in zip(requests, references, strict=True):
        generation = generate(pipeline, request, method)
        psnr.append(measure(generation.frames, reference.frames)["psnr"])
        saving.append(generation.saving["all_steps"] if generation.saving else 0.0)
    return Trial(config, sum(psnr) / len(psnr), sum(saving) / len(saving))
