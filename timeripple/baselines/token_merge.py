"""Token merging (ToMe, arXiv 2210.09461; for diffusion, arXiv 2303.17604) on video tokens.

One token of every 2 x 2 x 2 window, drawn at random, is a destination; the others are matched to the destination whose
key is most like theirs, wherever it is, and the best matches merge, in queries, keys and values alike. A merged row is
a mean with the log of its size added to its logit, ToMe's proportional attention; its output goes to all its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from timeripple.attention.call import AttentionCall
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid
from timeripple.attention.plans.curve import Staircase, batch_mean
from timeripple.attention.plans.token import Rows, TokenPlan, window_table
from timeripple.baselines.settings import as_reuse

SETTINGS = ("budget", "theta", "refresh", "extrapolate", "dense_first", "dense_last", "ramp", "theta_min")


@dataclass(frozen=True)
class TokenMergeConfig(ReuseConfig):
    """Settings of token reuse, for merging; theta is 1 - cosine similarity. It is on from the second step to the last,
    as there is no dense phase in ToMe."""

    refresh: int | str | None = None
    dense_first: float | str = 0.0
    dense_last: int | str = 0
    ramp: float | str = 0.0

    @property
    def label(self) -> str:
        return "token-merge" + super().label.removeprefix(self.granularity)

    def measure(self, call: AttentionCall) -> MergeCurve:
        return match(call)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `token-merge[:budget][:key=value...]`."""
        return super().parse(as_reuse("token", text, SETTINGS))


@dataclass(frozen=True)
class MergeCurve:
    """Saving of merging as a function of the threshold.

    distance: [heads, video_tokens] 1 - similarity to the destination, infinite for destinations themselves; target:
    [heads, video_tokens] the destination.
    """

    distance: Tensor
    target: Tensor
    merged: Staircase
    grid: TokenGrid
    batch: int

    def saving(self, theta: float | Tensor) -> Tensor:
        """[heads] savings for a number, [heads, n] for n thresholds; mean over the batch."""
        saving = 1 - (1 - self.merged(theta) / self.grid.tokens) ** 2
        return batch_mean(saving, self.batch)

    @property
    def highest(self) -> Tensor:
        return self.merged.highest

    def plan(self, call: AttentionCall, theta: float | Tensor) -> TokenPlan:
        grid, merges = self.grid, self.distance < theta
        text = (grid.text_before, grid.text_after)
        leads = pad(~merges, text, value=True)
        number = leads.cumsum(1) - 1
        own = torch.arange(grid.video_tokens, device=merges.device).expand_as(self.target)
        place = torch.where(merges, self.target, own) + grid.text_before
        owner = number.clone()
        owner[:, grid.video] = number.gather(1, place)
        rows = Rows.of(owner, leads.sum(1))
        return TokenPlan(rows, rows, self.batch)


def match(call: AttentionCall) -> MergeCurve:
    """Every source's most similar destination, and how far it is."""
    grid, device = call.grid, call.device
    table, occupied = window_table(grid, device)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(occupied.shape, generator=generator).to(device).masked_fill(~occupied, -1).argmax(1)
    destinations = table.gather(1, drawn[:, None])[:, 0]
    video = normalize(call.key[..., grid.video, :].flatten(0, 1).float(), dim=-1)
    similarity, nearest = (video @ video[:, destinations].mT).max(-1)
    distance = (1 - similarity).clamp(min=0)
    distance[:, destinations] = float("inf")
    gains = torch.ones(grid.video_tokens, dtype=torch.float64, device=device)
    gains[destinations] = 0
    return MergeCurve(distance, destinations[nearest], Staircase.build(distance, gains), grid, call.batch)
