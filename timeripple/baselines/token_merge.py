"""Token merging (ToMe, arXiv 2210.09461; for diffusion, arXiv 2303.17604) on video tokens.

One token of every 2 x 2 x 2 window, drawn at random, is a destination; the others are matched to the destination whose
key is most like theirs, wherever it is, and the best matches merge, in queries, keys and values alike. A merged row is
a mean with the log of its size added to its logit, ToMe's proportional attention; its output goes to all its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from timeripple.attention import ReuseRun
from timeripple.attention.plan import Rows, Staircase, TokenPlan, window_table
from timeripple.baselines.settings import as_reuse
from timeripple.config import ReuseConfig
from timeripple.grid import TokenGrid

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

    def start(self, num_inference_steps: int) -> ReuseRun:
        return ReuseRun(self, num_inference_steps, measure=measure)

    @classmethod
    def parse(cls, text: str) -> TokenMergeConfig:
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
    kind = "realised"

    def saving(self, theta: float | Tensor) -> Tensor:
        """[heads] savings for a number, [heads, n] for n thresholds; mean over the batch."""
        saving = 1 - (1 - self.merged(theta) / self.grid.tokens) ** 2
        return saving.unflatten(0, (self.batch, -1)).mean(0)

    @property
    def highest(self) -> Tensor:
        return self.merged.highest

    def plan(self, query: Tensor, key: Tensor, theta: float | Tensor) -> TokenPlan:
        grid, merges = self.grid, self.distance < theta
        text = (grid.text_before, grid.text_after)
        leads = pad(~merges, text, value=True)
        number = leads.cumsum(1) - 1
        own = torch.arange(grid.video_tokens, device=merges.device).expand_as(self.target)
        place = torch.where(merges, self.target, own) + grid.text_before
        owner = number.clone()
        owner[:, grid.video] = number.gather(1, place)
        rows = Rows(owner, torch.zeros_like(owner).scatter_add_(1, owner, torch.ones_like(owner)), leads.sum(1))
        return TokenPlan(rows, rows, self.batch)


def measure(
    query: Tensor,
    key: Tensor,
    grid: TokenGrid,
    config: ReuseConfig,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> MergeCurve:
    """`attention.plan.measure` for merging: every source's most similar destination, and how far it is."""
    table, occupied = window_table(grid, query.device)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(occupied.shape, generator=generator).to(query.device).masked_fill(~occupied, -1).argmax(1)
    destinations = table.gather(1, drawn[:, None])[:, 0]
    video = normalize(key[..., grid.video, :].flatten(0, 1).float(), dim=-1)
    similarity, nearest = (video @ video[:, destinations].mT).max(-1)
    distance = (1 - similarity).clamp(min=0)
    distance[:, destinations] = float("inf")
    gains = torch.ones(grid.video_tokens, dtype=torch.float64, device=query.device)
    gains[destinations] = 0
    return MergeCurve(distance, destinations[nearest], Staircase.build(distance, gains), grid, len(query))
