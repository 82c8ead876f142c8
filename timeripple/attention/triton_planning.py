"""Launches the kernel that measures the windows of token reuse, and what all launchers of kernels share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

from timeripple.attention import triton_kernels as kernels

INTERPRETED = not isinstance(kernels.attend, triton.JITFunction)


def window_deviations(video: Tensor, weight: Tensor, table: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """See `plans.token.window_deviations`."""
    heads, _, head_dim = video.shape
    shape = heads, len(table), axes.bit_count()
    thresholds = torch.empty(shape, dtype=torch.float32, device=video.device)
    subsets = torch.empty(shape, dtype=torch.int64, device=video.device)
    video, table = rows_together(video), table.to(torch.int32).contiguous()
    block = small_block(head_dim)
    with on_its_device(video):
        kernels.merge_deviations[triton.cdiv(len(table), block), heads](
            video, weight.float().contiguous(), table, thresholds, subsets, heads, len(table), 0, *video.stride()[:2],
            HEAD_DIM=head_dim, AXES=axes, LEVELS=shape[2], BLOCK_W=block, BLOCK_D=padded(head_dim),
        )  # fmt: skip
    return thresholds, subsets


def rows_together(x: Tensor) -> Tensor:
    """`x` with the channels of a row side by side, as kernels read them."""
    return x if x.stride(-1) == 1 else x.contiguous()


def on_its_device(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, whatever its arguments are on; inside, that is the one of `x`."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def small_block(head_dim: int) -> int:
    """Rows or windows that the kernels beside `attend` take at once."""
    return 1024 // max(64, padded(head_dim))


def padded(head_dim: int) -> int:
    """The power of two that holds a head."""
    return max(16, triton.next_power_of_2(head_dim))
