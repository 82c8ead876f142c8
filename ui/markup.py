"""Pieces of HTML the tabs are made of: plain functions from values to text; whatever comes from outside is escaped."""

import base64
import io
import itertools
from html import escape

from PIL import Image


def hero() -> str:
    return """<header class="tr-hero">
      <p class="tr-brand"><span class="tr-mark" aria-hidden="true"></span>TimeRipple</p>
      <h1>Video diffusion that reuses what neighbours share</h1>
      <p>Neighbouring tokens of a video are often nearly alike, so attention need not compute each of them anew:
      watch dense attention and reuse turn the same noise into video, and measure the difference on this machine.</p>
    </header>"""


def welcome(recorded: list[tuple[str, str, object]]) -> str:
    """recorded: (prompt, what came of it, uint8 [h, w, 3]) of results that a click shows at once."""
    cards = "".join(
        f"""<button type="button" data-example="{number}"><img src="{_data_uri(picture)}" alt="">
        <span><b>{escape(prompt)}</b>{escape(outcome)}</span></button>"""
        for number, (prompt, outcome, picture) in enumerate(recorded)
    )
    examples = f'<h3>Or see a recorded one at once</h3><div class="tr-examples">{cards}</div>' if recorded else ""
    return f"""<section class="tr-card tr-welcome">
      <div class="tr-grids" aria-hidden="true">
        <figure>{_grid(merged=False)}<figcaption>Dense: every token</figcaption></figure>
        <figure>{_grid(merged=True)}<figcaption>Reuse: neighbours share</figcaption></figure>
      </div>
      <h2>Two methods, one noise, side by side</h2>
      <p>Press <b>Generate</b> and watch the same prompt and seed become two videos, step by step: one by method A,
      one by method B. Then compare how close they are, how many seconds each stage took and how much attention was
      saved.</p>
      {examples}
    </section>"""


def _grid(merged: bool) -> str:
    """Tokens of a frame as squares; with `merged`, those of calm regions stand together in blocks of 2×2."""
    moving = {(2, 2), (2, 4), (4, 2), (4, 4)}
    squares = []
    for y, x in itertools.product(range(0, 8, 2), repeat=2):
        tone = "tr-moving" if (y, x) in moving else "tr-calm"
        whole = merged and (y, x) not in moving
        side = 21 if whole else 9
        for dy, dx in [(0, 0)] if whole else itertools.product(range(2), repeat=2):
            place = f'x="{12 * (x + dx)}" y="{12 * (y + dy)}"'
            squares.append(f'<rect class="{tone}" {place} width="{side}" height="{side}" rx="2"/>')
    return f'<svg viewBox="0 0 93 93">{"".join(squares)}</svg>'


def progress(note: str, sides: list[tuple[str, object | None]]) -> str:
    """Both sides of a run under way.

    sides: (label, latest step event or None before the first) of A and B; they run one after the other.
    """
    panels = [_side(name, label, event) for name, (label, event) in zip("AB", sides, strict=True)]
    return f'<section class="tr-run"><p class="tr-note" role="status">{escape(note)}</p>{"".join(panels)}</section>'


def _side(name: str, label: str, event) -> str:
    step, steps = (event.step, event.steps) if event else (0, 1)
    if event is None:
        detail, share = "waiting", 0
    elif step < steps:
        detail, share = f"step {step} of {steps} · about {event.eta_seconds:.0f} s left", 100 * step / steps
    else:
        detail, share = f"{steps} steps in {event.seconds:.1f} s", 100
    picture = '<div class="tr-noise" aria-hidden="true"></div>'
    if event and event.preview is not None:
        picture = f'<img src="{_data_uri(event.preview)}" alt="Preview of {escape(label)} after step {step}">'
    return f"""<article class="tr-card tr-side tr-{name.lower()}">
      {_title(name, label)}
      <div class="tr-picture">{picture}</div>
      <div class="tr-bar" role="progressbar" aria-label="{escape(label)}" aria-valuemin="0" aria-valuemax="100"
        aria-valuenow="{share:.0f}" aria-valuetext="{detail}"><i style="width:{share:.1f}%"></i></div>
      <p class="tr-detail">{detail}</p>
    </article>"""


def _title(name: str, label: str) -> str:
    return f'<h3 class="tr-{name.lower()}"><span class="tr-badge">{name}</span>{escape(label)}</h3>'


def _data_uri(picture) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def notice(title: str, sentence: str, alert: bool = False) -> str:
    role, style = ("alert", "tr-alert") if alert else ("status", "")
    return f"""<section class="tr-card tr-notice {style}" role="{role}">
      <h2>{escape(title)}</h2><p>{escape(sentence)}</p></section>"""


def heading(prompt: str, detail: str, link: str) -> str:
    """link: query of the page that shows this result again."""
    return f"""<div class="tr-heading"><h2>“{escape(prompt)}”</h2>
      <p>{escape(detail)} · <a href="{escape(link)}">Link to this result</a></p></div>"""


def cards(numbers: list[tuple[str, str, str, str]]) -> str:
    """Metric cards: (name, value, kind, what it means) each."""
    items = [
        f"""<div class="tr-card tr-metric"><dt>{escape(name)}</dt><dd><strong>{escape(value)}</strong>
        <em class="tr-kind tr-{kind.split()[0]}">{escape(kind)}</em><span>{escape(meaning)}</span></dd></div>"""
        for name, value, kind, meaning in numbers
    ]
    return f'<dl class="tr-metrics">{"".join(items)}</dl>'


def channel_table(
    columns: list[tuple[str, int]], values, paint, channels: list[tuple[str, float]], chosen: int | None, caption: str
) -> str:
    """Channels in RoPE order as rows, (axis, distance) as columns; a click on a row picks the channel.

    values: [channels, columns]; paint: the same shape with 3 colours; channels: axis and radians per token of each.
    """
    groups = list(dict.fromkeys(axis for axis, _ in columns))
    spans = "".join(f'<th scope="colgroup" colspan="{sum(a == g for a, _ in columns)}">{g}</th>' for g in groups)
    distances = "".join(f'<th scope="col">{distance}</th>' for _, distance in columns)
    rows = []
    for number, (axis, _) in enumerate(channels):
        first = number == 0 or channels[number - 1][0] != axis
        size = sum(other == axis for other, _ in channels)
        group = f'<th scope="rowgroup" rowspan="{size}" class="tr-group">{axis}</th>' if first else ""
        cells = "".join(
            f'<td style="background:rgb({r},{g},{b})" title="channel {number}, {a} {d}: {value:.3f}"></td>'
            for (r, g, b), (a, d), value in zip(paint[number], columns, values[number], strict=True)
        )
        state = ' aria-pressed="true"' if number == chosen else ' aria-pressed="false"'
        button = f'<button type="button" data-channel="{number}"{state}>{number}</button>'
        rows.append(f'<tr class="{"tr-first" if first else ""}">{group}<th scope="row">{button}</th>{cells}</tr>')
    unseen = "".join(f'<th><span class="tr-hidden">{name}</span></th>' for name in ("RoPE axis", "channel"))
    return f"""<table class="tr-channels"><caption>{escape(caption)}</caption>
      <thead><tr><th></th><th></th>{spans}</tr><tr>{unseen}{distances}</tr></thead>
      <tbody>{"".join(rows)}</tbody></table>"""


def head_grid(pictures: list[list], chosen: tuple[int, int]) -> str:
    """Layers as rows, heads as columns, each head a small picture, uint8 [h, w, 3]; a click picks the head."""
    rows = []
    for layer, heads in enumerate(pictures):
        buttons = "".join(
            f'<button type="button" data-layer="{layer}" data-head="{head}" '
            f'aria-pressed="{"true" if (layer, head) == chosen else "false"}" aria-label="Layer {layer}, head {head}">'
            f'<img src="{_data_uri(picture)}" alt=""></button>'
            for head, picture in enumerate(heads)
        )
        rows.append(f'<div class="tr-heads-row"><span>layer {layer}</span>{buttons}</div>')
    return f'<div class="tr-heads" role="group" aria-label="Layer and head">{"".join(rows)}</div>'


def table(caption: str, columns: list[str], rows: list[list[str]]) -> str:
    """A table whose first column names the rows; the caption says the kind of its figures."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return f"""<div class="tr-table" tabindex="0" role="region" aria-label="{escape(caption)}"><table>
      <caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"""


def frame_gallery(frames: list, caption: str) -> str:
    """Frames to look at, uint8 [h, w, 3] each."""
    items = "".join(f'<img src="{_data_uri(frame)}" alt="Frame {t + 1}">' for t, frame in enumerate(frames))
    return f"""<figure class="tr-gallery"><div class="tr-sheet">{items}</div>
      <figcaption>{escape(caption)}</figcaption></figure>"""


def frame_sheet(frames: list, sizes: tuple[int, int, int], picked: tuple[int, int, int], label: str) -> str:
    """Frames to pick a token on, uint8 [h, w, 3] each; sizes: of the token grid; picked: (t, y, x)."""
    items = [
        f'<img src="{_data_uri(frame)}" alt="Frame {t + 1}" data-frame="{t}" draggable="false">'
        for t, frame in enumerate(frames)
    ]
    t, y, x = sizes
    return f"""<div class="tr-sheet" tabindex="0" role="application" data-t="{t}" data-y="{y}" data-x="{x}"
      data-picked="{list(picked)}" aria-label="{escape(label)}. Token {picked[0] + 1}, {picked[1] + 1}, {picked[2] + 1};
      arrow keys move it, page keys change the frame.">{"".join(items)}</div>"""


def pictures(shown: list[tuple[str, object]]) -> str:
    """(caption, uint8 [h, w, 3]) each, side by side and equally large; tokens stay squares."""
    items = [
        f'<figure><img src="{_data_uri(picture)}" alt=""><figcaption>{escape(caption)}</figcaption></figure>'
        for caption, picture in shown
    ]
    return f'<div class="tr-pictures">{"".join(items)}</div>'


def facts(lines: list[str]) -> str:
    return f'<ul class="tr-facts">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'
