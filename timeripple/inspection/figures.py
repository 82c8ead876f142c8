"""Plotly figures and pictures of what attention sees, in the look of `clips.figures`."""

from functools import cache

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from timeripple.clips.figures import DASHES, INK, PALETTE, RISING, SIGNED, styled

PICKED = (0xD5, 0x5E, 0x00)


@cache
def _table(signed: bool) -> np.ndarray:
    """256 colours, uint8 [256, 3]."""
    table = sample_colorscale(SIGNED if signed else RISING, [i / 255 for i in range(256)], colortype="tuple")
    return (np.array(table) * 255).round().astype(np.uint8)


def colours(values: np.ndarray, high: float, signed: bool) -> np.ndarray:
    """Values from 0, or with `signed` from -high, to high as uint8 [..., 3]; what lies outside gets the end colour."""
    low = -high if signed else 0.0
    index = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255
    return _table(signed)[index.round().astype(int)]


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
    count, height, width = values.shape
    red, green, blue = np.moveaxis(frames[np.arange(count) * len(frames) // count].astype(np.uint16), -1, 0)
    rows = np.arange(height * side) * frames.shape[1] // (height * side)
    columns = np.arange(width * side) * frames.shape[2] // (width * side)
    grey = ((red + green + blue) // 3).take(rows, 1).take(columns, 2)
    opacity = 0.35 + 0.65 * np.clip(np.abs(values) / max(high, 1e-12), 0, 1)
    share = (opacity * 256).round().astype(np.uint16)  # of 256: fast, and exact enough for 256 colours
    planes = [*(np.moveaxis(colours(values, high, signed), -1, 0) * share), 256 - share]  # one a colour
    *added, left = (plane.repeat(side, 1).repeat(side, 2) for plane in planes)
    under = grey * left + 128
    pictures = [*np.stack([((plane + under) >> 8).astype(np.uint8) for plane in added], -1)]
    if picked is not None:
        t, y, x = picked
        block = pictures[t][y * side : (y + 1) * side, x * side : (x + 1) * side]
        block[[0, -1]] = block[:, [0, -1]] = PICKED
    return pictures


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


def frames_of(
    frames: np.ndarray, values: np.ndarray, high: float, signed: bool, over: bool = True, side: int = 8
) -> np.ndarray:
    """Token frames as a clip, uint8 [t, h, w, 3]: as `frames_under`, or, not `over` a clip, colours alone."""
    if over:
        return np.stack(frames_under(frames, values, high, signed, None, side))
    return colours(values, high, signed).repeat(side, 1).repeat(side, 2)


def strip(
    frames: np.ndarray, values: np.ndarray, high: float, signed: bool, over: bool = True, side: int = 8
) -> np.ndarray:
    """`frames_of` next to each other, uint8 [h, t * w, 3]."""
    return np.concatenate(list(frames_of(frames, values, high, signed, over, side)), axis=1)


def clip_strip(frames: np.ndarray, grid_frames: int) -> np.ndarray:
    """The frame of the clip that each token frame begins with, next to each other, uint8 [h, t * w, 3]."""
    return np.concatenate([frames[t * len(frames) // grid_frames] for t in range(grid_frames)], axis=1)


def map_picture(values: np.ndarray) -> np.ndarray:
    """A map of attention, [rows, columns], on a logarithmic colour scale, uint8 with 3 at the end."""
    logarithm = np.log10(np.maximum(values, 1e-12))
    low = float(np.quantile(logarithm, 0.02))
    return colours(logarithm - low, float(logarithm.max()) - low, signed=False)
