"""What the masks of attention calls say, as far as reuse can honour it."""

from __future__ import annotations

import torch
from torch import Tensor

from timeripple.attention.grid import TokenGrid

HIDDEN = -9_999  # additive masks are this or less, or 0


class MaskReader:
    """Reads masks, each once: all layers of a forward pass are given the same one, and looking into it makes the host
    wait for the device."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, int, TokenGrid] | None = None
        self._read: Tensor | None = None

    def read(self, mask: Tensor | None, batch: int, grid: TokenGrid) -> Tensor | None:
        """As `read_mask`."""
        if mask is None:
            return None
        if self._last is None or self._last[0] is not mask or self._last[1:] != (mask._version, batch, grid):
            self._last = None
            self._read = read_mask(mask, batch, grid)
            self._last = mask, mask._version, batch, grid
        return self._read

    def forget(self) -> None:
        self._last = self._read = None


def read_mask(mask: Tensor | None, batch: int, grid: TokenGrid) -> Tensor | None:
    """The mask of an attention call as keys that are seen, bool [batch, tokens]; None where all are.

    mask: bool or additive, [batch or 1, heads or 1, queries or 1, tokens]. Queries of text that no key sees may differ
    from the others, as nothing reads what they get. Raises ValueError, one clause, for what this cannot express.
    """
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        if not ((mask == 0) | (mask <= HIDDEN)).all():
            raise ValueError("its mask weighs keys instead of hiding them")
        mask = mask == 0
    rows = mask[:, :, grid.video] if mask.shape[2] > 1 else mask
    seen = rows[:, :1, :1]
    if not (rows == seen).all():
        raise ValueError("its mask differs between video tokens or heads")
    if mask.shape[2] > 1:
        text = grid.text(mask.device)
        same = (mask[:, :, text] == seen).all(-1)
        if not (same | ~seen[..., 0, text]).all():
            raise ValueError("its mask differs between text and video")
    if not seen[..., grid.video].all():
        raise ValueError("its mask hides video tokens")
    return None if seen.all() else seen[:, 0, 0].expand(batch, -1)
