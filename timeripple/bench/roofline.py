"""Attention over the number of tokens, and how near it comes to what the machine can do at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from timeripple.attention.timing import environment, now
from timeripple.bench.attention import GRANULARITIES, attention, request_for
from timeripple.clips.generate import Cancelled
from timeripple.inspection.probe import capture
from timeripple.pond.pipeline import PondPipeline

TOKENS = (576, 1296, 2304, 5184)
STEP = 6
MATRIX, COPIED, TRIALS = 2048, 1 << 28, 7  # rows of a square matrix, bytes, of which the fastest counts


def attention_scaling(
    pipeline: PondPipeline,
    tokens: Sequence[int] = TOKENS,
    saving: float = 0.7,
    repeats: int = 5,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Dense, token and tile attention of one layer of a dense generation, at every number of tokens.

    Rows: as `bench.attention` gives them, without the core's own dense attention, and gflops (achieved), intensity
    (operations a byte), see `operations` and `bytes_moved`; roofs: see `roofs`. on_step(done, all) is called after
    every number of tokens; once should_stop says True, Cancelled is raised. Raises ValueError as `request_for` does.
    """
    requests = [request_for(count) for count in tokens]
    rows = []
    for index, request in enumerate(requests):
        captures = capture(pipeline, request, (STEP,), (_middle_layer(pipeline),), should_stop=should_stop)
        for row in attention(captures, repeats, (saving,), GRANULARITIES):
            if row["method"] != "core-dense":
                moved = bytes_moved(row, captures[0].query.element_size())
                rows.append(row | {"gflops": operations(row) / row["ms"] / 1e6, "intensity": operations(row) / moved})
        if on_step is not None:
            on_step(index + 1, len(tokens))
        if should_stop is not None and should_stop():
            raise Cancelled
    dtype = captures[0].query.dtype
    return {
        "rows": rows,
        "roofs": roofs(pipeline.device, dtype),
        "kind": "measured here",
        "environment": environment(pipeline),
    }


def operations(row: dict[str, Any]) -> float:
    """Floating-point operations of one call: 4 d for every (query row, key row) pair that is computed, two products of
    which each is a multiplication and an addition."""
    return 4 * row["heads"] * row["tokens"] ** 2 * row["head_dim"] * (1 - row["saving"])


def bytes_moved(row: dict[str, Any], element_size: int) -> int:
    """Bytes that one call moves at least: q, k and v read once, the output written once."""
    return 4 * row["heads"] * row["tokens"] * row["head_dim"] * element_size


def roofs(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What the machine can do, measured: gflops, of a large product of matrices in `dtype`, in 10^9 operations a
    second; gbytes, of a large copy, read and written, in 10^9 bytes a second."""
    matrix = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
    source = torch.empty(COPIED, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    product = _fastest(lambda: matrix @ matrix, device)
    copy = _fastest(lambda: target.copy_(source), device)
    return {"gflops": 2 * MATRIX**3 / product / 1e9, "gbytes": 2 * COPIED / copy / 1e9}


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(TRIALS):
        start = now(device)
        work()
        seconds.append(now(device) - start)
    return min(seconds)


def _middle_layer(pipeline: PondPipeline) -> str:
    return f"blocks.{len(pipeline.transformer.blocks) // 3}.attn1"
