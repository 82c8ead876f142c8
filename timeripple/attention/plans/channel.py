"""Channel reuse, the paper's method to the letter: single (token, channel) entries, on snapped query and key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.grid import TokenGrid
from timeripple.attention.method import Granularity, ReuseSettings
from timeripple.attention.plans.curve import Staircase, batch_mean
from timeripple.attention.similarity import reuse_threshold, snap
from timeripple.attention.torch_backend import dense_attention

SAMPLES = 2048  # tokens per channel from which the curve is estimated


@dataclass(frozen=True)
class ChannelPlan:
    """Dense attention on snapped query and key, [batch, heads, tokens, d].

    saving: [heads], theoretical: the share of partial products that reuse would make unnecessary, mean over the batch.
    """

    query: Tensor
    key: Tensor
    saving: Tensor

    @property
    def batch(self) -> int:
        return len(self.query)

    @property
    def tokens(self) -> int:
        return self.query.shape[2]

    @property
    def nbytes(self) -> int:
        return self.query.nbytes + self.key.nbytes

    def snapped(self, call: AttentionCall) -> AttentionCall:
        """The call with query and key as planned."""
        return replace(call, query=self.query, key=self.key, mask_is_known=True)

    def carry_out(self, call: AttentionCall) -> Tensor:
        return dense_attention(self.snapped(call))


@dataclass(frozen=True)
class ChannelCurve:
    """Theoretical saving of channel reuse as a function of the threshold.

    query, key: share of reused tokens in every channel of every head, [batch * heads * d]; for long sequences it is
    estimated from a sample of the tokens. axes, window: as in `config.ReuseConfig`.
    """

    query: Staircase
    key: Staircase
    axes: Sequence[str]
    window: int
    batch: int
    channels: int

    def saving(self, theta: float | Tensor) -> Tensor:
        """[heads] savings for a number, [heads, n] for n thresholds; mean over the batch."""
        kept = (1 - self.query(theta)) * (1 - self.key(theta))
        return batch_mean(1 - kept.unflatten(0, (-1, self.channels)).mean(1), self.batch)

    @property
    def highest(self) -> Tensor:
        return torch.maximum(self.query.highest, self.key.highest)

    def plan(self, call: AttentionCall, theta: float | Tensor) -> ChannelPlan:
        arguments = (call.grid, theta, self.axes, self.window)
        snapped_query, reused_query = snap(call.query, *arguments)
        snapped_key, reused_key = snap(call.key, *arguments)
        kept = (1 - reused_query.double().mean(-2)) * (1 - reused_key.double().mean(-2))
        return ChannelPlan(snapped_query, snapped_key, 1 - kept.mean((0, 2)))


def measure(call: AttentionCall, settings: ReuseSettings) -> ChannelCurve:
    """From a sample of the tokens where there are many."""
    grid: TokenGrid = call.grid
    sample = torch.arange(grid.video_tokens)
    if len(sample) > SAMPLES:
        sample = torch.randperm(len(sample), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    sample = sample.to(call.device) + grid.text_before
    gain = torch.tensor(grid.video_tokens / grid.tokens / len(sample), dtype=torch.float64, device=call.device)

    def reused(x: Tensor) -> Staircase:
        thresholds = reuse_threshold(x, grid, settings.axes, settings.window)[..., sample, :]
        return Staircase.build(thresholds.mT.contiguous().flatten(0, 2), gain)

    return ChannelCurve(reused(call.query), reused(call.key), settings.axes, settings.window, call.batch, call.head_dim)


CHANNEL = Granularity(
    name="channel",
    kind="theoretical",
    measure=measure,
    ceiling=lambda kept: 1 - kept**2,
    comfort=0.975,
    comfort_with_feedback=0.975,
    plans_last=False,  # they hold the values of their pass and step
    refreshes=False,
    any_window=True,
)
