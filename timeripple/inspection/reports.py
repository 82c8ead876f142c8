"""What captures show, as numbers for a file: correlations, kinds of heads, and what one token attends to."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from timeripple.attention.config import ReuseConfig
from timeripple.attention.timing import environment
from timeripple.clips.generate import Request
from timeripple.inspection import attention_maps as maps
from timeripple.inspection.correlations import correlation_table
from timeripple.inspection.probe import Capture, capture, rope_frequencies


def probe_report(
    pipeline: DiffusionPipeline,
    request: Request,
    steps: Collection[int],
    *,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """What a dense run shows at `steps` (from 0): rows, see `correlation_report`; heads, see `head_report`; channels:
    axis and radians per token of each; kind; environment. Callbacks and errors as in `capture`."""
    captures = capture(pipeline, request, steps, on_step=on_step, should_stop=should_stop)
    return {
        "rows": correlation_report(captures),
        "heads": head_report(captures),
        "channels": [{"axis": axis, "radians": radians} for axis, radians in rope_frequencies(pipeline.transformer)],
        "kind": "measured here",
        "environment": environment(pipeline),
    }


def attention_report(
    pipeline: DiffusionPipeline,
    request: Request,
    step: int,
    layer: int,
    head: int,
    place: tuple[int, int, int],
    config: ReuseConfig,
    *,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """What the token at `place` = (t, y, x) attends to in a dense run at `step`, all counted from 0.

    dense, reuse: its attention to every video token as [t][y][x] lists, and with the plan that saves the config's
    budget in this call; sharing: how many keys share the one that stands for each, 1 where it is computed; map: of the
    head, at most 256 x 256 cells, see `averaged_map`; head: a row of `head_report`. Callbacks as in `capture`. Raises
    ValueError, one sentence, for a layer, head or place that does not exist.
    """
    check_place(pipeline, request, layer, head, place)
    captures = capture(pipeline, request, [step], on_step=on_step, should_stop=should_stop)
    seen, grid = captures[layer], captures[layer].grid
    query, key = (side[0, head : head + 1].float() for side in (seen.query, seen.key))
    token = grid.text_before + (place[0] * grid.height + place[1]) * grid.width + place[2]
    reused, sharing = maps.reused_row(query, key, token, maps.plan_at(query, key, grid, config))

    def on_grid(row: Tensor) -> list[Any]:
        return grid.unflatten(row[0, grid.video, None])[..., 0].tolist()

    return {
        "grid": list(grid.shape),
        "dense": on_grid(maps.attention_row(query, key, token)),
        "reuse": on_grid(reused),
        "sharing": on_grid(sharing),
        "map": maps.averaged_map(query[0], key[0], grid)[0].tolist(),
        "head": head_report([seen])[head],
        "method": config.text,
        "kind": "measured here",
        "environment": environment(pipeline),
    }


def check_place(
    pipeline: DiffusionPipeline, request: Request, layer: int, head: int, place: tuple[int, int, int]
) -> None:
    """Raises ValueError, one sentence, for a layer, head or token (t, y, x) that a run of the request does not have."""
    model = pipeline.transformer.config
    for name, value, count in (("layer", layer, model.num_layers), ("head", head, model.num_attention_heads)):
        if not 0 <= value < count:
            raise ValueError(f"The {name} is {value}; give one from 0 to {count - 1}.")
    grid = request.grid(pipeline)
    if not all(0 <= at < size for at, size in zip(place, grid, strict=True)):
        raise ValueError(f"The token is {place}; the grid is {grid} (t, y, x), counted from 0.")


def correlation_report(captures: list[Capture], lags: tuple[int, ...] = (1, 2, 3, 4)) -> list[dict[str, Any]]:
    """One row a step, layer, head and side ("query", "key"): step, layer, head, side, columns [axis, lag] and values,
    [channels][columns], as `similarity.correlation_table` gives them, rounded to 4 digits."""
    rows = []
    for c in captures:
        for side, x in (("query", c.query), ("key", c.key)):
            columns, values = correlation_table(x[0].float(), c.grid, lags)
            names = {"step": c.step, "layer": c.layer, "side": side, "columns": [list(column) for column in columns]}
            for head, table in enumerate(values):
                rows.append(names | {"head": head, "values": [[round(v, 4) for v in row] for row in table.tolist()]})
    return rows


def head_report(captures: list[Capture]) -> list[dict[str, Any]]:
    """One row a step, layer and head: step, layer, head, spatial, temporal and entropy, as `head_scores` gives them,
    rounded to 4 digits, and kind, see `head_kind`."""
    rows = []
    for c in captures:
        scores = maps.head_scores(c.query[0].float().cpu(), c.key[0].float().cpu(), c.grid)
        for head in range(c.query.shape[1]):
            numbers = {name: round(values[head].item(), 4) for name, values in scores.items()}
            kind = maps.head_kind(numbers["spatial"], numbers["temporal"])
            rows.append({"step": c.step, "layer": c.layer, "head": head} | numbers | {"kind": kind})
    return rows
