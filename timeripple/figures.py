"""Plotly figures from plain numbers: pure functions, for the app and for files alike.

Backgrounds are transparent, and lines and texts grey, so that they read on light and on dark pages. The colours are
those of Okabe and Ito, which people with colour-blindness tell apart.
"""

from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
SIGNED, RISING = "RdBu_r", "Viridis"  # colour scales that people with colour-blindness can read
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up")
MARKERS = {"dense": "square", "refresh": "diamond", "reuse": "circle"}
STAGES = ("text", "attention", "planning", "rest of denoising", "decode")
PICKED = (0xD5, 0x5E, 0x00)
INK, GRID = "#777777", "rgba(128, 128, 128, 0.25)"


def saving_per_step(curves: list[tuple[str, list[float]]]) -> go.Figure:
    """Share of attention saved at every denoising step.

    curves: (label, saving per step in 0..1) per method; the label says the kind of its figures, as in
    "channel-0.75 (theoretical)". A refresh step, which pays for dense attention too, may lie below 0.
    """
    figure = go.Figure()
    for index, (label, per_step) in enumerate(curves):
        figure.add_scatter(
            x=list(range(1, len(per_step) + 1)),
            y=[100 * saving for saving in per_step],
            name=label,
            mode="lines+markers",
            line={"color": PALETTE[index % len(PALETTE)], "dash": DASHES[index % len(DASHES)], "shape": "hvh"},
            hovertemplate="step %{x}: %{y:.1f} %",
        )
    figure.update_xaxes(title="denoising step")
    figure.update_yaxes(title="attention saved, %")
    return _styled(figure, "Attention saved at each denoising step")


def seconds_by_stage(runs: list[tuple[str, dict[str, float]]], kind: str = "measured here") -> go.Figure:
    """Where the time of every method went, as stacked bars.

    runs: (label, seconds) per method, in order from the top; seconds as in `Generation.seconds`: text, denoise,
    attention (a part of denoise), plan (a part of attention), decode. The bars add up to text + denoise + decode.
    """
    labels = [label for label, _ in runs]
    parts = [
        {
            "text": seconds["text"],
            "attention": seconds["attention"] - seconds["plan"],
            "planning": seconds["plan"],
            "rest of denoising": seconds["denoise"] - seconds["attention"],
            "decode": seconds["decode"],
        }
        for _, seconds in runs
    ]
    figure = go.Figure()
    for colour, stage in zip(PALETTE, STAGES, strict=False):
        figure.add_bar(
            y=labels,
            x=[part[stage] for part in parts],
            name=stage,
            orientation="h",
            marker={"color": colour},
            hovertemplate=f"%{{y}}, {stage}: %{{x:.2f}} s<extra></extra>",
        )
    figure.update_layout(barmode="stack", legend_traceorder="normal")
    figure.update_xaxes(title="seconds")
    figure.update_yaxes(autorange="reversed", type="category")
    return _styled(figure, f"Seconds by stage ({kind})")


def time_over_tokens(rows: list[dict], kind: str) -> go.Figure:
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
    return _styled(figure, f"Attention over tokens ({kind})")


def roofline(rows: list[dict], roofs: dict[str, float], kind: str) -> go.Figure:
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
    return _styled(figure, f"Roofline ({kind})")


def saving_heatmap(by_head: dict[str, list[float]], label: str, kind: str) -> go.Figure:
    """Share of attention saved by layer and head, over all steps.

    by_head: share in 0..1 of every head by the name of its layer, in the order of the model; kind: "realised" or
    "theoretical".
    """
    shares = [[100 * share for share in heads] for heads in by_head.values()]
    figure = go.Figure(
        go.Heatmap(
            z=shares, x=[f"head {head}" for head in range(len(shares[0]))],
            y=[f"layer {layer}" for layer in range(len(shares))], zmin=min(0, *map(min, shares)), zmax=100,
            colorscale=RISING, colorbar={"thickness": 12, "ticksuffix": " %"}, texttemplate="%{z:.0f}",
            hovertemplate="%{y}, %{x}: %{z:.1f} %<extra></extra>",
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    title = f"Saved by layer and head ({kind})<br><sup>{escape(label)}</sup>"
    return _styled(figure, title).update_layout(showlegend=False)


def schedule_curve(methods: list[tuple[str, tuple]]) -> go.Figure:
    """What each denoising step is to do.

    methods: (label, steps as `ReuseConfig.schedule` gives them). A budget shows the share of attention to be saved,
    below 0 on refresh steps, which pay for dense attention too; a threshold shows theta, on an axis of its own.
    """
    figure = go.Figure()
    thresholds = False
    for index, (label, steps) in enumerate(methods):
        by_theta = any(step.theta is not None for step in steps)
        thresholds |= by_theta
        planned = [
            (step.theta or 0) if by_theta else 100 * ((step.saving_target or 0) - (step.kind == "refresh"))
            for step in steps
        ]
        figure.add_scatter(
            x=[step.index + 1 for step in steps], y=planned, name=label, mode="lines+markers",
            yaxis="y2" if by_theta else "y", customdata=[step.kind for step in steps],
            line={"color": PALETTE[index], "dash": DASHES[index], "shape": "hvh"},
            marker={"symbol": [MARKERS[step.kind] for step in steps], "size": 9},
            hovertemplate="step %{x}, %{customdata}: %{y:.3g}",
        )  # fmt: skip
    figure.update_xaxes(title="denoising step (● reuse, ◆ refresh, ■ dense)")
    figure.update_yaxes(title="attention to save, %")
    if thresholds:
        figure.update_layout(yaxis2={"title": "θ", "overlaying": "y", "side": "right", "rangemode": "tozero"})
    return _styled(figure, "Schedule")


def fragments(figures: list[go.Figure]) -> list[str]:
    """Figures as HTML to put into one page; the first brings plotly.js along."""
    return [
        figure.to_html(full_html=False, include_plotlyjs=number == 0, config={"responsive": True})
        for number, figure in enumerate(figures)
    ]


def colours(values: np.ndarray, high: float, signed: bool) -> np.ndarray:
    """Values from 0, or with `signed` from -high, to high as uint8 [..., 3]; what lies outside gets the end colour."""
    table = sample_colorscale(SIGNED if signed else RISING, [i / 255 for i in range(256)], colortype="tuple")
    low = -high if signed else 0.0
    index = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255
    return (np.array(table) * 255).round().astype(np.uint8)[index.round().astype(int)]


def frames_under(
    frames: np.ndarray,
    values: np.ndarray,
    high: float,
    signed: bool,
    picked: tuple[int, int, int] | None,
    side: int = 8,
) -> list[np.ndarray]:
    """Frames of a clip in grey under the colours of their tokens, one picture a token frame, uint8 [h, w, 3].

    frames: uint8 [F, H, W, 3]; values: [t, y, x] on the token grid, coloured as in `colours`, the more opaque the
    larger; picked: the token with a frame around it; side: pixels of a token.
    """
    grid_frames, height, width = values.shape
    painted = colours(values, high, signed)
    pictures = []
    for t in range(grid_frames):
        frame = frames[t * len(frames) // grid_frames]
        rows = (np.arange(height * side) * frame.shape[0] // (height * side))[:, None]
        columns = np.arange(width * side) * frame.shape[1] // (width * side)
        grey = frame[rows, columns].mean(-1, keepdims=True)
        opacity = 0.35 + 0.65 * np.clip(np.abs(values[t]) / max(high, 1e-12), 0, 1)
        opacity, colour = (x.repeat(side, 0).repeat(side, 1) for x in (opacity[..., None], painted[t].astype(float)))
        pictures.append(((1 - opacity) * grey + opacity * colour).round().astype(np.uint8))
    if picked is not None:
        t, y, x = picked
        block = pictures[t][y * side : (y + 1) * side, x * side : (x + 1) * side]
        block[[0, -1]] = block[:, [0, -1]] = PICKED
    return pictures


def error_over_saving(
    points: list[tuple[float, float, float]], present: tuple[float, float, float], title: str
) -> go.Figure:
    """Relative error of the output over the share of attention saved, (saving in 0..1, error, theta) each."""
    figure = go.Figure()
    for name, part, mode, colour, size, symbol in (
        ("all thresholds", points, "lines+markers", PALETTE[0], 7, "circle"),
        ("this setting", [present], "markers", PALETTE[1], 14, "star"),
    ):
        figure.add_scatter(
            x=[100 * saving for saving, _, _ in part], y=[error for _, error, _ in part], name=name, mode=mode,
            marker={"color": colour, "size": size, "symbol": symbol}, customdata=[theta for _, _, theta in part],
            hovertemplate="%{x:.1f} % saved, error %{y:.3f}, θ %{customdata:.3g}",
        )  # fmt: skip
    figure.update_xaxes(title="attention saved, %")
    figure.update_yaxes(title="relative error of the output", rangemode="tozero")
    return _styled(figure, title)


def speed_and_quality(rows: list[dict], title: str) -> go.Figure:
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
    groups = {
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
    return _styled(figure, title)


def _label_places(rows: list[dict]) -> list[str]:
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

        def overlaps(box: tuple) -> int:
            return sum(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken)

        place = min(boxes, key=lambda name: overlaps(boxes[name]))
        taken.append(boxes[place])
        places.append(place)
    return places


def drift_curve(steps: list[int], by_layer: dict[str, list[float]], title: str) -> go.Figure:
    """Change of the error of reuse over its size at denoising steps, one line a layer; below 1, feedback helps."""
    figure = go.Figure()
    for index, (layer, values) in enumerate(by_layer.items()):
        figure.add_scatter(
            x=steps, y=values, name=layer, mode="lines+markers",
            line={"color": PALETTE[index % len(PALETTE)], "dash": DASHES[index % len(DASHES)]},
            hovertemplate="step %{x}: %{y:.3f}",
        )  # fmt: skip
    figure.add_hline(y=1, line={"color": INK, "dash": "dot"})
    figure.update_xaxes(title="denoising step", tickvals=steps)
    figure.update_yaxes(title="change of the error over its size", rangemode="tozero")
    return _styled(figure, title)


def error_bars(bars: list[tuple[str, float]], title: str) -> go.Figure:
    """Relative error of the output for each of several ways, (name, error)."""
    figure = go.Figure(
        go.Bar(
            x=[error for _, error in bars], y=[name for name, _ in bars], orientation="h",
            marker={"color": [PALETTE[index] for index in range(len(bars))]}, hoverinfo="x",
        )
    )  # fmt: skip
    labels = [f"{name}<br>{error:.3f}" for name, error in bars]
    figure.update_xaxes(title="relative error of the output")
    figure.update_yaxes(autorange="reversed", tickvals=[name for name, _ in bars], ticktext=labels)
    return _styled(figure, title).update_layout(showlegend=False)


def drift_heatmap(by_layer: dict[str, list[float]], title: str) -> go.Figure:
    """Change of the error of reuse over its size, one value a head, by layer; 1: it changed by as much as it was."""
    values = list(by_layer.values())
    figure = go.Figure(
        go.Heatmap(
            z=values, x=[f"head {head}" for head in range(len(values[0]))], y=list(by_layer),
            zmin=0, zmax=max(1.0, *map(max, values)),
            colorscale=RISING, colorbar={"thickness": 12}, texttemplate="%{z:.2f}",
            hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    return _styled(figure, title).update_layout(showlegend=False)


def attention_map(
    values: np.ndarray, rows_per_frame: int | None, columns_per_frame: int | None, title: str
) -> go.Figure:
    """A map of attention, queries downwards, keys to the right, on a logarithmic colour scale, with lines at frames.

    values: [rows, columns], means of cells; rows_per_frame, columns_per_frame: cells, None where one frame is shown.
    """
    logarithm = np.log10(np.maximum(values, 1e-12)).astype(np.float32)
    figure = go.Figure(
        go.Heatmap(
            z=logarithm.round(3), zmin=float(np.quantile(logarithm, 0.02)), zmax=float(logarithm.max()),
            colorscale=RISING, colorbar={"thickness": 12, "title": "log₁₀"},
            hovertemplate="query cell %{y}, key cell %{x}: 10^%{z:.2f}<extra></extra>",
        )
    )  # fmt: skip
    _styled(figure, title)
    line = {"type": "line", "line": {"color": "rgba(255, 255, 255, 0.35)", "width": 1}}
    lines = []  # set at once: add_hline takes milliseconds for each
    for cell in range(rows_per_frame or 0, len(values) if rows_per_frame else 0, rows_per_frame or 1):
        lines.append(line | {"xref": "x domain", "x0": 0, "x1": 1, "y0": cell - 0.5, "y1": cell - 0.5})
    for cell in range(columns_per_frame or 0, values.shape[1] if columns_per_frame else 0, columns_per_frame or 1):
        lines.append(line | {"yref": "y domain", "y0": 0, "y1": 1, "x0": cell - 0.5, "x1": cell - 0.5})
    figure.update_xaxes(title="keys", showgrid=False)
    square = {"scaleanchor": "x", "constrain": "domain"} if values.shape[0] == values.shape[1] else {}
    figure.update_yaxes(title="queries", showgrid=False, autorange="reversed", **square)
    # a title that a phone has room for
    return figure.update_layout(showlegend=False, shapes=lines, title_font_size=14)


def token_strip(values: np.ndarray, title: str, frames_per_row: int = 4) -> go.Figure:
    """Values of one channel on the token grid, [frames, height, width], one frame beside the other."""
    frames, height, width = values.shape
    columns = min(frames, frames_per_row)
    rows = -(-frames // columns)
    pitch = height + 2, width + 1  # a number stands between the rows
    corners = [(frame // columns * pitch[0], frame % columns * pitch[1]) for frame in range(frames)]
    canvas = np.full((rows * pitch[0] - 2, columns * pitch[1] - 1), np.nan)
    for (y, x), plane in zip(corners, values, strict=True):
        canvas[y : y + height, x : x + width] = plane
    high = float(np.abs(values).max()) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=[[None if np.isnan(v) else round(float(v), 4) for v in row] for row in canvas],
            zmin=-high, zmax=high, colorscale=SIGNED, hoverongaps=False, colorbar={"thickness": 12},
            hovertemplate="%{z:.3f}<extra></extra>",
        )
    )  # fmt: skip
    _styled(figure, title)
    for number, (y, x) in enumerate(corners, start=1):
        figure.add_annotation(
            x=x, y=y - 0.5, text=str(number), showarrow=False, xanchor="left", yanchor="bottom", font={"size": 10}
        )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed", scaleanchor="x")
    figure.update_layout(showlegend=False, margin={"l": 10, "r": 10, "t": 60, "b": 10}, height=80 + 130 * rows)
    return figure


def _styled(figure: go.Figure, title: str) -> go.Figure:
    figure.update_layout(
        title={"text": title, "x": 0.02},
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK},
        showlegend=True,
        legend={"orientation": "h", "y": -0.25},
        margin={"l": 70, "r": 20, "t": 50, "b": 70},
    )
    figure.update_xaxes(gridcolor=GRID, zerolinecolor=INK, automargin=True)
    figure.update_yaxes(gridcolor=GRID, zerolinecolor=INK, automargin=True)
    return figure
