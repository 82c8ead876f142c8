"""Pieces of HTML the tabs are made of: plain functions from values to text; whatever comes from outside is escaped."""

import base64
import io
import itertools
import math
from html import escape

from PIL import Image

from timeripple.clips.figures import round_numbers
from timeripple.clips.video import FPS

AXIS_NAMES = {"t": "time", "y": "height", "x": "width"}


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
        <i class="tr-attention" style="width:{100 * attention / longest:.1f}%">
        <b>{attention:.1f} s</b><b>attention</b></i><i class="tr-rest"
          style="width:{100 * (total - attention) / longest:.1f}%"></i>
        <em>{total:.1f} s</em></div></div>"""
        for name, attention, total in bars
    )
    said = "".join(f"<p class='tr-remark'>{escape(remark)}</p>" for remark in remarks)
    return f"""<section class="tr-headline"><h2>{escape(text)}</h2><p>{escape(why)}</p>
      <div class="tr-bars">{rows}</div>
      <p class="tr-detail">{escape(detail)} · <em class="tr-kind tr-{kind.split()[0]}">{escape(kind)}</em> ·
      <a href="{escape(link)}">Link to this result</a></p>
      <p class="tr-jump"><a href="#form">Generate your own ↓</a></p>{said}</section>"""


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
    sources = [data_uri(Image.fromarray(picture), "JPEG", quality=90) for *_, picture in cards]
    items = "".join(
        f"""<button type="button" data-recorded="{escape(id)}"><img src="{source}" alt="">
        <span><b>{escape(prompt)}</b>{escape(outcome)}</span></button>"""
        for source, (id, prompt, outcome, _) in zip(sources, cards, strict=True)
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
        picture = (
            f'<img src="{data_uri(Image.fromarray(event.preview))}" alt="Preview of {escape(label)} after step {step}">'
        )
    return f"""<article class="tr-card tr-side tr-{name.lower()}">
      {_title(name, label)}
      <div class="tr-picture">{picture}</div>
      <div class="tr-bar" role="progressbar" aria-label="{escape(label)}" aria-valuemin="0" aria-valuemax="100"
        aria-valuenow="{share:.0f}" aria-valuetext="{detail}"><i style="width:{share:.1f}%"></i></div>
      <p class="tr-detail">{detail}</p>
    </article>"""


def _title(name: str, label: str) -> str:
    return f'<h3 class="tr-{name.lower()}"><span class="tr-badge">{name}</span>{escape(label)}</h3>'


def data_uri(image: Image.Image, form: str = "PNG", **options) -> str:
    """A picture as the source of an <img>; form and options: as `Image.save` has them."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


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


def table(caption: str, columns: list[str], rows: list[list[str]]) -> str:
    """A table whose first column names the rows; the caption says the kind of its figures."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return f"""<div class="tr-table" tabindex="0" role="region" aria-label="{escape(caption)}"><table>
      <caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"""


def alternatives(caption: str, rows: list[tuple[str, str, float, str]], remark: str) -> str:
    """(name, kind, error, what it does) each, as bars; remark: why they are as they are, or empty."""
    most = max(error for *_, error, _ in rows) or 1
    items = "".join(
        f"""<li><b>{escape(name)}</b> <em class="tr-kind tr-{kind}">{kind}</em><strong>{error:.3f}</strong>
        <i style="width:{100 * error / most:.1f}%"></i><span>{escape(what)}</span></li>"""
        for name, kind, error, what in rows
    )
    said = f'<p class="tr-remark">{escape(remark)}</p>' if remark else ""
    return f"""<section class="tr-alternatives"><h3>{escape(caption)}</h3><ul>{items}</ul>{said}</section>"""


def moving(clip) -> str:
    """A small clip, uint8 [F, h, w, 3], that plays by itself, as a data URI."""
    first, *others = map(Image.fromarray, clip)
    return data_uri(first, "WEBP", save_all=True, append_images=others, duration=1000 // FPS, loop=0, quality=90)


def pairings(cells: dict, axes: tuple[str, ...], caption: str) -> str:
    """cells: (clip as data URI, level, whether it is the own axis) by (group, axis)."""
    head = "".join(f'<th scope="col">along {AXIS_NAMES[axis]}</th>' for axis in axes)
    body = ""
    for group in axes:
        row = "".join(
            f'<td class="{"tr-own" if own else ""}"><img src="{clip}" alt="Channels of {AXIS_NAMES[group]} reused '
            f'along {AXIS_NAMES[axis]}"><span>{level}{" · own axis" if own else ""}</span></td>'
            for axis in axes
            for clip, level, own in [cells.get((group, axis), ("", "no clip", False))]
        )
        body += f'<tr><th scope="row">channels of {AXIS_NAMES[group]}</th>{row}</tr>'
    return f"""<table class="tr-pairings"><caption>{escape(caption)}</caption><thead><tr><th></th>{head}</tr></thead>
      <tbody>{body}</tbody></table>"""


def scatter(
    points: list[tuple[str, float, float, bool, str]],
    curve: list[tuple[float, float]],
    caption: str,
    across: str,
    upwards: str,
    size=(760, 380),
) -> str:
    """Points that are links: (name, x, y, whether it is ours, address) each; x on a logarithmic scale. curve: of some
    of them, (x, y) in order, what the others are to be compared with."""
    width, height, left, bottom = *size, 44, 40
    xs, ys = [math.log(x) for _, x, *_ in points], [y for _, _, y, *_ in points]
    low, high = min(xs) - 0.1, max(xs) + 0.25
    floor = 5 * math.floor(min(ys) / 5)
    top = max(floor + 5, 5 * math.ceil(max(ys) / 5))

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (math.log(x) - low) / (high - low) * (width - left - 10),
            height - bottom - (y - floor) / (top - floor) * (height - bottom - 12),
        )

    ticks = "".join(
        f'<line x1="{left}" x2="{width - 10}" y1="{at(1, y)[1]:.1f}" y2="{at(1, y)[1]:.1f}"/>'
        f'<text x="{left - 6}" y="{at(1, y)[1] + 4:.1f}" text-anchor="end">{y}</text>'
        for y in range(floor, top + 1, 5)
    )
    ticks += "".join(
        f'<text x="{at(x, floor)[0]:.1f}" y="{height - bottom + 16}" text-anchor="middle">{x:g}</text>'
        for x in round_numbers(math.exp(low), math.exp(high))
    )
    line = " ".join("{:.1f},{:.1f}".format(*at(*place)) for place in curve)
    taken = [(*at(x, y), 8.0) for _, x, y, *_ in points]

    def label(name: str, x: float, y: float) -> str:
        """The name beside its point, where nothing lies; else only the pointer tells it."""
        (cx, cy), long = at(x, y), 5.6 * len(name)
        for left_end in (cx + 9, cx - 9 - long):
            place = [(left_end + step, cy, 6.0) for step in range(0, int(long), 6)]
            if left < left_end < width - long and all(
                abs(u - p) > 9 or abs(v - q) > 10 for u, v, _ in place for p, q, _ in taken if (p, q) != (cx, cy)
            ):
                taken.extend(place)
                return f'<text x="{left_end:.1f}" y="{cy + 4:.1f}">{escape(name)}</text>'
        return ""

    dots = "".join(
        f"""<a href="{escape(link)}" class="{"tr-ours" if ours else "tr-peer"}" aria-label="{escape(name)}">
        <circle cx="{at(x, y)[0]:.1f}" cy="{at(x, y)[1]:.1f}" r="{6 if ours else 4.5}"/>{label(name, x, y)}
        <title>{escape(name)}: {x:.1f} s, {y:.1f} dB; a click fills the form with it</title></a>"""
        for name, x, y, ours, link in sorted(points, key=lambda point: not point[3])
    )
    return f"""<figure class="tr-scatter"><figcaption>{escape(caption)}. Filled: ours. A click fills the form with it.
      </figcaption><svg viewBox="0 0 {width} {height}">{ticks}<polyline points="{line}"/>{dots}
      <text x="{width / 2}" y="{height - 4}" text-anchor="middle">{escape(across)}</text>
      <text transform="translate(12 {height / 2}) rotate(-90)" text-anchor="middle">{escape(upwards)}</text>
      </svg></figure>"""


def facts(lines: list[str]) -> str:
    return f'<ul class="tr-facts">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'
