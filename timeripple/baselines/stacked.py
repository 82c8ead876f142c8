"""Channel reuse and a mask together, as the paper stacks TimeRipple on Sparse VideoGen: what the mask keeps is computed
with queries and keys in which channels are reused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.config import ReuseConfig
from timeripple.attention.dispatch import AttentionStatistics, ripple_attention
from timeripple.attention.method import ConfigError, Kind, Step
from timeripple.attention.plans import channel
from timeripple.attention.plans.curve import theta_for_saving
from timeripple.attention.run import Kept, ReuseRun
from timeripple.baselines.skip import SkipConfig


@dataclass(frozen=True)
class StackedConfig:
    """reuse: of channels; mask: any config of skipping. Both follow the schedule of `reuse`.

    Raises ConfigError for other reuse, whose rows a mask does not fit.
    """

    reuse: ReuseConfig
    mask: SkipConfig
    granularity = "channel"
    kind: ClassVar[Kind] = "theoretical"

    def __post_init__(self) -> None:
        if (
            type(self.reuse) is not ReuseConfig
            or self.reuse.granularity != "channel"
            or not isinstance(self.mask, SkipConfig)
        ):
            raise ConfigError(
                f"{self.reuse.label} and {self.mask.label} cannot be stacked; stack channel reuse and a mask "
                "(skip, svg or compact), or one method and a step cache."
            )
        if self.mask.feedback:
            raise ConfigError(f"{self.mask.label} gives its error back, which a stack cannot; leave refresh out.")

    @property
    def label(self) -> str:
        return f"{self.reuse.label}+{self.mask.label}"

    @property
    def budget(self) -> float | None:
        reuse, mask = self.reuse.budget, self.mask.budget
        return None if reuse is None or mask is None else 1 - (1 - reuse) * (1 - mask)

    @property
    def theta(self) -> float | None:
        return self.reuse.theta

    def schedule(self, num_inference_steps: int) -> tuple[Step, ...]:
        return self.reuse.schedule(num_inference_steps)

    def start(self, num_inference_steps: int) -> StackedRun:
        return StackedRun(self, num_inference_steps)


class StackedRun(ReuseRun):
    """`ReuseRun` of the channels, whose attention is that of the mask."""

    def __init__(self, config: StackedConfig, num_inference_steps: int):
        super().__init__(config.reuse, num_inference_steps)
        self.reuse, self.mask = config.reuse, config.mask

    def _target(self, step: Step) -> float:
        """As scheduled: what is on record is the saving of both."""
        return step.saving_target or 0.0

    def _reuse(
        self, layer: str, call: AttentionCall, kept: Kept | None, residual: Tensor | None
    ) -> tuple[Tensor, AttentionStatistics]:
        """The mask's attention on snapped queries and keys; the saving of both together, of which the channels' part is
        theoretical."""
        curve = channel.measure(call, self.reuse)
        theta = theta_for_saving([curve], self._saving or 0.0) if self._theta is None else self._theta
        plan = curve.plan(call, theta)
        output, masked = ripple_attention(plan.snapped(call), self.mask)
        together = 1 - (1 - plan.saving) * (1 - masked.saving)
        return output, AttentionStatistics(together, "theoretical", theta, masked.marks, masked.backend, curve, None)
