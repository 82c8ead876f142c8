"""What scenes are drawn with: what chance decides, clips as fields of numbers, noise, dots and mixing.

Fields over a batch of clips of one background and one subject have the shape [B, 1, F, H, W], colours [B, 3, F, H, W];
each dimension is 1 where nothing changes along it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from timeripple.pond.prompts import Description


@dataclass(frozen=True)
class Chance:
    """What a prompt leaves open, drawn from a seed: the same numbers whatever the description."""

    offsets: tuple[float, ...]  # of textures, ridges, clouds and swell, in tiles
    start: tuple[float, ...]  # shift of the subject along x and y, in frames
    speed: float  # of the subject, times the usual
    phase: float  # where a circle or a bounce begins, radians
    sense: int  # of circles and spins: 1 clockwise, -1 the other way round
    size: float  # of the subject, times the usual
    horizon: float  # shift, in frames
    clouds: float  # how much of the sky they cover, times the usual
    wind: float  # of clouds and snow, frames per clip

    @classmethod
    def draw(cls, seed: int) -> "Chance":
        rng = np.random.default_rng(seed)

        def uniform(low: float, high: float, n: int) -> tuple[float, ...]:
            return tuple(float(x) for x in rng.uniform(low, high, n))

        return cls(
            offsets=uniform(0, 1, 4),
            start=uniform(-0.1, 0.1, 2),
            speed=uniform(0.85, 1.15, 1)[0],
            phase=uniform(0, 2 * np.pi, 1)[0],
            sense=1 if rng.random() < 0.5 else -1,
            size=uniform(0.92, 1.08, 1)[0],
            horizon=uniform(-0.06, 0.06, 1)[0],
            clouds=uniform(0.5, 1.4, 1)[0],
            wind=uniform(-0.2, 0.2, 1)[0],
        )


class Clips:
    """What is drawn of some clips of one background and one subject: numbers and axes as fields."""

    def __init__(
        self,
        descriptions: Sequence[Description],
        seeds: Sequence[int],
        at: Tensor,
        height: int,
        width: int,
        device: torch.device | str = "cpu",
    ):
        self.descriptions, self.chances = descriptions, [Chance.draw(seed) for seed in seeds]
        self.background, self.subject = self.concepts("background")[0], self.concepts("subject")[0]
        self.height, self.width, self.aspect, self.device = height, width, width / height, device
        self.at, self.p = at, at.view(len(at), 1, -1, 1, 1).to(device)
        self.look_at(torch.zeros(len(at)), torch.zeros(len(at)), height, width)
        self.a, self.b, self.c, self.d = (self.numbers([x.offsets[i] for x in self.chances]) for i in range(4))

    def look_at(self, top: Tensor, left: Tensor, height: int, width: int) -> None:
        """Sets the axes, in frames, to windows of so many pixels."""
        across = left.to(self.device).view(-1, 1, 1, 1, 1) + torch.arange(width, device=self.device)
        down = top.to(self.device).view(-1, 1, 1, 1, 1) + torch.arange(height, device=self.device).view(-1, 1)
        self.x, self.y = (across + 0.5) / self.width, (down + 0.5) / self.height

    def numbers(self, values: Sequence[float | Sequence[float]]) -> Tensor:
        """One number a clip, or one colour a clip, as [B, 1 or 3, 1, 1, 1]."""
        return torch.tensor(values, dtype=torch.float32, device=self.device).view(len(self.at), -1, 1, 1, 1)

    def chance(self, name: str) -> Tensor:
        return self.numbers([getattr(chance, name) for chance in self.chances])

    def concepts(self, slot: str) -> list[str]:
        """What the clips show in a slot; scenes leave none open."""
        return [getattr(description, slot) for description in self.descriptions]

    def is_(self, slot: str, concept: str) -> Tensor:
        """1 for the clips whose slot shows the concept, else 0."""
        return self.numbers([float(shown == concept) for shown in self.concepts(slot)])


@lru_cache
def _noise_texture(index: int, slope: float, device: torch.device | str) -> Tensor:
    """A tile of 1/f^slope noise, zero mean, unit variance, with its first row and column again at its end: 257×257."""
    rng = np.random.default_rng(1000 + index)
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None])
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(rng.standard_normal((256, 256))) / frequency**slope
    spectrum[0, 0] = 0
    texture = np.fft.ifft2(spectrum).real
    texture = np.pad(texture / texture.std(), (0, 1), mode="wrap")
    return torch.from_numpy(texture.astype(np.float32))[None, None].to(device)


def noise(u: Tensor, v: Tensor, index: int = 0, slope: float = 1.6) -> Tensor:
    """Noise at texture coordinates (u, v), where 1 is one tile."""
    u, v = torch.broadcast_tensors(u, v)
    places = torch.stack([u, v], -1).flatten(0, 2) % 1 * 2 - 1
    texture = _noise_texture(index, slope, u.device).expand(len(places), -1, -1, -1)
    return F.grid_sample(texture, places, align_corners=True).view(u.shape)


def mix(a: Tensor | Sequence[float], b: Tensor | Sequence[float], weight: Tensor) -> Tensor:
    """From colour `a` to colour `b` as the weight goes from 0 to 1."""
    a, b = (x if isinstance(x, Tensor) else weight.new_tensor(x).view(1, 3, 1, 1, 1) for x in (a, b))
    return a + (b - a) * weight


def smooth(low: Tensor | float, high: Tensor | float, value: Tensor) -> Tensor:
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def wave(cycles: Tensor) -> Tensor:
    return (2 * math.pi * cycles).sin()


def dots(u: Tensor, v: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """A dot at a random place in every cell of a lattice: the distance to it, and a number from 0 to 1 of its own."""
    gx, gy = u * cells, v * cells
    column, row = gx.floor(), gy.floor()
    jx = (column * 7.1 + row * 3.7).sin() * 437.5 % 1
    jy = (column * 2.3 + row * 9.1).sin() * 246.3 % 1
    return torch.hypot(gx % 1 - 0.25 - 0.5 * jx, gy % 1 - 0.25 - 0.5 * jy) / cells, (jx * 13 + jy * 7) % 1
