"""How cost grows with the number of tokens: attention alone and whole generations, dense and with reuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from timeripple.attention.timing import environment
from timeripple.bench.attention import attention, pond_captures
from timeripple.bench.end_to_end import end_to_end
from timeripple.pond.pipeline import PondPipeline

TOKENS = (576, 1296, 2304, 5184, 9216, 14400)
METHODS = ("dense", "token:0.75")
STEP, LAYER = 6, "blocks.3.attn1"


def scaling(
    pipeline: PondPipeline,
    tokens: Sequence[int] = TOKENS,
    repeats: int = 1,
    on_run: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Rows: method, tokens, attention_ms (one layer, one pass), attention_speedup, seconds (a clip of 20 steps),
    speedup, attention_share; speed-ups against dense attention at the same number of tokens."""
    rows = []
    for index, count in enumerate(tokens):
        captures = pond_captures(pipeline, count, (STEP,), (LAYER,))
        calls = attention(captures, 2 * repeats + 1, savings=(0.75,), granularities=("token",))
        alone = {row["method"]: row for row in calls}
        for row in end_to_end(pipeline, (count,), METHODS, repeats)["rows"]:
            call = alone[row["method"]]
            rows.append(
                {
                    "method": row["method"],
                    "tokens": row["tokens"],
                    "attention_ms": call["ms"],
                    "attention_speedup": call["speedup"],
                    **{name: row[name] for name in ("seconds", "speedup", "attention_share")},
                }
            )
        if on_run is not None:
            on_run(index + 1, len(tokens))
    return {"rows": rows, "kind": "measured here", "environment": environment(pipeline)}
