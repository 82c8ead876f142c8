"""Reuse beside a step cache whose computed steps are known beforehand: the schedule of reuse counts those steps alone.

Otherwise refreshes would fall on steps that the cache leaves out, and errors grow old unseen.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from timeripple.attention import ReuseRun
from timeripple.attention.run import Records, summarise_saving
from timeripple.config import ReuseConfig, Step
from timeripple.grid import TokenGrid


@dataclass(frozen=True)
class ThinnedConfig:
    """config: of reuse or a mask; computed: the denoising steps at which attention is asked for."""

    config: ReuseConfig
    computed: tuple[int, ...]

    @property
    def label(self) -> str:
        return self.config.label

    @property
    def granularity(self) -> str:
        return self.config.granularity

    def start(self, num_inference_steps: int) -> ThinnedRun:
        start = getattr(self.config, "start", lambda steps: ReuseRun(self.config, steps))
        return ThinnedRun(start(len(self.computed)), self.computed, num_inference_steps)


class ThinnedRun:
    """Hands the computed steps to a `ReuseRun`, counted through, and keeps account of the others."""

    def __init__(self, run: ReuseRun, computed: tuple[int, ...], num_inference_steps: int):
        self.run, self.computed = run, computed
        self.storage, self.limit_memory = run.storage, run.limit_memory
        self.steps = tuple(Step(index, "dense", in_window=True) for index in range(num_inference_steps))
        self._records = Records()

    def begin_forward(self, pass_name: str, step_index: int) -> None:
        self._name, self._step = pass_name, self.steps[step_index]
        self._inside = step_index in self.computed
        if self._inside:
            self.run.begin_forward(pass_name, self.computed.index(step_index))

    def attention(self, layer: str, query: Tensor, key: Tensor, value: Tensor, grid: TokenGrid, **options) -> Tensor:
        """As `ReuseRun.attention`. Raises RuntimeError at a step that the cache was to leave out."""
        if not self._inside:
            raise RuntimeError(f"step {self._step.index} computes attention, but only {self.computed} were to do so.")
        return self.run.attention(layer, query, key, value, grid, **options)

    def skipped(self, layer: str, heads: int) -> None:
        self._records.add_skipped(self._step, self._name, layer, heads)

    def end_forward(self) -> None:
        if self._inside:
            self.run.end_forward()

    @property
    def records(self) -> list[dict]:
        """See `Records.read`; steps are those of the whole run."""
        own = [record | {"step": self.computed[record["step"]]} for record in self.run.records]
        return sorted([*own, *self._records.read()], key=lambda record: record["step"])

    @property
    def held_bytes(self) -> int:
        return self.run.held_bytes

    def saving(self) -> dict:
        """As `ReuseRun.saving`, over all steps."""
        return summarise_saving(self.records, self.steps, self.run.saving()["kind"])
