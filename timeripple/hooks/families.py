"""What differs between families of video transformers, one record each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from timeripple.grid import TokenGrid


@dataclass(frozen=True)
class Family:
    """How to find and read the self-attention of one transformer class.

    name: for people. attention: pattern that the whole name of a self-attention module matches. grid: from the
    transformer and the arguments of its forward, by name, to the token grid that self-attention sees, text included.
    rope: from the transformer to the channels of a head that RoPE turns with time, height and width, {"t", "y", "x"}.
    """

    name: str
    attention: str
    grid: Callable[[nn.Module, Mapping], TokenGrid]
    rope: Callable[[nn.Module], dict[str, slice]]

    def attention_modules(self, transformer: nn.Module) -> dict[str, nn.Module]:
        """Self-attention modules by name, in the order of the forward pass."""
        return {name: m for name, m in transformer.named_modules() if re.fullmatch(self.attention, name)}


def _wan_grid(transformer: nn.Module, arguments: Mapping) -> TokenGrid:
    """hidden_states [batch, channels, frames, height, width] in patches; text has attention of its own."""
    sizes = arguments["hidden_states"].shape[2:]
    return TokenGrid(*(size // patch for size, patch in zip(sizes, transformer.config.patch_size, strict=True)))


def _wan_rope(transformer: nn.Module) -> dict[str, slice]:
    """Contiguous groups t, y, x: 44, 42 and 42 channels of Wan2.1's 128."""
    rope = transformer.rope
    y, x = rope.t_dim, rope.t_dim + rope.h_dim
    return {"t": slice(0, y), "y": slice(y, x), "x": slice(x, x + rope.w_dim)}


FAMILIES = {
    "WanTransformer3DModel": Family("Wan", r"blocks\.\d+\.attn1", _wan_grid, _wan_rope),
}
"""Supported transformers by class name."""
