"""The kernels once, in this process: `python -m timeripple.attention.triton_trial DEVICE`, as `triton_probe` has it."""

from __future__ import annotations

import sys

import torch

from timeripple.attention import triton_backend, triton_planning
from timeripple.attention.call import AttentionCall
from timeripple.attention.config import ReuseConfig
from timeripple.attention.grid import TokenGrid
from timeripple.attention.plans import tile, token
from timeripple.attention.timing import now


def main(device: str) -> None:
    grid = TokenGrid(4, 4, 4)
    query, key, value = torch.randn(3, 1, 2, grid.tokens, 64).to(device, torch.float16)
    call = AttentionCall(query, key, value, grid)
    for curve in (
        token.measure(call, ReuseConfig("token", theta=1.0), deviations=triton_planning.window_deviations),
        tile.measure(call, ReuseConfig("tile", theta=1.0)),
    ):
        triton_backend.attention(call, curve.plan(call, 1.0), residual=value)
    now(device)  # waits for the kernels


if __name__ == "__main__":
    main(*sys.argv[1:])
