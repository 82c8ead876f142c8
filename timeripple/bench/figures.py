"""Plotly figures of benchmarks, in the look of `clips.figures`."""

from typing import Any

import plotly.graph_objects as go

from timeripple.bench.work import family, is_ours
from timeripple.clips.figures import DASHES, INK, PALETTE, SYMBOLS, logarithmic, styled

FAINT = "rgba(128, 128, 128, 0.7)"


def time_over_tokens(rows: list[dict[str, Any]], kind: str) -> go.Figure:
    """Milliseconds of one call of attention over the number of tokens, one line a method, both axes logarithmic.

    rows: method, tokens, ms, all of one kind, such as "measured here"; bars show ms_spread, where it was recorded.
    """
    figure = go.Figure()
    for index, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = [row for row in rows if row["method"] == method]
        figure.add_scatter(
            x=[row["tokens"] for row in own], y=[row["ms"] for row in own], name=method, mode="lines+markers",
            line={"color": PALETTE[index], "dash": DASHES[index]}, hovertemplate="%{x} tokens: %{y:.3g} ms",
            error_y=spread(own),
        )  # fmt: skip
    tokens = sorted({row["tokens"] for row in rows})
    figure.update_xaxes(title="tokens", type="log", tickvals=tokens, ticktext=[*map(_short, tokens)])
    figure.update_yaxes(title="milliseconds", **logarithmic(row["ms"] for row in rows))
    return styled(figure, f"Attention over tokens ({kind})")


def _short(count: int) -> str:
    """9216, but 119k, so that there is room for all."""
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"


def spread(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Bars from the lower to the upper quartile of the calls that were timed; none for what has no quartiles."""
    if not any("ms_spread" in row for row in rows):
        return {"visible": False}
    known = [(row["ms"], *row.get("ms_spread", (row["ms"], row["ms"]))) for row in rows]
    above, below = [high - ms for ms, _, high in known], [ms - low for ms, low, _ in known]
    return {"array": above, "arrayminus": below, "thickness": 1, "width": 3}


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
    figure.update_xaxes(title="operations a byte", **logarithmic([ridge / 50, last]))
    figure.update_yaxes(title="GFLOP/s", **logarithmic([roofs["gflops"] / 50, roofs["gflops"]]))
    return styled(figure, f"Roofline ({kind})")


def quality_over_seconds(rows: list[dict[str, Any]], title: str) -> go.Figure:
    """PSNR to the converged clip over seconds, log scale: dense at every number of steps as lines, one for a solver,
    every other method as a line through its numbers of steps, ours in colour.

    rows: as `bench.work` gives them, of one number of tokens.
    """
    figure = go.Figure()
    families: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["steps"]):
        families.setdefault(family(row["method"]), []).append(row)
    counts = {"dense": 0, "ours": 0, "peers": 0}
    for name, own in families.items():
        group = "dense" if name.startswith("dense") else "ours" if is_ours(name) else "peers"
        index, counts[group] = counts[group], counts[group] + 1
        colour = {"dense": INK, "ours": PALETTE[index % len(PALETTE)], "peers": FAINT}[group]
        level = [row["psnr_converged"] for row in own]
        intervals = [row["psnr_converged_interval"] or (y, y) for row, y in zip(own, level, strict=True)]
        low, high = zip(*intervals, strict=True)
        figure.add_scatter(
            x=[row["seconds"] for row in own], y=level, name=name, mode="lines+markers", legendgroup=group,
            line={"color": colour, "dash": DASHES[index % len(DASHES)], "width": 3 if group == "ours" else 1.5},
            marker={"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 9},
            error_y={
                "array": [b - y for b, y in zip(high, level, strict=True)],
                "arrayminus": [y - a for a, y in zip(low, level, strict=True)],
                "thickness": 1, "visible": group == "ours",
            },
            text=[f"{row['steps']} steps" for row in own],
            hovertemplate="%{text}: %{x:.2f} s, %{y:.1f} dB<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    figure.update_xaxes(title="seconds of whole generations", **logarithmic(row["seconds"] for row in rows))
    figure.update_yaxes(title="PSNR to the converged clip, dB")
    return styled(figure, title)
