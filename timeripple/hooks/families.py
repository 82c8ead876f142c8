"""What differs between families of video transformers, one record each.

Open-Sora-Plan, the fourth model of the paper, is not in diffusers; Allegro is its nearest relative there.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid


@dataclass(frozen=True)
class Family:
    """How to find and read the self-attention of one kind of transformer.

    name: for people. attention: pattern that the whole name of a self-attention module matches. grid: from the
    transformer, the arguments of its forward by name and the tokens self-attention sees to their `TokenGrid`; raises
    ValueError, one clause, where they do not fit. rope: from the transformer to the channels of a head that RoPE turns
    with time, height and width, {"t", "y", "x"}; empty where channels mix axes. per_sample: attention is called once
    for every sample of the batch, without text padding. preset: settings to begin with, and where they are from.
    """

    name: str
    attention: str
    grid: Callable[[ModelMixin, Mapping[str, Any], int], TokenGrid]
    rope: Callable[[ModelMixin], dict[str, slice]]
    per_sample: bool = False
    preset: tuple[ReuseConfig, str] = (ReuseConfig(), "default: found on Pond, not yet measured on this model")

    def attention_modules(self, transformer: nn.Module) -> dict[str, Any]:
        """Self-attention modules by name, in the order of the forward pass."""
        return {name: m for name, m in transformer.named_modules() if re.fullmatch(self.attention, name)}


def family_of(transformer: nn.Module) -> Family | None:
    """The record of a transformer: by its class, or the generic one where it looks like a video transformer."""
    family = FAMILIES.get(type(transformer).__name__)
    if family is None and isinstance(transformer, ModelMixin) and GENERIC.attention_modules(transformer):
        return GENERIC
    return family


# --- Grids: sizes in patches from the arguments of the forward; text before or after the video ------------------------


def _patches(sizes: Sequence[int], patch: Sequence[int], tokens: int, text: str) -> TokenGrid:
    """text: "before", "after", or "none" where it has attention of its own."""
    t, y, x = (size // edge for size, edge in zip(sizes, patch, strict=True))
    others = tokens - t * y * x
    if others < 0 or (others and text == "none"):
        raise ValueError(f"a sequence of {tokens} tokens is not the grid {t} x {y} x {x}")
    return TokenGrid(t, y, x, **{"before": {"text_before": others}, "after": {"text_after": others}, "none": {}}[text])


def _wan_grid(transformer: ModelMixin, arguments: Mapping[str, Any], tokens: int) -> TokenGrid:
    """hidden_states [batch, channels, frames, height, width]; text has attention of its own."""
    return _patches(arguments["hidden_states"].shape[2:], transformer.config.patch_size, tokens, "none")


def _hunyuan_grid(transformer: ModelMixin, arguments: Mapping[str, Any], tokens: int) -> TokenGrid:
    """hidden_states as for Wan; text, padded, comes last."""
    config = transformer.config
    patch = config.patch_size_t, config.patch_size, config.patch_size
    return _patches(arguments["hidden_states"].shape[2:], patch, tokens, "after")


def _framepack_grid(transformer: ModelMixin, arguments: Mapping[str, Any], tokens: int) -> TokenGrid:
    """As HunyuanVideo, with the history of earlier sections in front of the latents; history is always computed."""
    grid = _hunyuan_grid(transformer, arguments, tokens)
    mask, image = arguments["encoder_attention_mask"], arguments["image_embeds"]
    text = mask.shape[1] if len(mask) > 1 else int(mask.sum())
    after = text + image.shape[1]
    if after > grid.text_after:
        raise ValueError(f"{grid.text_after} tokens beside the video are fewer than the {after} of text and image")
    return TokenGrid(*grid.shape, text_before=grid.text_after - after, text_after=after)


def _cogvideox_grid(transformer: ModelMixin, arguments: Mapping[str, Any], tokens: int) -> TokenGrid:
    """hidden_states [batch, frames, channels, height, width]; text comes first."""
    _, frames, _, height, width = arguments["hidden_states"].shape
    edge, patch = transformer.config.patch_size_t or 1, transformer.config.patch_size
    frames += -frames % edge
    return _patches((frames, height, width), (edge, patch, patch), tokens, "before")


def _ltx_grid(transformer: ModelMixin, arguments: Mapping[str, Any], tokens: int) -> TokenGrid:
    """hidden_states are tokens already; their grid is told by num_frames, height and width, or by where each is."""
    if arguments.get("video_coords") is not None:
        return _grid_of_places(arguments["video_coords"], tokens)
    frames, height, width = (arguments.get(name) for name in ("num_frames", "height", "width"))
    if frames is None or height is None or width is None:
        raise ValueError("num_frames, height and width are not told")
    return _patches((frames, height, width), (1, 1, 1), tokens, "none")


def _grid_of_places(places: Tensor, tokens: int) -> TokenGrid:
    """places [batch, 3, tokens]: of each token along time, height and width, frame by frame. The clip is the longest
    stretch in which time goes on; frames beside it, which it is conditioned on, are always computed."""
    times, rows, columns = places[0].cpu()
    starts = ((rows == rows[0]) & (columns == columns[0])).nonzero().flatten().tolist()
    area = (starts[1:] or [tokens])[0]
    width = int((rows[:area] == rows[0]).sum())
    if tokens != len(times) or tokens % area or area % width:
        raise ValueError(f"the places of {len(times)} tokens are no frames of a grid of {tokens}")
    shape = tokens // area, area // width, width
    t, y, x = times.view(shape), rows.view(shape), columns.view(shape)
    if not ((t == t[:, :1, :1]).all() and (y == y[:1, :, :1]).all() and (x == x[:1, :1]).all()):
        raise ValueError("the tokens are not placed in frames, rows and columns")
    goes_on = (t[1:, 0, 0] > t[:-1, 0, 0]).tolist()
    breaks = [0, *(frame for frame, on in enumerate(goes_on, 1) if not on), shape[0]]
    first, last = max(itertools.pairwise(breaks), key=lambda stretch: stretch[1] - stretch[0])
    return TokenGrid(last - first, *shape[1:], text_before=first * area, text_after=(shape[0] - last) * area)


def _mochi_grid(transformer: ModelMixin, arguments: Mapping[str, Any], tokens: int) -> TokenGrid:
    """hidden_states as for Wan, patches in space only; text without its padding comes last."""
    patch = 1, transformer.config.patch_size, transformer.config.patch_size
    return _patches(arguments["hidden_states"].shape[2:], patch, tokens, "after")


def _allegro_grid(transformer: ModelMixin, arguments: Mapping[str, Any], tokens: int) -> TokenGrid:
    config = transformer.config
    patch = config.patch_size_t, config.patch_size, config.patch_size
    return _patches(arguments["hidden_states"].shape[2:], patch, tokens, "none")


def _generic_grid(transformer: ModelMixin, arguments: Mapping[str, Any], tokens: int) -> TokenGrid:
    """Latents [batch, channels, frames, height, width], or tokens whose grid is told; no text among them, as nothing
    says where it would stand."""
    config, hidden_states = transformer.config, arguments.get("hidden_states")
    if not isinstance(hidden_states, Tensor) or hidden_states.ndim != 5:
        return _ltx_grid(transformer, arguments, tokens)
    patch = getattr(config, "patch_size", 1)
    if isinstance(patch, int):
        patch = getattr(config, "patch_size_t", None) or 1, patch, patch
    return _patches(hidden_states.shape[2:], tuple(patch), tokens, "none")


# --- RoPE channels of a head ------------------------------------------------------------------------------------------


def _groups(*sizes: int) -> dict[str, slice]:
    """Contiguous groups t, y, x of these sizes."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return {axis: slice(end - size, end) for axis, size, end in zip("tyx", sizes, ends, strict=True)}


def _wan_rope(transformer: ModelMixin) -> dict[str, slice]:
    """44, 42 and 42 channels of Wan2.1's 128."""
    return _groups(transformer.rope.t_dim, transformer.rope.h_dim, transformer.rope.w_dim)


def _hunyuan_rope(transformer: ModelMixin) -> dict[str, slice]:
    """16, 56 and 56 channels of HunyuanVideo's 128."""
    return _groups(*transformer.config.rope_axes_dim)


def _cogvideox_rope(transformer: ModelMixin) -> dict[str, slice]:
    """A quarter and twice three eighths; none in the models that add sinusoids instead."""
    size = transformer.config.attention_head_dim
    rotary = transformer.config.use_rotary_positional_embeddings
    return _groups(size // 4, size // 8 * 3, size // 8 * 3) if rotary else {}


def _allegro_rope(transformer: ModelMixin) -> dict[str, slice]:
    """Thirds."""
    return _groups(*[transformer.config.attention_head_dim // 3] * 3)


def _no_groups(transformer: ModelMixin) -> dict[str, slice]:
    """LTX turns channels of all axes in turn, Mochi learns which; nothing is known of other models."""
    return {}


PAPER_HUNYUAN = (
    ReuseConfig("channel", theta=0.5, theta_min=0.4, dense_first=0.2, dense_last=1, ramp=0.2, refresh=None),
    "paper: 50 steps, theta 0.2 to 0.5",
)
_WAN = Family("Wan", r"(vace_)?blocks\.\d+\.attn1", _wan_grid, _wan_rope)
_HUNYUAN = r"(single_)?transformer_blocks\.\d+\.attn"
FAMILIES = {
    "WanTransformer3DModel": _WAN,
    "WanVACETransformer3DModel": _WAN,
    "WanAnimateTransformer3DModel": _WAN,
    "SkyReelsV2Transformer3DModel": _WAN,
    "HunyuanVideoTransformer3DModel": Family(
        "HunyuanVideo", _HUNYUAN, _hunyuan_grid, _hunyuan_rope, preset=PAPER_HUNYUAN
    ),
    "HunyuanVideo15Transformer3DModel": Family("HunyuanVideo 1.5", _HUNYUAN, _hunyuan_grid, _hunyuan_rope),
    "HunyuanVideoFramepackTransformer3DModel": Family("FramePack", _HUNYUAN, _framepack_grid, _hunyuan_rope),
    "CogVideoXTransformer3DModel": Family(
        "CogVideoX", r"transformer_blocks\.\d+\.attn1", _cogvideox_grid, _cogvideox_rope
    ),
    "LTXVideoTransformer3DModel": Family("LTX-Video", r"transformer_blocks\.\d+\.attn1", _ltx_grid, _no_groups),
    "MochiTransformer3DModel": Family(
        "Mochi", r"transformer_blocks\.\d+\.attn1", _mochi_grid, _no_groups, per_sample=True
    ),
    "AllegroTransformer3DModel": Family("Allegro", r"transformer_blocks\.\d+\.attn1", _allegro_grid, _allegro_rope),
}
"""Supported transformers by class name."""

GENERIC = Family("another model", r"(\w*_)?(blocks|layers)\.\d+\.(attn1?|self_attn)", _generic_grid, _no_groups)
"""Any other video transformer of diffusers whose self-attention bears a usual name and sees video tokens alone."""
