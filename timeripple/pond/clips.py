"""Endless rendered clips for training, made where they are used and drawn several times each."""

import itertools
import random

import numpy as np
import torch
from torch import Tensor

from timeripple.pond.drawing import Chance
from timeripple.pond.prompts import Description, random_description
from timeripple.pond.scenes import pose, progress, render, render_clips

CLIP_SEED = 20_000
SIZES = ((17, 128), (33, 192), (49, 256))  # frames, height and width: Small, Standard, Large
WINDOWS = ((17, 64), (33, 64))  # frames, height and width of the pieces that the autoencoder learns from


def held_out_descriptions(count: int) -> list[tuple[Description, int]]:
    """Descriptions of held-out combinations with a seed each, the same for every call."""
    rng = random.Random(CLIP_SEED)
    drawn = ((random_description(rng, held_out=True), rng.getrandbits(31)) for _ in itertools.count())
    return list(itertools.islice(drawn, count))


def held_out_clips(count: int, num_frames: int, size: int) -> list[tuple[Description, np.ndarray]]:
    """Rendered clips of held-out descriptions, the same for every call: uint8 RGB [F, size, size, 3]."""
    return [(d, render(d, seed, num_frames, size, size)) for d, seed in held_out_descriptions(count)]


def random_clips(
    count: int, num_frames: int, size: int, rng: random.Random, device: str
) -> tuple[list[Description], Tensor, Tensor]:
    """Whole training clips: descriptions, frames uint8 RGB [B, 3, F, size, size], and where subjects are, bool
    [B, F, size, size]."""
    descriptions = [random_description(rng) for _ in range(count)]
    seeds = [rng.getrandbits(31) for _ in range(count)]
    at = progress(num_frames).expand(count, -1)
    return descriptions, *render_clips(descriptions, seeds, at, size, size, device=device)


def random_windows(
    count: int, num_frames: int, window: int, rng: random.Random, device: str, follow: float = 0.0
) -> Tensor:
    """Pieces of training clips of all sizes that are large enough, uint8 RGB [B, 3, F, window, window].

    follow: the share of them that are where the subject is halfway through, it anywhere inside them.
    """
    size = rng.choice([size for _, size in SIZES if size >= window])
    length = rng.choice([length for length, _ in SIZES if length >= num_frames])
    first = torch.tensor([rng.randrange(length - num_frames + 1) for _ in range(count)])
    at = (first[:, None] + torch.arange(num_frames)) / (length - 1)
    descriptions = [random_description(rng) for _ in range(count)]
    seeds = [rng.getrandbits(31) for _ in range(count)]
    corners = torch.tensor([[rng.randrange(size - window + 1) for _ in "yx"] for _ in range(count)])
    for i, description in enumerate(descriptions):
        if rng.random() < follow:
            where = pose(description.motion, at[i, num_frames // 2 : num_frames // 2 + 1], Chance.draw(seeds[i]))
            middle = torch.cat([where.y, where.x]) * size + window * (torch.tensor([rng.random(), rng.random()]) - 1)
            corners[i] = middle.round().long().clamp(0, size - window)
    return render_clips(descriptions, seeds, at, size, size, window=window, corners=corners, device=device)[0]


class Newest:
    """The newest examples, tensors with one leading dimension, to be drawn from at random."""

    def __init__(self, capacity: int):
        self.capacity, self.seen = capacity, 0
        self.kept: list[Tensor] = []

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    def add(self, *new: Tensor) -> None:
        """Keeps some more examples, in place of the oldest ones once all room is taken."""
        if not self.kept:
            self.kept = [x.new_empty(self.capacity, *x.shape[1:]) for x in new]
        places = torch.arange(self.seen, self.seen + len(new[0]), device=new[0].device) % self.capacity
        for kept, x in zip(self.kept, new, strict=True):
            kept[places] = x
        self.seen += len(new[0])

    def draw(self, count: int) -> tuple[Tensor, ...]:
        """`count` examples at random."""
        picked = torch.randint(len(self), (count,), device=self.kept[0].device)
        return tuple(kept[picked] for kept in self.kept)
