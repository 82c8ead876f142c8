"""What the curves and plans of all granularities are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from timeripple.attention.method import Curve

WINDOW = 8  # tokens of a 2 x 2 x 2 window


def theta_for_saving(curves: Sequence[Curve], target: float) -> Tensor:
    """The smallest threshold, to 1e-7 of the largest, at which the mean saving over all heads and curves is `target`.

    float64 without dimensions, on the device of the curves, which is not waited for. 0 for a target of 0 or less; the
    threshold at which everything is reused when the target cannot be reached.
    """
    high = 1.001 * torch.stack([curve.highest for curve in curves]).max().double()
    low = torch.zeros_like(high)
    if target <= 0:
        return low
    fractions = torch.linspace(0, 1, 65, dtype=torch.float64, device=high.device)
    for _ in range(4):  # bisection, 64 ways at a time
        thetas = torch.lerp(low, high, fractions)
        saving = torch.stack([curve.saving(thetas).mean(0) for curve in curves]).mean(0)
        index = (saving < target).sum().clamp(1, 64)
        low, high = thetas.gather(0, torch.stack([index - 1, index]))
    return high


@dataclass(frozen=True)
class Staircase:
    """For each of many rows, the sum of the gains whose threshold is below theta.

    thresholds: [rows, steps], rising; sums: [rows, steps + 1].
    """

    thresholds: Tensor
    sums: Tensor

    @classmethod
    def build(cls, thresholds: Tensor, gains: Tensor) -> Staircase:
        thresholds, order = thresholds.sort(dim=-1)
        sums = gains.double().expand(order.shape).gather(-1, order).cumsum(-1)
        return cls(thresholds, torch.nn.functional.pad(sums, (1, 0)))

    def __call__(self, theta: float | Tensor) -> Tensor:
        """[rows] for a number, [rows, n] for n thresholds."""
        theta = torch.as_tensor(theta, dtype=self.thresholds.dtype, device=self.thresholds.device)
        values = theta.expand(len(self.thresholds), *theta.shape or (1,)).contiguous()
        below = torch.searchsorted(self.thresholds, values)
        return self.sums.gather(1, below).view(-1, *theta.shape)

    @property
    def highest(self) -> Tensor:
        """The largest finite threshold, without dimensions."""
        return self.thresholds.where(self.thresholds.isfinite(), 0.0).max()


def batch_mean(saving: Tensor, batch: int) -> Tensor:
    """[batch * heads, ...] -> [heads, ...]."""
    return saving.unflatten(0, (batch, -1)).mean(0)
