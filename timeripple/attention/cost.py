"""Speed in place of a budget: what a call of attention takes on this machine, dense and with reuse, is measured at
first use and kept on disk, and the settings of a run follow from it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.dispatch import ripple_attention
from timeripple.attention.method import ReuseMethod, Step
from timeripple.attention.plans.curve import theta_for_saving
from timeripple.attention.run import ReuseRun
from timeripple.attention.timing import environment, now
from timeripple.attention.torch_backend import dense_attention

SAVINGS = 0.5, 0.95  # share of the highest at which reuse is timed; a line goes through the two
REPEATS, ENOUGH = 5, 0.2  # a thing is timed that often, or for so many seconds, and its shortest time counts


@dataclass(frozen=True)
class Cost:
    """Seconds of one call of attention in a layer: dense; with reuse `fixed` and, for the share of the products that is
    not saved, that share of `products`; and of making a plan. highest: the largest share that can be saved, which text
    and small grids lower."""

    dense: float
    fixed: float
    products: float
    planning: float
    highest: float

    def of(self, steps: Sequence[Step], plans_once: bool) -> float:
        """Seconds of a layer in one pass of a run. plans_once: whether its plan serves for all of the run."""
        total, planned = 0.0, False
        for step in steps:
            if step.kind != "reuse":
                total += self.dense
            if step.kind != "dense":
                total += self.fixed + (1 - self._saved(step)) * self.products
                total += 0.0 if planned and plans_once else self.planning
                planned = True
        return total

    def saving(self, steps: Sequence[Step]) -> float:
        """Share of attention saved over the reuse window of a run."""
        window = [self._saved(step) - (step.kind == "refresh") for step in steps if step.in_window]
        return sum(window) / max(len(window), 1)

    def _saved(self, step: Step) -> float:
        return min(step.saving_target or 0.0, self.highest)


IDEAL = Cost(dense=1, fixed=0, products=1, planning=0, highest=1)
"""Of a machine on which only products take time."""


def cost_of(call: AttentionCall, method: ReuseMethod) -> Cost:
    """Of calls like this, by a method of this granularity; the first time it takes about 20 calls of attention."""
    path, name = _file(), _name(call, method)
    known = _read(path)
    try:
        return Cost(*map(float, known[name]))
    except (KeyError, TypeError, ValueError):  # not there, or not ours
        cost = _measured(call, method)
        _write(path, _read(path) | {name: astuple(cost)})
        return cost


class SpeedupRun(ReuseRun):
    """`ReuseRun` whose method is chosen at its first call of attention, for what calls like it take.

    chosen: {"budget", "saving", "speedup"}: what calls like these can save under that budget, and how many times as
        fast attention is to be over the whole run, plans included; None before.
    """

    def __init__(self, choose: Callable[[Cost], ReuseMethod], num_inference_steps: int):
        super().__init__(choose(IDEAL), num_inference_steps)
        self._choose = choose
        self.chosen: dict[str, float | None] | None = None

    def attention(self, layer: str, call: AttentionCall) -> Tensor:
        if self.chosen is None:
            cost, count = cost_of(call, self.config), len(self.steps)
            self.config = self._choose(cost)
            self.steps = self.config.schedule(count)
            speedup = count * cost.dense / cost.of(self.steps, self.config.feedback)
            saving = cost.saving(self.steps)
            self.chosen = {"budget": self.config.budget, "saving": saving, "speedup": speedup}
            self.begin_forward(self._name, self._step.index)
        return super().attention(layer, call)


def _measured(call: AttentionCall, method: ReuseMethod) -> Cost:
    curve = method.measure(call)
    highest = float(curve.saving(curve.highest * 1.001).mean())
    residual = torch.zeros_like(call.query)
    points = []
    for share in SAVINGS:
        plan = curve.plan(call, theta_for_saving([curve], highest * share))
        reuse = lambda plan=plan: ripple_attention(call, method, plan=plan, residual=residual)  # noqa: E731
        points.append((1 - float(plan.saving.mean()), _seconds(call, reuse)))
    (more, slow), (less, fast) = points
    dense = _seconds(call, lambda: dense_attention(call))
    planning = _seconds(call, lambda: method.measure(call).plan(call, 0.0))
    # Where everything merges at once, as in values that are all the same, a product takes what it takes densely.
    products = max((slow - fast) / (more - less), 0.0) if more > less else dense
    return Cost(dense, max(fast - less * products, 0.0), products, planning, highest)


def _seconds(call: AttentionCall, work: Callable[[], object]) -> float:
    work()  # what is done only once
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < ENOUGH:
        start = now(call.device)
        work()
        times.append(now(call.device) - start)
    return min(times)


def _file() -> Path:
    """Among temporary files where nobody knows a home, as in containers that run under any number of a user."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        cache = Path(tempfile.gettempdir())
    return cache / "timeripple" / "cost.json"


def _name(call: AttentionCall, method: ReuseMethod) -> str:
    """Of everything that decides what calls like this take."""
    try:
        own = version("timeripple")
    except PackageNotFoundError:  # run from the repository
        own = "repository"
    machine = environment()
    on = torch.cuda.get_device_name(call.device) if call.device.type == "cuda" else machine["cpu"]
    shape = "x".join(map(str, call.query.shape))
    masked = "" if call.key_mask is None else "masked"
    return " | ".join(map(str, (
        on, machine["threads"], torch.__version__, own, call.query.dtype, shape, call.grid, masked, method.granularity,
        getattr(method, "axes", ""), getattr(method, "metric", ""), getattr(method, "query_tile", ""),
    )))  # fmt: skip


def _read(path: Path) -> dict[str, list[float]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, costs: dict[str, object]) -> None:
    """Where it cannot be kept, it is measured again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder) / path.name
            written.write_text(json.dumps(costs, indent=1), encoding="utf-8")
            os.replace(written, path)
    except OSError:
        pass
