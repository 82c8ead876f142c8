"""Sparse VideoGen 2 (SVG2, arXiv 2505.18875): queries and keys are clustered by k-means, and every cluster of queries
attends to the clusters of keys that its centroid attends to most, until they hold a share p of its attention.

Settings are those of the authors' script for Wan 2.1 at 720p (p 0.9, at least a tenth of the key clusters, 50 rounds of
k-means at first and 2 at every step from the centroids of the step before), with clusters as large as there: 300 and
1000 of 75,600 tokens. As with all masks here, the first guidance pass plans for the others, where SVG2 clusters every
pass; all layers take part, where it leaves the first of 40 dense; and a budget may stand for p. Text keys are always
computed. Rows are gathered cluster by cluster with PyTorch, where SVG2 permutes them for a block-sparse kernel: as many
are computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from timeripple.attention.call import AttentionCall
from timeripple.attention.grid import TokenGrid
from timeripple.attention.method import require
from timeripple.attention.plans.curve import Staircase, batch_mean
from timeripple.attention.run import ReuseRun
from timeripple.attention.torch_backend import attend_rows, dense_attention
from timeripple.baselines.skip import SkipConfig

MISSED = 0.1  # 1 - p
LEAST = 0.1  # of the key clusters, kept whatever p says
FIRST_ROUNDS, ROUNDS, SHIFT = 50, 2, 1e-4  # of k-means, and the shift of all centroids at which it is over
OWN = ("query_cluster", "key_cluster")


@dataclass(frozen=True)
class Svg2Config(SkipConfig):
    """theta is the attention probability that a cluster of queries may miss, 1 - p; query_cluster, key_cluster: tokens
    to a cluster on average."""

    dense_first: float | str = 0.2
    dense_last: int | str = 0
    ramp: float | str = 0.0
    query_cluster: int = 252
    key_cluster: int = 76
    name = "svg2"

    def __post_init__(self) -> None:
        if self.budget is None and self.theta is None:
            object.__setattr__(self, "theta", MISSED)
        super().__post_init__()
        for name in OWN:
            size = getattr(self, name)
            require(size >= 1, f"{name} {size} is not a number of tokens; give 1 or more")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `svg2[:budget][:key=value...]`, e.g. "svg2:0.5:key_cluster=16"."""
        parts = text.strip().split(":")
        own = [part for part in parts if part.split("=")[0] in OWN]
        values: dict[str, Any] = {}
        for name, _, value in (part.partition("=") for part in own):
            require(name not in values, f"setting {name!r} is given twice in {text!r}; give it once")
            require(value.isascii() and value.isdigit(), f"{name}={value} is not a number of tokens; give 1 or more")
            values[name] = int(value)
        return replace(super().parse(":".join(part for part in parts if part not in own)), **values)

    def measure(self, call: AttentionCall) -> ClusterCurve:
        """Clusters found from scratch, see `clustered`."""
        return clustered(call, self, None)

    def start(self, num_inference_steps: int) -> Svg2Run:
        return Svg2Run(self, num_inference_steps)


class Svg2Run(ReuseRun):
    """`ReuseRun` in which k-means of every layer goes on from its last centroids."""

    def __init__(self, config: Svg2Config, num_inference_steps: int):
        self.centroids = Centroids(config)
        super().__init__(self.centroids, num_inference_steps)
        self._backend = "torch"  # there is no other for clusters of any size

    def attention(self, layer: str, call: AttentionCall) -> Tensor:
        """As `ReuseRun.attention`."""
        self.centroids.layer = layer
        return super().attention(layer, call)

    @property
    def held_bytes(self) -> int:
        return super().held_bytes + self.centroids.nbytes


class Centroids:
    """Settings that know where the clusters of every layer were, as (query, key) centroids."""

    def __init__(self, config: Svg2Config):
        self.config, self.layer = config, ""
        self.known: dict[str, tuple[Tensor, Tensor]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)

    def measure(self, call: AttentionCall) -> ClusterCurve:
        curve = clustered(call, self.config, self.known.get(self.layer))
        self.known[self.layer] = curve.centroids
        return curve

    @property
    def nbytes(self) -> int:
        return sum(centroids.nbytes for pair in self.known.values() for centroids in pair)


@dataclass(frozen=True)
class Clusters:
    """The clusters of one call, by number: query, key [batch * heads, video_tokens]; query_sizes, key_sizes [batch *
    heads, clusters] in tokens, of which some may be 0."""

    query: Tensor
    key: Tensor
    query_sizes: Tensor
    key_sizes: Tensor
    grid: TokenGrid
    batch: int

    def saving_of(self, pairs: Tensor) -> Tensor:
        """1 - pairs visited / pairs, [heads, ...], mean over the batch, from those of video, [batch * heads, ...]."""
        tokens, video = self.grid.tokens, self.grid.video_tokens
        visited = pairs + tokens**2 - video**2
        return batch_mean(1 - visited / tokens**2, self.batch)


@dataclass(frozen=True)
class ClusterPlan(Clusters):
    """computed: bool [batch * heads, query clusters, key clusters], what every cluster of queries attends to."""

    computed: Tensor

    @property
    def saving(self) -> Tensor:
        """[heads], see `Clusters.saving_of`."""
        seen = (self.computed.double() @ self.key_sizes.double()[..., None])[..., 0]
        return self.saving_of((seen * self.query_sizes).sum(-1))

    @property
    def tokens(self) -> int:
        return self.grid.tokens

    @property
    def nbytes(self) -> int:
        return self.computed.nbytes + self.query.nbytes + self.key.nbytes

    def carry_out(self, call: AttentionCall) -> Tensor:
        """Each cluster of queries attends to text keys and to the keys of its computed clusters."""
        grid, text = self.grid, self.grid.text(call.device)
        query, key, value = (x.flatten(0, 1) for x in (call.query, call.key, call.value))
        order = self.query.argsort(dim=-1, stable=True) + grid.text_before
        sizes = self.query_sizes.tolist()
        output = torch.empty_like(query)
        places = ((head, *each) for head, own in enumerate(sizes) for each in enumerate(order[head].split(own)))
        for head, number, rows in places:
            if not len(rows):
                continue
            chosen = self.computed[head, number][self.key[head]].nonzero()[:, 0] + grid.text_before
            chosen = torch.cat([text, chosen])
            bias = key.new_zeros(len(chosen))
            if call.key_mask is not None:
                bias[: len(text)].masked_fill_(~call.key_mask[head // call.heads, text], -math.inf)
            output[head, rows] = attend_rows(
                query[head, rows], key[head, chosen], value[head, chosen], bias, call.scale
            )
        output = output.view(call.query.shape)
        if len(text):
            output[:, :, text] = dense_attention(call, queries=text)
        return output


@dataclass(frozen=True)
class ClusterCurve(Clusters):
    """Saving as a function of the probability that may be missed.

    thresholds: [batch * heads, query clusters, key clusters]: what is missed once this cluster goes, too, the least
    probable first; infinite for those that never go. centroids: of queries and keys, [batch * heads, clusters, d] each.
    """

    thresholds: Tensor
    centroids: tuple[Tensor, Tensor]

    @cached_property
    def skipped(self) -> Staircase:
        """(query, key) pairs left out per head, as a function of the threshold."""
        pairs = self.query_sizes[..., None] * self.key_sizes[:, None]
        return Staircase.build(self.thresholds.flatten(1), pairs.flatten(1))

    def saving(self, theta: float | Tensor) -> Tensor:
        """[heads] savings for a number, [heads, n] for n thresholds; mean over the batch."""
        return self.saving_of(self.grid.video_tokens**2 - self.skipped(theta))

    @property
    def highest(self) -> Tensor:
        return self.skipped.highest

    def plan(self, call: AttentionCall, theta: float | Tensor) -> ClusterPlan:
        clusters = {part.name: getattr(self, part.name) for part in fields(Clusters)}
        return ClusterPlan(**clusters, computed=self.thresholds >= theta)


def clustered(call: AttentionCall, config: Svg2Config, start: tuple[Tensor, Tensor] | None) -> ClusterCurve:
    """The clusters of a call and what their centroids attend to; start: centroids to go on from, if they fit."""
    numbers, centroids, sizes = [], [], []
    for side, (x, tokens) in enumerate(
        ((call.video_query, config.query_cluster), (call.video_key, config.key_cluster))
    ):
        count = max(1, round(x.shape[1] / tokens))
        known = start[side] if start and start[side].shape == (len(x), count, x.shape[-1]) else None
        number, centroid = k_means(x, drawn(x, count), FIRST_ROUNDS) if known is None else k_means(x, known, ROUNDS)
        numbers.append(number)
        centroids.append(centroid)
        sizes.append(sizes_of(number, count))
    logits = call.logit_scale * centroids[0] @ centroids[1].mT + sizes[1][:, None].to(centroids[1].dtype).log()
    probability, order = logits.softmax(-1).sort(dim=-1)
    missed = probability.cumsum(-1)
    missed[..., -max(1, int(LEAST * missed.shape[-1])) :] = math.inf
    thresholds = torch.empty_like(missed).scatter_(-1, order, missed)
    return ClusterCurve(
        numbers[0], numbers[1], sizes[0], sizes[1], call.grid, call.batch, thresholds, (centroids[0], centroids[1])
    )


def drawn(x: Tensor, count: int) -> Tensor:
    """Rows of x [heads, rows, d] drawn at random, always the same ones: [heads, count, d]."""
    chosen = torch.randint(x.shape[1], (len(x), count), generator=torch.Generator().manual_seed(0)).to(x.device)
    return x.gather(1, chosen[..., None].expand(-1, -1, x.shape[-1]))


def k_means(x: Tensor, centroids: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm on x [heads, rows, d] from centroids [heads, count, d]: number of the cluster of every row,
    int64 [heads, rows], and the centroids, means of their rows; a cluster that has none stays where it was."""
    for _ in range(rounds):
        half = centroids.square().sum(-1) / 2
        nearest = [(own - rows @ centres.mT).argmin(-1) for rows, centres, own in zip(x, centroids, half, strict=True)]
        number = torch.stack(nearest)
        size = sizes_of(number, centroids.shape[1])[..., None]
        total = torch.zeros_like(centroids).scatter_add_(1, number[..., None].expand_as(x), x)
        before, centroids = centroids, torch.where(size > 0, total / size.clamp(min=1), centroids)
        if (centroids - before).norm(dim=-1).max() < SHIFT:
            break
    return number, centroids


def sizes_of(number: Tensor, count: int) -> Tensor:
    """Rows of every cluster, int64 [heads, count], from the cluster of every row."""
    return number.new_zeros(len(number), count).scatter_add_(1, number, torch.ones_like(number))
