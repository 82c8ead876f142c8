"""Our own method: how much is reused, at which granularity and at which steps (arXiv 2511.12035, section 4)."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from timeripple.attention.call import AttentionCall
from timeripple.attention.cost import IDEAL, Cost, SpeedupRun
from timeripple.attention.grid import AXES
from timeripple.attention.method import ConfigError, Curve, Granularity, Kind, Step, is_count, require
from timeripple.attention.plans.channel import CHANNEL
from timeripple.attention.plans.tile import TILE
from timeripple.attention.plans.token import TOKEN
from timeripple.attention.run import ReuseRun
from timeripple.attention.settings_text import EXAMPLES, number_text, read_setting, setting_text

GRANULARITIES: dict[str, Granularity] = {granularity.name: granularity for granularity in (CHANNEL, TOKEN, TILE)}
METRICS = ("rms", "logit")
AMOUNTS = ("budget", "theta", "speedup")  # one of them says how much is reused
DEFAULT_BUDGET = 0.75
WORTH_IT = 0.98  # of the seconds of dense attention: what reuse must stay below to be chosen for its speed
DEFAULT_REFRESH = 4  # with a threshold: there is no budget to derive it from
DEFAULT_RAMP = 0.2  # the paper: 10 of 50 steps
DEFAULT_DENSE_FIRST, DEFAULT_DENSE_LAST = 0.2, 1  # the paper: 10 of 50 steps, and the last
DENSE_WITH_FEEDBACK = 3
ROUNDING = 1e-9


@dataclass(frozen=True)
class ReuseConfig:
    """Settings of one method of reuse; frozen and hashable. Raises ConfigError for values that cannot work.

    granularity: what is reused. "channel": partial scores of single (token, channel) entries, as in the paper; its
        saving is theoretical. "token": whole rows of Q and K that neighbours share. "tile": key windows that matter
        little to a tile of queries, by one representative each.
    budget: share of attention saved over the reuse window, refreshes included, in [0, 1). Default 0.75.
    theta: threshold instead of a budget: standard deviation (channel; token with metric "rms"), deviation of the
        logits (token with metric "logit") or predicted output error of a query tile (tile). 0 is dense.
    speedup: instead of both: how many times as fast as dense attention that of the whole run shall be on this machine.
        The smallest budget that gives it follows from what a call of attention takes here, see `cost`; where none
        does, the fastest; and where none is faster than dense, attention stays dense. Not for channel.
    metric: how token reuse measures a window, see `plans.token`.
    axes: axes along which neighbours may stand for each other.
    window: tokens per window along an axis; channel only.
    refresh: every how many steps the error of reuse is measured and from then on given back; None: never;
        "auto": as often as the budget allows, in even parts, never for channel.
    extrapolate: between refreshes the error goes on changing as it did from the last but one to the last; False: it
        stays what it was at the last refresh.
    dense_first: share of the steps computed densely at the start; at least one step is. "auto": 0.2, as in the paper,
        without refresh, and with it three steps, or a fifth of them where that is less: the plan, which is made at
        the last of them, is worth little of noise alone.
    dense_last: number of dense steps at the end; "auto": 1, as in the paper, without refresh, and 0 with it.
    ramp: share of the steps over which theta rises to its full value (Eq. 4); "auto": 0.2, or what the budget
        allows, without refresh and 0 with it, as the refresh gives back what the ramp would avoid.
    theta_min: start of the ramp as a share of the full theta; the paper's 0.2 -> 0.5 is 0.4.
    query_tile: (t, y, x) tokens that share one choice of key windows; tile only; clipped to the grid.
    """

    granularity: str = "token"
    budget: float | None = None
    theta: float | None = None
    speedup: float | None = None
    metric: str = "logit"
    axes: tuple[str, ...] = AXES
    window: int = 2
    refresh: int | str | None = "auto"
    extrapolate: bool = True
    dense_first: float | str = "auto"
    dense_last: int | str = "auto"
    ramp: float | str = "auto"
    theta_min: float = 0.4
    query_tile: tuple[int, int, int] = (4, 8, 8)

    def __post_init__(self) -> None:
        if self.budget is None and self.theta is None and self.speedup is None:
            object.__setattr__(self, "budget", DEFAULT_BUDGET)
        object.__setattr__(self, "axes", tuple(self.axes))
        object.__setattr__(self, "query_tile", tuple(self.query_tile))
        require(self.granularity in GRANULARITIES, f"granularity {self.granularity!r} is unknown", GRANULARITIES)
        require(self.metric in METRICS, f"metric {self.metric!r} is unknown", METRICS)
        require(
            self.axes and set(self.axes) <= set(AXES) and len(set(self.axes)) == len(self.axes),
            f"axes {self.axes} are not distinct axes of the token grid",
            AXES,
        )
        amounts = {name: getattr(self, name) for name in AMOUNTS}
        given = [f"{name} {value}" for name, value in amounts.items() if value is not None]
        require(len(given) == 1, f"{' and '.join(given)} exclude each other; give one of them")
        require(
            self.speedup is None or (self.speedup >= 1 and self.speedup != math.inf),
            f"speedup {self.speedup} is not how many times as fast; give a number from 1 up, such as 1.5",
        )
        require(
            self.speedup is None or self.kind == "realised",
            f"{self.granularity} reuse saves no time and so has no speedup; give a budget, or use token",
        )
        require(
            self.budget is None or 0 <= self.budget < 1,
            f"budget {self.budget} is not a share of the attention; give a number from 0 up to, not including, 1",
        )
        require(self.theta is None or self.theta >= 0, f"theta {self.theta} is negative; give 0 (dense) or more")
        require(self.theta != math.inf, f"theta {self.theta} is no number to compare with; give one such as 0.3")
        for name in AMOUNTS:
            require(not isinstance(getattr(self, name), bool), f"{name} {getattr(self, name)} is no number; give one")
        require(is_count(self.window, 2), f"window {self.window} holds no neighbours; give 2 or more")
        require(
            self._reused.any_window or self.window == 2,
            f"window {self.window} works for channel reuse only; leave it at 2 for {self.granularity}",
        )
        require(
            self.refresh in (None, "auto") or is_count(self.refresh, 1),
            f"refresh {self.refresh!r} is not a number of steps; give 1 or more, None or 'auto'",
        )
        require(isinstance(self.extrapolate, bool), f"extrapolate {self.extrapolate!r} is not a choice; give yes or no")
        for name in ("dense_first", "ramp"):
            value = getattr(self, name)
            require(
                value == "auto" or (not isinstance(value, str) and 0 <= value <= 1),
                f"{name} {value!r} is not a share of the steps; give a number from 0 to 1 or 'auto'",
            )
        require(0 <= self.theta_min <= 1, f"theta_min {self.theta_min} is not a share; give a number from 0 to 1")
        require(
            self.dense_last == "auto" or is_count(self.dense_last, 0),
            f"dense_last {self.dense_last!r} is not a number of steps; give 0 or more, or 'auto'",
        )
        require(
            len(self.query_tile) == 3 and all(is_count(size, 1) for size in self.query_tile),
            f"query_tile {self.query_tile} is not a block of tokens; give (t, y, x) sizes of 1 or more",
        )
        require(
            self.budget is None or self.budget <= self.ceiling,
            f"budget {self.budget} is above the ceiling {self.ceiling:.4f} of {self.granularity} reuse along "
            f"{''.join(self.axes)}; lower the budget or allow more axes",
        )

    @property
    def ceiling(self) -> float:
        """The saving of a step at which every window is reused completely."""
        return self._reused.ceiling(1 / self.window ** len(self.axes))

    @property
    def feedback(self) -> bool:
        """Whether the error of reuse is measured at refresh steps and given back."""
        return self.refresh is not None and (self.refresh != "auto" or self._reused.refreshes)

    @property
    def kind(self) -> Kind:
        """Of its saving."""
        return self._reused.kind

    @property
    def plans_last(self) -> bool:
        """Whether a plan fits later passes and steps, too."""
        return self._reused.plans_last

    @property
    def _reused(self) -> Granularity:
        return GRANULARITIES[self.granularity]

    def measure(self, call: AttentionCall) -> Curve:
        """The saving of one call at every threshold."""
        return self._reused.measure(call, self)

    def start(self, num_inference_steps: int) -> ReuseRun:
        """Attention of one generation. Raises ConfigError for settings that do not fit so many steps."""
        if self.speedup is not None:
            return SpeedupRun(partial(self.at_cost, num_inference_steps), num_inference_steps)
        return ReuseRun(self, num_inference_steps)

    @property
    def label(self) -> str:
        """Short name, e.g. "token-0.75" or "channel-theta=0.3-axes=ty"; settings other than the defaults are named."""
        return "-".join(self._parts())

    @property
    def text(self) -> str:
        """What `parse` reads back as these settings, e.g. "token:0.75:refresh=4"."""
        return ":".join(self._parts())

    def _parts(self) -> list[str]:
        named = [
            f"{name}={number_text(value)}"
            for name in ("theta", "speedup")
            if (value := getattr(self, name)) is not None
        ]
        parts = [self.granularity, *(named if self.budget is None else [number_text(self.budget)])]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("granularity", *AMOUNTS) and value != field.default:
                parts.append(f"{field.name}={setting_text(field.name, value)}")
        return parts

    def schedule(self, num_inference_steps: int) -> tuple[Step, ...]:
        """What each of the denoising steps does: dense, then the reuse window with its ramp and refreshes, then dense.

        Under a budget B over a window of W steps, of which n_r refresh (costing the dense attention on top, so saving
        s - 1), steps aim at s_i = b * f_i with ramp factors f_i and b = (B * W + n_r) / sum(f_i). Where that would
        compute more than dense attention, as with a budget near 0, every step is dense.
        Raises ConfigError if b is above the ceiling. With a speedup, as if attention took time for its products alone.
        """
        if self.speedup is not None:
            return self.at_cost(num_inference_steps, IDEAL).schedule(num_inference_steps)
        first = DEFAULT_DENSE_FIRST if isinstance(self.dense_first, str) else self.dense_first
        first *= num_inference_steps
        if self.feedback and isinstance(self.dense_first, str):
            first = min(first, DENSE_WITH_FEEDBACK)
        last = 0 if self.feedback else DEFAULT_DENSE_LAST
        last = last if isinstance(self.dense_last, str) else self.dense_last
        start = min(max(1, round(first)), num_inference_steps)
        window = range(start, max(start, num_inference_steps - last))
        if not window or 0 in (self.budget, self.theta):
            return tuple(Step(i, "dense") for i in range(num_inference_steps))
        factors, refreshes, full = self._fit(window, num_inference_steps)
        if self.feedback:
            refreshes = [start - 1, *refreshes]  # the last dense step measures the error for the first reuse steps

        def step(i: int) -> Step:
            refresh = i in refreshes
            if i not in window and not refresh:
                return Step(i, "dense")
            factor = factors[max(i - start, 0)]
            return Step(
                i,
                "refresh" if refresh else "reuse",
                saving_target=None if full is None else full * factor,
                theta=None if self.theta is None else self.theta * factor,
                in_window=i in window,
            )

        steps = tuple(step(i) for i in range(num_inference_steps))
        saved = sum((each.saving_target or 0.0) - (each.kind == "refresh") for each in steps)
        if self.budget is not None and saved < -ROUNDING:  # refreshes would cost more than reuse saves
            return tuple(Step(i, "dense") for i in range(num_inference_steps))
        return steps

    def at_cost(self, num_inference_steps: int, cost: Cost) -> Self:
        """With a budget in place of the speedup: in hundredths, the smallest at which a run is that much faster, else
        the fastest; 0, which is dense, where nothing is gained or asked for."""
        dense, best = num_inference_steps * cost.dense, replace(self, speedup=None, budget=0.0)
        least = dense
        for hundredths in range(1, math.floor(100 * self.ceiling) + 1):
            if least * (self.speedup or 1) <= dense:
                break
            config = replace(self, speedup=None, budget=hundredths / 100)
            try:
                seconds = cost.of(config.schedule(num_inference_steps), config.feedback)
            except ConfigError:  # so much cannot be saved in so few steps
                break
            if seconds < min(least, WORTH_IT * dense):
                best, least = config, seconds
        return best

    def _fit(self, window: range, num_inference_steps: int) -> tuple[list[float], list[int], float | None]:
        """Ramp factors over the window, its refresh steps and the saving b of a step with factor 1.

        Measured on Pond (UniPC, 14 steps, 2304 tokens, one prompt, dB against dense): what counts is how long ago the
        last refresh was, most of all at the first and last steps (one reused step alone: 46 to 47 dB there, 51 to 52 in
        the middle), and that not everything merges (a refresh every second step: 42.1 with 0.96 of the pairs left out,
        39.6 with all that can be). Slopes by least squares or parabolas through three refreshes were worse by 0.2 to
        0.7, half the slope by 3.4, two refreshes side by side at the start by 1; planning again later gained nothing.
        (Second edition, 1280 tokens, three prompts, budget 0.5: with 1, 2, 3, 4 dense steps at the start of 20 it keeps
        32.9, 39.8, 40.1, 40.6 dB at savings of 0.47, 0.45, 0.42, 0.40 over all steps; with 1, 2, 3 of 14 30.5, 36.1,
        40.0 dB at 0.46, 0.42, 0.39.)
        """
        longest = round((DEFAULT_RAMP if isinstance(self.ramp, str) else self.ramp) * num_inference_steps)
        ramps = [longest]
        if self.ramp == "auto":
            ramps = [0] if self.feedback else list(range(longest, -1, -1))
        if self.budget is None:
            return self._ramp(window, ramps[0]), self._every(window), None
        choices = [self._every(window)]
        if self.feedback and self.refresh == "auto":
            choices = [_evenly(window, count) for count in range(len(window) - 1, -1, -1)]
        comfort = self._reused.comfort_with_feedback if self.feedback else self._reused.comfort
        for ramp in ramps:
            for refreshes in choices:
                factors = self._ramp(window, ramp)
                full = (self.budget * len(window) + len(refreshes)) / sum(factors)
                if full <= comfort * self.ceiling:
                    return factors, refreshes, full
        highest = (self.ceiling * sum(factors) - len(refreshes)) / len(window)
        require(
            full <= self.ceiling,  # the last candidate, which asks least of a step
            f"budget {self.budget} is out of reach with {len(refreshes)} refreshes and this ramp in a reuse window of "
            f"{len(window)} steps; lower it to {max(0, highest):.4f} or "
            "refresh less often",
        )
        return factors, refreshes, full

    def _every(self, window: range) -> list[int]:
        """Refresh steps of the window with a fixed period, counted from the step before it."""
        if not self.feedback:
            return []
        period = self.refresh if isinstance(self.refresh, int) else DEFAULT_REFRESH
        return list(window[period - 1 :: period])

    def _ramp(self, window: range, length: int) -> list[float]:
        """theta_i as a share of the full theta (Eq. 4): theta_min at the first step of the window, 1 after `length`."""
        rise = (1 - self.theta_min) / max(length, 1)
        return [self.theta_min + rise * i if i < length else 1.0 for i in range(len(window))]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of to_dict, also after a trip through JSON; raises ConfigError for unknown names."""
        known = [field.name for field in fields(cls)]
        for name in values:
            require(name in known, f"setting {name!r} is unknown", known)
        return cls(**values)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `granularity[:budget][:key=value...]`, e.g. "token:0.75:refresh=none", "channel:theta=0.3:axes=ty"."""
        granularity, *parts = text.strip().split(":")
        require(granularity in GRANULARITIES, f"method {granularity!r} is unknown", GRANULARITIES)
        known = [field.name for field in fields(cls) if field.name != "granularity"]
        values = {}
        for part in parts:
            name, value = part.split("=", 1) if "=" in part else ("budget", part)
            require(name in known, f"setting {name!r} in {text!r} is unknown", known)
            require(name not in values, f"setting {name!r} is given twice in {text!r}; give it once")
            try:
                values[name] = read_setting(name, value)
            except ValueError:
                raise ConfigError(f"{value!r} in {text!r} is not a value of {name}; e.g. {EXAMPLES[name]}.") from None
        return cls(granularity, **values)


def _evenly(window: range, count: int) -> list[int]:
    """`count` refresh steps that, with the step before the window, deal it into parts as equal as can be, of which the
    shorter ones come last: the last steps bear errors worst."""
    parts = count + 1
    return [window.start - 1 - (-part * (len(window) + 1) // parts) for part in range(1, parts)]
