"""One call of self-attention, as it travels from the hook of a model through the run and the plans to a backend."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, replace

import torch
from torch import Tensor

from timeripple.attention.grid import TokenGrid


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What a model asks of attention in one layer.

    query, key, value: [batch, heads, tokens, d] of one floating-point dtype, as the model hands them to attention
    (after RoPE). grid: where the video tokens are among them. scale: of the logits; None is 1/sqrt(d). key_mask: bool
    [batch, tokens], False for text keys that no query sees; None, also once it is made, where all are seen.
    mask_is_known: that it hides text keys, and nothing else; looking makes the host wait for the device.

    Raises ValueError, one sentence, for shapes that do not fit the grid and for a mask that hides video tokens.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    grid: TokenGrid
    scale: float | None = None
    key_mask: Tensor | None = None
    mask_is_known: InitVar[bool] = False

    def __post_init__(self, mask_is_known: bool) -> None:
        tokens, mask = self.grid.tokens, self.key_mask
        for name, x in (("query", self.query), ("key", self.key), ("value", self.value)):
            if x.ndim != 4 or x.shape[2] != tokens:
                raise ValueError(
                    f"{name} of shape {tuple(x.shape)} does not fit {self.grid}; give [batch, heads, {tokens}, d]."
                )
        if mask is None:
            return
        if mask.dtype != torch.bool or mask.shape != (self.batch, tokens):
            raise ValueError(
                f"key_mask of shape {tuple(mask.shape)} and {mask.dtype} does not fit; give bool "
                f"[{self.batch}, {tokens}]."
            )
        if mask_is_known:
            return
        if mask.all():
            object.__setattr__(self, "key_mask", None)
        elif not mask[:, self.grid.video].all():
            raise ValueError("key_mask hides video tokens, but reuse needs the whole grid; mask text tokens only.")

    def to(self, dtype: torch.dtype) -> AttentionCall:
        """The same in another dtype."""
        query, key, value = (x.to(dtype) for x in (self.query, self.key, self.value))
        return replace(self, query=query, key=key, value=value, mask_is_known=True)

    @property
    def batch(self) -> int:
        return self.query.shape[0]

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def head_dim(self) -> int:
        return self.query.shape[3]

    @property
    def device(self) -> torch.device:
        return self.query.device

    @property
    def logit_scale(self) -> float:
        """`scale`, with its default worked out."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def video_query(self) -> Tensor:
        """Video tokens, [batch * heads, video_tokens, d], at least float32."""
        return self._video(self.query)

    @property
    def video_key(self) -> Tensor:
        """As `video_query`."""
        return self._video(self.key)

    def _video(self, x: Tensor) -> Tensor:
        return x[..., self.grid.video, :].flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32))
