"""Plotly figures of benchmarks, in the look of `clips.figures`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go

from timeripple.clips.figures import DASHES, INK, PALETTE, SYMBOLS, styled


def time_over_tokens(rows: list[dict[str, Any]], kind: str) -> go.Figure:
    """Milliseconds of one call of attention over the number of tokens, one line a method, both axes logarithmic.

    rows: method, tokens, ms, all of one kind, such as "measured here".
    """
    figure = go.Figure()
    for index, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = [row for row in rows if row["method"] == method]
        figure.add_scatter(
            x=[row["tokens"] for row in own], y=[row["ms"] for row in own], name=method, mode="lines+markers",
            line={"color": PALETTE[index], "dash": DASHES[index]}, hovertemplate="%{x} tokens: %{y:.3g} ms",
        )  # fmt: skip
    tokens = sorted({row["tokens"] for row in rows})
    figure.update_xaxes(title="tokens", type="log", tickvals=tokens, ticktext=[str(count) for count in tokens])
    figure.update_yaxes(title="milliseconds", type="log")
    return styled(figure, f"Attention over tokens ({kind})")


def roofline(rows: list[dict[str, Any]], roofs: dict[str, float], kind: str) -> go.Figure:
    """Achieved over possible speed (Williams et al., 2009): points below the lower of two roofs, compute and memory.

    rows: method, tokens, intensity in operations a byte, gflops; roofs: gflops and gbytes a second; all of one kind.
    """
    figure = go.Figure()
    ridge = roofs["gflops"] / roofs["gbytes"]
    last = 2 * max(ridge, *(row["intensity"] for row in rows))
    figure.add_scatter(
        x=[ridge / 50, ridge, last], y=[roofs["gflops"] / 50, roofs["gflops"], roofs["gflops"]], name="roof",
        mode="lines", line={"color": INK},
        hovertemplate=f"{roofs['gflops']:.0f} GFLOP/s, {roofs['gbytes']:.0f} GB/s<extra></extra>",
    )  # fmt: skip
    for index, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = [row for row in rows if row["method"] == method]
        figure.add_scatter(
            x=[row["intensity"] for row in own], y=[row["gflops"] for row in own], name=method, mode="lines+markers",
            line={"color": PALETTE[index], "dash": "dot", "width": 1}, customdata=[row["tokens"] for row in own],
            marker={"symbol": SYMBOLS[index], "size": 9},
            hovertemplate="%{customdata} tokens: %{y:.0f} GFLOP/s",
        )  # fmt: skip
    figure.update_xaxes(title="operations a byte", type="log", dtick=1)
    figure.update_yaxes(title="GFLOP/s", type="log", dtick=1)
    return styled(figure, f"Roofline ({kind})")


def speed_and_quality(rows: list[dict[str, Any]], title: str) -> go.Figure:
    """PSNR against dense over the speed-up, a point a method, and the front that no point beats in both.

    rows: as `bench.pareto` gives them: method, ours, speedup, psnr, front.
    """
    front = sorted((row for row in rows if row["front"]), key=lambda row: row["speedup"])
    shown = [row for row in rows if row["psnr"] is not None]
    places = dict(zip((row["method"] for row in shown), _label_places(shown), strict=True))
    figure = go.Figure()
    figure.add_scatter(
        x=[row["speedup"] for row in front], y=[row["psnr"] for row in front], name="front", mode="lines",
        line={"color": INK, "dash": "dot", "shape": "vh"}, hoverinfo="skip",
    )  # fmt: skip
    groups: dict[str, Callable[[dict[str, Any]], bool]] = {
        "TimeRipple": lambda row: row["ours"] and "+" not in row["method"],
        "TimeRipple and a step cache": lambda row: row["ours"] and "+" in row["method"],
        "peers": lambda row: not row["ours"],
    }
    for (name, belongs), colour, symbol in zip(groups.items(), PALETTE, ("circle", "star", "square"), strict=False):
        part = [row for row in shown if belongs(row)]
        figure.add_scatter(
            x=[row["speedup"] for row in part], y=[row["psnr"] for row in part], name=name, mode="markers+text",
            text=[row["method"] for row in part], textfont={"size": 10},
            textposition=[places[row["method"]] for row in part],
            marker={"color": colour, "size": 11, "symbol": symbol},
            hovertemplate="%{text}: %{x:.2f}×, %{y:.1f} dB<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="speed-up of whole generations")
    figure.update_yaxes(title="PSNR against dense, dB")
    return styled(figure, title)


def _label_places(rows: list[dict[str, Any]]) -> list[str]:
    """Where each point's label goes, so that labels keep off points and off each other where they can.

    Sizes are shares of a plot of about 1000 x 450 pixels, with letters of 5.5 x 12.
    """
    points = np.array([[row["speedup"], row["psnr"]] for row in rows], dtype=float)
    points = (points - points.min(0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
    taken = [(x - 0.007, y - 0.015, x + 0.007, y + 0.015) for x, y in points]
    places = []
    for (x, y), row in zip(points, rows, strict=True):
        width, height = 0.0055 * len(row["method"]), 0.03
        boxes = {
            f"{v} {h}": (x + dx, y + dy, x + dx + width, y + dy + height)
            for v, dy in (("top", 0.018), ("bottom", -0.018 - height), ("middle", -height / 2))
            for h, dx in (("center", -width / 2), ("right", 0.01), ("left", -0.01 - width))
            if (v, h) != ("middle", "center")
        }

        def overlaps(box: tuple[Any, ...]) -> int:
            return sum(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken)

        place = min(boxes, key=lambda name: overlaps(boxes[name]))
        taken.append(boxes[place])
        places.append(place)
    return places
