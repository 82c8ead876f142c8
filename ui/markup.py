"""Pieces of HTML the tabs are made of: plain functions from values to text; whatever comes from outside is escaped."""

import base64
import io
import itertools
from html import escape

from PIL import Image


def header(links: list[tuple[str, str]]) -> str:
    """One line: what this is, and where it is from."""
    anchors = "".join(f'<a href="{escape(url)}">{escape(name)}</a>' for name, url in links)
    return f"""<header class="tr-header"><h1><span class="tr-mark" aria-hidden="true"></span>TimeRipple</h1>
      <p>Video diffusion that computes what neighbours share only once</p>
      <nav aria-label="Sources">{anchors}</nav></header>"""


def headline(
    text: str, why: str, bars: list[tuple[str, float, float]], detail: str, kind: str, link: str, remarks: list[str]
) -> str:
    """What a comparison came to. bars: (method, seconds of attention, seconds in all) each; link: query of the page
    that shows this result again."""
    longest = max(total for *_, total in bars)
    rows = "".join(
        f"""<div class="tr-bars-row"><span>{escape(name)}</span>
        <div role="img" aria-label="{escape(name)}: {total:.1f} seconds, {attention:.1f} of them attention">
        <i class="tr-attention" style="width:{100 * attention / longest:.1f}%"><b>attention {attention:.1f} s</b></i
        ><i class="tr-rest" style="width:{100 * (total - attention) / longest:.1f}%"></i>
        <em>{total:.1f} s</em></div></div>"""
        for name, attention, total in bars
    )
    said = "".join(f"<p class='tr-remark'>{escape(remark)}</p>" for remark in remarks)
    return f"""<section class="tr-headline"><h2>{escape(text)}</h2><p>{escape(why)}</p>
      <div class="tr-bars">{rows}</div>
      <p class="tr-detail">{escape(detail)} · <em class="tr-kind tr-{kind.split()[0]}">{escape(kind)}</em> ·
      <a href="{escape(link)}">Link to this result</a></p>{said}</section>"""


def numbers(rows: list[tuple[str, str, list]]) -> str:
    """rows: (side, kind, measures of `scales`) each; the kind is that of the whole row unless a measure has its own."""
    return "".join(
        f"""<section class="tr-numbers tr-{side.lower()}"><h3><span class="tr-badge">{side}</span>{escape(kind)}</h3>
        <dl>{"".join(map(_measure, measures))}</dl></section>"""
        for side, kind, measures in rows
    )


def _measure(measure) -> str:
    def share(value: float) -> float:
        return 100 * min(1.0, max(0.0, (value - measure.low) / (measure.high - measure.low or 1)))

    ends = [0.0, *map(share, measure.ends), 100.0]
    bands = "".join(
        f'<i style="width:{right - left:.1f}%;opacity:{0.25 + 0.75 * (number + 1) / (len(ends) - 1):.2f}"></i>'
        for number, (left, right) in enumerate(itertools.pairwise(ends))
    )
    kind = f' <em class="tr-kind tr-{measure.kind}">{measure.kind}</em>' if measure.kind else ""
    return f"""<div class="tr-number" title="{escape(measure.more)}"><dt>{escape(measure.name)}{kind}</dt>
      <dd><strong>{escape(measure.value)}</strong><span>{escape(measure.word)}</span>
      <div class="tr-scale" aria-hidden="true">{bands}<b style="left:{share(measure.at):.1f}%"></b></div></dd></div>"""


STEPS_JS = """element.addEventListener('input', event => {
  const box = event.target.closest('.tr-steps'), at = Number(event.target.value);
  box.querySelectorAll('[data-side]').forEach(side => {
    const all = side.querySelectorAll('img'), shown = Math.min(all.length, at) - 1;
    all.forEach((image, number) => { image.hidden = number !== shown; });
  });
  box.querySelector('output').textContent = `${at} of ${event.target.max}`;
});"""


def steps(sides: list[tuple[str, str, list[str]]]) -> str:
    """Previews of every step of both sides, (side, method, data URIs), and a slider through them; without a side,
    nothing."""
    if not sides:
        return ""
    most = max(len(pictures) for *_, pictures in sides)
    panels = "".join(
        f"""<figure data-side="{side}">{
            "".join(
                f'<img src="{picture}" alt="Step {number}"{"" if number == len(pictures) else " hidden"}>'
                for number, picture in enumerate(pictures, start=1)
            )
        }<figcaption><b>{side}</b> {escape(method)}</figcaption></figure>"""
        for side, method, pictures in sides
    )
    return f"""<details class="tr-steps"><summary>How it came to be: the middle frame after every step</summary>
      <div class="tr-steps-range"><label>Step <input type="range" min="1" max="{most}" value="{most}"></label>
      <output>{most} of {most}</output></div><div class="tr-steps-pictures">{panels}</div></details>"""


def recorded(cards: list[tuple[str, str, str, object]]) -> str:
    """(id, prompt, what came of it, uint8 [h, w, 3]) of results that a click shows at once."""
    items = "".join(
        f"""<button type="button" data-recorded="{escape(id)}"><img src="{_data_uri(picture)}" alt="">
        <span><b>{escape(prompt)}</b>{escape(outcome)}</span></button>"""
        for id, prompt, outcome, picture in cards
    )
    return f'<section class="tr-recorded"><h3>Recorded comparisons</h3><div>{items}</div></section>' if items else ""


def remark(sentence: str) -> str:
    return f'<p class="tr-remark" role="status">{escape(sentence)}</p>'


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
