"""HTML of the tabs that look inside a run: strips of frames, heads, channels, maps and curves."""

import base64
import json
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from ui.markup import AXIS_NAMES, data_uri

PARTS = Path(__file__).parent / "parts"
SHEET_JS, MAP_JS, CURVE_JS = ((PARTS / f"{name}.js").read_text(encoding="utf-8") for name in ("sheet", "map", "curve"))
AFTER = {"t": "frame", "y": "row", "x": "column"}


def _quick(picture: np.ndarray) -> str:
    return data_uri(Image.fromarray(picture), compress_level=1)


def _strip(picture: np.ndarray) -> str:
    """A strip as JPEG, which is quick to make; its blocks of 8 × 8 pixels are the tokens of a strip."""
    return data_uri(Image.fromarray(picture), "JPEG", quality=92, subsampling=0)


def sheet(
    panels: list[tuple[str, np.ndarray, np.ndarray | None, str]],
    sizes: tuple[int, int, int],
    place: tuple[int, int, int],
    label: str,
    hint: str = "",
) -> str:
    """Strips of all frames, one a panel, and one frame of each enlarged; `parts/sheet.js` picks and plays.

    panels: (name, picture of `figures.strip`, values [t, y, x] that the pointer reads, unit "%" or ""); place: the
    picked token, (t, y, x); hint: said until the pointer is over a frame.
    """
    numbers = "".join(f"<span>{t + 1}</span>" for t in range(sizes[0]))
    large = "".join(_panel(name, values, unit) for name, _, values, unit in panels)
    strips = "".join(
        f'<b>{escape(name)}</b><div class="tr-strip"><img src="{_strip(picture)}" alt=""><i></i></div>'
        for name, picture, *_ in panels
    )
    return f"""<div class="tr-sheet" style="--frames:{sizes[0]};--aspect:{sizes[2] / sizes[1]:.4f}" tabindex="0"
      role="application" data-sizes="{list(sizes)}" data-place="{list(place)}" aria-label="{escape(label)}.
      Token {place[0] + 1}, {place[1] + 1}, {place[2] + 1}; arrow keys move it, page keys change the frame.">
      <p class="tr-tip" data-tip>{escape(hint)}</p><div class="tr-panels">{large}</div>
      <div class="tr-sheet-bar"><button type="button" data-play>Play</button>
        <label>Frame <input type="range" data-frame min="1" max="{sizes[0]}" value="{place[0] + 1}"></label>
        <output data-at></output></div>
      <div class="tr-scroll"><div class="tr-strips"><b></b><div class="tr-strip-numbers" aria-hidden="true">{numbers}
      </div>{strips}</div></div></div>"""


def _panel(name: str, values: np.ndarray | None, unit: str) -> str:
    read = ""
    if values is not None:
        low, high = float(values.min()), float(values.max())
        codes = np.round((values - low) / ((high - low) or 1) * 255).astype(np.uint8)
        coded = base64.b64encode(codes.tobytes()).decode()
        read = f'data-values="{coded}" data-low="{low:.6g}" data-high="{high:.6g}"'
    return f"""<figure data-panel data-name="{escape(name)}" data-unit="{unit}" {read}>
      <figcaption>{escape(name)}</figcaption><div class="tr-large"><i></i></div></figure>"""


def colour_bar(low: str, high: str, signed: bool) -> str:
    """What the colours mean, in words at both ends."""
    look = "signed" if signed else "rising"
    return f'<p class="tr-colours tr-{look}"><span>{escape(low)}</span><i></i><span>{escape(high)}</span></p>'


def head_grid(
    pictures: list[list[np.ndarray]], chosen: tuple[int, int], label: str, titles: list[list[str]] | None = None
) -> str:
    """Layers as rows, heads as columns, each head a small picture, uint8 [h, w, 3]; the pointer enlarges one, a click
    picks it. titles: what is said of each when it is enlarged."""
    columns = "".join(f"<span>head {head}</span>" for head in range(len(pictures[0])))
    rows = []
    for layer, heads in enumerate(pictures):
        buttons = []
        for head, picture in enumerate(heads):
            image, pressed = _quick(picture), "true" if (layer, head) == chosen else "false"
            said = f"<em>layer {layer}, head {head}{': ' + escape(titles[layer][head]) if titles else ''}</em>"
            buttons.append(
                f'<button type="button" data-layer="{layer}" data-head="{head}" aria-pressed="{pressed}" '
                f'aria-label="Layer {layer}, head {head}"><img src="{image}" alt="">'
                f'<span class="tr-preview" aria-hidden="true"><img src="{image}" alt="">{said}</span></button>'
            )
        rows.append(f'<div class="tr-heads-row"><span>layer {layer}</span>{"".join(buttons)}</div>')
    head = f'<div class="tr-heads-row tr-heads-names" aria-hidden="true"><span></span>{columns}</div>'
    style = f"--heads:{len(pictures[0])}"
    return f"""<div class="tr-heads" style="{style}" role="group" aria-label="{escape(label)}">
      {head}{"".join(rows)}</div>"""


def channel_table(
    columns: list[tuple[str, int]],
    values: np.ndarray,
    paint: np.ndarray,
    channels: list[tuple[str, float]],
    chosen: int | None,
    caption: str,
    unit: str,
) -> str:
    """Channels in RoPE order as rows, (axis, distance) as columns; a click on a row picks the channel.

    values: [channels, columns]; paint: the same shape with 3 colours; channels: axis and radians per token of each;
    unit: what distances are, "later" or "a window".
    """
    axes = list(dict.fromkeys(axis for axis, _ in columns))
    spans = "".join(
        f'<th scope="colgroup" colspan="{sum(a == axis for a, _ in columns)}">along {AXIS_NAMES[axis]}</th>'
        for axis in axes
    )
    names = [f"{n} {AFTER[axis]}{'s' if n > 1 else ''} {unit}" for axis, n in columns]
    distances = "".join(
        f'<th scope="col" title="{name}"><span class="tr-hidden">{name}</span><span aria-hidden="true">{n}</span></th>'
        for name, (_, n) in zip(names, columns, strict=True)
    )
    rows = []
    for number in range(len(values)):
        axis = channels[number][0] if channels else ""
        first = bool(channels) and (number == 0 or channels[number - 1][0] != axis)
        size = sum(other == axis for other, _ in channels)
        group = f'<th scope="rowgroup" rowspan="{size}" class="tr-group"><span>{axis}</span></th>' if first else ""
        cells = "".join(
            f'<td style="background:rgb({r},{g},{b})" data-value="{value:.4f}" '
            f'title="channel {number}, {name}: {value:.3f}"></td>'
            for (r, g, b), name, value in zip(paint[number], names, values[number], strict=True)
        )
        state = "true" if number == chosen else "false"
        button = f'<button type="button" data-channel="{number}" aria-pressed="{state}">{number}</button>'
        rows.append(f'<tr class="{"tr-first-row" if first else ""}">{group}<th scope="row">{button}</th>{cells}</tr>')
    corner = '<th><span class="tr-hidden">RoPE group</span></th>' if channels else ""
    blank = "<th></th>" if channels else ""
    return f"""<table class="tr-channels" data-export><caption>{escape(caption)}</caption>
      <thead><tr>{blank}<th></th>{spans}</tr>
      <tr>{corner}<th><span class="tr-hidden">channel</span></th>{distances}</tr></thead>
      <tbody>{"".join(rows)}</tbody></table>"""


def attention_map(
    picture: np.ndarray, shares: np.ndarray, tokens: int, query: int | None, key: int | None, caption: str
) -> str:
    """A map with lines between frames; `parts/map.js` reads and zooms it.

    picture: uint8 [rows, columns, 3]; shares: [frames, frames] of attention; tokens: of a frame; query, key: the only
    frame that is shown on that side.
    """
    frames = len(shares)
    facts = {"frames": frames, "tokens": tokens, "query": query, "key": key, "shares": shares.round(4).tolist()}
    lines = f"--rows:{1 if query is not None else frames};--columns:{1 if key is not None else frames}"
    return f"""<figure class="tr-map"><figcaption>{escape(caption)}</figcaption>
      <p class="tr-tip" data-tip>Point at the map to read it; drag to zoom, double-click to see all.</p>
      <div class="tr-map-grid"><span class="tr-map-y">queries, by frame ↓</span>
      <div class="tr-map-view" data-facts="{escape(json.dumps(facts))}"><div class="tr-map-inner" style="{lines}">
      <img src="{_quick(picture)}" alt="{escape(caption)}" draggable="false"><i></i></div>
      <div class="tr-map-box"></div></div>
      <span class="tr-map-x">keys, by frame →</span></div>
      <button type="button" data-all hidden>Show all</button>
      {colour_bar("little attention", "most (logarithmic)", False)}</figure>"""


def curve(points: list[tuple[float, float]], present: tuple[float, float], kind: str) -> str:
    """Error over saving, (saving in 0..1, error) each, and the present one as a star that `parts/curve.js` drags."""
    width, height, left, bottom = 520, 230, 46, 34
    top = max(error for _, error in [*points, present]) * 1.08 or 1.0
    x, y = (left, width - left - 12), (height - bottom, -(height - bottom - 10) / top)
    points = sorted([(0.0, 0.0), *points])
    line = " ".join(f"{x[0] + x[1] * s:.1f},{y[0] + y[1] * e:.1f}" for s, e in points)
    ticks = "".join(
        f'<line x1="{x[0] + x[1] * s:.1f}" x2="{x[0] + x[1] * s:.1f}" y1="10" y2="{y[0]}"/>'
        f'<text x="{x[0] + x[1] * s:.1f}" y="{height - 16}" text-anchor="middle">{s:.0%}</text>'
        for s in (0, 0.25, 0.5, 0.75, 1)
    )
    ticks += "".join(
        f'<line x1="{left}" x2="{width - 12}" y1="{y[0] + y[1] * e:.1f}" y2="{y[0] + y[1] * e:.1f}"/>'
        f'<text x="{left - 6}" y="{y[0] + y[1] * e + 4:.1f}" text-anchor="end">{e:.2g}</text>'
        for e in (0, top / 2.16, top / 1.08)
    )
    dots = "".join(f'<circle cx="{x[0] + x[1] * s:.1f}" cy="{y[0] + y[1] * e:.1f}" r="3"/>' for s, e in points)
    facts = {"points": points, "x": x, "y": y, "size": [width, height]}
    place = f"translate({x[0] + x[1] * present[0]:.1f} {y[0] + y[1] * present[1]:.1f})"
    star = "M0 -11 L3 -4 L11 -3 L5 2 L7 10 L0 6 L-7 10 L-5 2 L-11 -3 L-3 -4 Z"
    said = f"{present[0]:.0%} saved, error {present[1]:.3f}"
    return f"""<figure class="tr-curve" data-curve="{escape(json.dumps(facts))}">
      <figcaption>Error of the output over the attention saved: drag the star (error measured here, saving {kind})
      </figcaption>
      <svg viewBox="0 0 {width} {height}"><g class="tr-ticks" aria-hidden="true">{ticks}</g>
      <polyline points="{line}"/>{dots}
      <path class="tr-star" d="{star}" transform="{place}"
        tabindex="0" role="slider" aria-label="Attention saved" aria-valuemin="0" aria-valuemax="100"
        aria-valuenow="{100 * present[0]:.0f}" aria-valuetext="{said}"/></svg><output>{said}</output></figure>"""
