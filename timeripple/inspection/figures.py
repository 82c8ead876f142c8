"""Plotly figures and pictures of what attention sees, in the look of `clips.figures`."""

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from timeripple.clips.figures import DASHES, INK, PALETTE, RISING, SIGNED, styled

PICKED = (0xD5, 0x5E, 0x00)


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
    return styled(figure, title)


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
    return styled(figure, title)


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
    return styled(figure, title).update_layout(showlegend=False)


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
    return styled(figure, title).update_layout(showlegend=False)


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
    styled(figure, title)
    line = {"type": "line", "line": {"color": "rgba(255, 255, 255, 0.35)", "width": 1}}
    lines = []  # set at once: add_hline takes milliseconds for each
    for cell in range(rows_per_frame or 0, len(values) if rows_per_frame else 0, rows_per_frame or 1):
        lines.append(line | {"xref": "x domain", "x0": 0, "x1": 1, "y0": cell - 0.5, "y1": cell - 0.5})
    for cell in range(columns_per_frame or 0, values.shape[1] if columns_per_frame else 0, columns_per_frame or 1):
        lines.append(line | {"yref": "y domain", "y0": 0, "y1": 1, "x0": cell - 0.5, "x1": cell - 0.5})
    figure.update_xaxes(title="keys", showgrid=False)
    square = {"scaleanchor": "x", "constrain": "domain"} if values.shape[0] == values.shape[1] else {}
    figure.update_yaxes(title="queries", showgrid=False, autorange="reversed", **square)
    return figure.update_layout(showlegend=False, shapes=lines)


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
    styled(figure, title)
    for number, (y, x) in enumerate(corners, start=1):
        figure.add_annotation(
            x=x, y=y - 0.5, text=str(number), showarrow=False, xanchor="left", yanchor="bottom", font={"size": 10}
        )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed", scaleanchor="x")
    figure.update_layout(showlegend=False, margin={"l": 10, "r": 10, "t": 30, "b": 10}, height=80 + 130 * rows)
    return figure
