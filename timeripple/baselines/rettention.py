"""Re-ttention (arXiv 2505.22918): a mask makes the softmax sum too small; its share of the full sum is kept from an
earlier step and scales the masked output back, and what is then still missing is kept and added.

The mask is `skip`'s; Re-ttention takes a band of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.dispatch import AttentionStatistics
from timeripple.attention.plans.tile import TilePlan
from timeripple.attention.run import Kept, ReuseRun
from timeripple.baselines.skip import SkipConfig


@dataclass(frozen=True)
class RettentionConfig(SkipConfig):
    """What is missing is kept as it is; the schedule is that of our feedback."""

    refresh: int | str | None = "auto"
    extrapolate: bool = False
    name = "re-ttention"

    def start(self, num_inference_steps: int) -> RettentionRun:
        return RettentionRun(self, num_inference_steps)


class RettentionRun(ReuseRun):
    """`ReuseRun` whose reused output is scaled before the error is added."""

    def __init__(self, config: RettentionConfig, num_inference_steps: int):
        super().__init__(config, num_inference_steps)
        self._shares: dict[tuple[str, str], Tensor] = {}

    def _reuse(
        self, layer: str, call: AttentionCall, kept: Kept | None, residual: Tensor | None
    ) -> tuple[Tensor, AttentionStatistics]:
        """The masked attention times the share of the softmax that it had at the last refresh, and the error."""
        output, statistics = super()._reuse(layer, call, kept, None)
        place = self._name, layer
        if residual is None:  # a refresh
            assert isinstance(statistics.plan, TilePlan)  # as a mask makes them
            self._shares[place] = softmax_share(call, statistics.plan)
        output = self._shares[place].to(output.dtype) * output
        return output if residual is None else output + residual, statistics

    @property
    def held_bytes(self) -> int:
        return super().held_bytes + sum(share.nbytes for share in self._shares.values())


def softmax_share(call: AttentionCall, plan: TilePlan) -> Tensor:
    """The masked softmax sum over the full one, [batch, heads, tokens, 1]; 1 for text, which sees everything."""
    grid, query = plan.grid, call.query
    share = query.new_ones(*query.shape[:3], 1)
    for number in range(len(plan.tile_sizes)):
        rows = (plan.tile == number).nonzero()[:, 0] + grid.text_before
        logits = call.logit_scale * (query[:, :, rows].float() @ call.key.float().mT)
        if call.key_mask is not None:
            logits = logits.masked_fill(~call.key_mask[:, None, None], float("-inf"))
        seen = torch.ones(*query.shape[:2], grid.tokens, dtype=torch.bool, device=query.device)
        seen[..., grid.video] = plan.computed[:, number][:, plan.window].view(*query.shape[:2], -1)
        masked = logits.masked_fill(~seen[:, :, None], float("-inf"))
        share[:, :, rows, 0] = (masked.logsumexp(-1) - logits.logsumexp(-1)).exp().to(share.dtype)
    return share
