"""The token grid of a video transformer: how a flat sequence of rows maps to time, height and width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Device = torch.device | str | None
AXES = ("t", "y", "x")


@dataclass(frozen=True)
class TokenGrid:
    """Video tokens on a (frames, height, width) grid, with text tokens before or after them in the sequence.

    Sizes are in tokens (latent patches), not pixels. Video tokens are flattened with x fastest, then y, then t.
    Raises ValueError for an empty grid or a negative number of text tokens.
    """

    frames: int
    height: int
    width: int
    text_before: int = 0
    text_after: int = 0

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or min(self.text_before, self.text_after) < 0:
            raise ValueError(f"{self} needs at least one token per axis and no negative number of text tokens")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(t, y, x) sizes."""
        return self.frames, self.height, self.width

    @property
    def video_tokens(self) -> int:
        return self.frames * self.height * self.width

    @property
    def tokens(self) -> int:
        """Length of the whole sequence, text included."""
        return self.text_before + self.video_tokens + self.text_after

    @property
    def video(self) -> slice:
        """Where the video tokens are in the sequence."""
        return slice(self.text_before, self.text_before + self.video_tokens)

    def text(self, device: Device = None) -> Tensor:
        """Where the text tokens are in the sequence: int64 [tokens - video_tokens]."""
        before, after = torch.arange(self.text_before), torch.arange(self.video.stop, self.tokens)
        return torch.cat([before, after]).to(device)

    def unflatten(self, video: Tensor) -> Tensor:
        """[..., video_tokens, d] -> [..., t, y, x, d]."""
        return video.unflatten(-2, self.shape)

    def with_text(self, video: Tensor, fill: float | bool) -> Tensor:
        """[..., video_tokens] -> [..., tokens]: the text positions hold `fill`."""
        return torch.nn.functional.pad(video, (self.text_before, self.text_after), value=fill)

    def block_index(self, block: tuple[int, int, int], device: Device = None) -> tuple[Tensor, Tensor]:
        """Which block of `block` = (t, y, x) tokens each video token lies in, and how many tokens each block has.

        Blocks start at 0 on every axis and are numbered t, y, x; the last ones of an axis may be smaller.
        Returns (index [video_tokens], sizes [blocks]), both int64.
        """
        index, sizes = torch.zeros(1, dtype=torch.long, device=device), torch.ones(1, dtype=torch.long, device=device)
        for size, step in zip(self.shape, block, strict=True):
            position = torch.arange(size, device=device)
            blocks = -(-size // step)
            index = (index[:, None] * blocks + position // step).flatten()
            starts = torch.arange(blocks, device=device) * step
            sizes = (sizes[:, None] * (size - starts).clamp(max=step)).flatten()
        return index, sizes
