"""Reuse beside a step cache whose computed steps are known beforehand: the schedule of reuse counts those steps alone.

Otherwise refreshes would fall on steps that the cache leaves out, and errors grow old unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.config import ReuseConfig
from timeripple.attention.method import Kind, Step, dense_steps
from timeripple.attention.records import Records
from timeripple.attention.run import ReuseRun
from timeripple.attention.timing import mark
from timeripple.attention.torch_backend import dense_attention


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

    @property
    def kind(self) -> Kind:
        return self.config.kind

    def schedule(self, num_inference_steps: int) -> tuple[Step, ...]:
        """In the window are the steps that the cache leaves out, and those in the window of reuse."""
        outside = {self.computed[step.index] for step in self.config.schedule(len(self.computed)) if not step.in_window}
        return tuple(replace(step, in_window=step.index not in outside) for step in dense_steps(num_inference_steps))

    def start(self, num_inference_steps: int) -> ThinnedRun:
        return ThinnedRun(self.config.start(len(self.computed)), self.computed, self.schedule(num_inference_steps))


class ThinnedRun:
    """Hands the computed steps to a `ReuseRun`, counted through, and keeps account of the others.

    samples: of the batch that a pass is asked for, set by caches that compute more than one step in a batch.
    """

    samples: int | None = None

    def __init__(self, run: ReuseRun, computed: tuple[int, ...], steps: tuple[Step, ...]):
        self.run, self.computed, self.steps = run, computed, steps
        self.storage, self.limit_memory = run.storage, run.limit_memory
        self._records = Records()

    def set_times(self, times: Sequence[float]) -> None:
        self.run.set_times([times[step] for step in self.computed])

    def begin_forward(self, pass_name: str, step_index: int) -> None:
        self._name, self._step = pass_name, self.steps[step_index]
        self._inside = step_index in self.computed
        if self._inside:
            self.run.begin_forward(pass_name, self.computed.index(step_index))

    def attention(self, layer: str, call: AttentionCall) -> Tensor:
        """As `ReuseRun.attention`; dense at a step that the cache was to leave out and does not, as it counts the steps
        of each transformer of a pipeline from its own first."""
        if self._inside:
            return self.run.attention(layer, call)
        start = mark(call.device)
        output = dense_attention(call)
        saving = torch.full((call.heads,), 1 - call.batch / (self.samples or call.batch), dtype=torch.float64)
        self._records.add(self._step, self._name, layer, None, saving, (start, start, mark(call.device)))
        return output

    def skipped(self, layer: str, heads: int) -> None:
        self._records.add_skipped(self._step, self._name, layer, heads)

    def end_forward(self) -> None:
        if self._inside:
            self.run.end_forward()

    @property
    def records(self) -> list[dict[str, Any]]:
        """See `Records.read`; steps are those of the whole run."""
        own = [record | {"step": self.computed[record["step"]]} for record in self.run.records]
        return sorted([*own, *self._records.read()], key=lambda record: record["step"])

    @property
    def held_bytes(self) -> int:
        return self.run.held_bytes

    @property
    def chosen(self) -> dict[str, Any] | None:
        """See `cost.SpeedupRun`."""
        return getattr(self.run, "chosen", None)
