"""A comparison as one HTML file that needs nothing else: numbers with their kind, figures and videos."""

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

from timeripple.clips import figures

STYLE = """
:root { color-scheme: light dark; font: 16px/1.55 system-ui, sans-serif; }
body { max-width: 1100px; margin: 0 auto; padding: 24px 16px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid #8886; }
th:first-child, td:first-child { text-align: left; }
.videos { display: flex; flex-wrap: wrap; gap: 16px; }
figure { flex: 1 1 260px; margin: 0; }
video { width: 100%; }
pre { overflow-x: auto; padding: 12px; background: #8882; }
"""


def html_report(report: dict[str, Any], folder: Path) -> str:
    """report: as `Comparison.report` gives it; folder: holds LABEL.mp4 of every method, which the page carries."""
    rows, texts = report["methods"], [row["method"] for row in report["methods"]]
    reused = [(text, row) for text, row in zip(texts, rows, strict=True) if row["saving"]]
    drawn = [figures.seconds_by_stage([(text, row["seconds"]) for text, row in zip(texts, rows, strict=True)])]
    if reused:
        curves = [(f"{text} ({row['saving']['kind']})", row["saving"]["per_step"]) for text, row in reused]
        drawn.append(figures.saving_per_step(curves))
    drawn += [figures.saving_heatmap(row["saving_by_head"], text, row["saving"]["kind"]) for text, row in reused]
    videos = "".join(_video(folder / f"{row['label']}.mp4", text) for text, row in zip(texts, rows, strict=True))
    made = report.get("made", report)
    size = f"{made['num_frames']} frames of {made['width']} × {made['height']}"
    said = ("methods", "environment", "versions", "remarks", "broken", "made")
    settings = {name: value for name, value in report.items() if name not in said}
    remarks = "".join(f"<p><strong>{escape(remark)}</strong></p>" for remark in report.get("remarks", ()))
    machine = report["environment"] | {"versions": report["versions"]}
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>TimeRipple: {escape(report["prompt"])}</title><style>{STYLE}</style></head><body>
<h1>“{escape(report["prompt"])}”</h1>
<p>{size}, {report["steps"]} steps, seed {report["seed"]}. Seconds, speed-up and quality are measured on the machine
named below; quality is against {escape(texts[0])}.</p>
{remarks}
{_table(rows)}
<h2>Videos</h2><div class="videos">{videos}</div>
<h2>Figures</h2>{"".join(figures.fragments(drawn))}
<h2>Settings and machine</h2>
<pre>{escape(json.dumps(settings, indent=2))}</pre><pre>{escape(json.dumps(machine, indent=2))}</pre>
</body></html>
"""


def _table(rows: list[dict[str, Any]]) -> str:
    """Seconds, speed-up, quality, and savings of the reuse steps, one column a kind."""
    quality = next((list(row["quality"]) for row in rows if row["quality"]), [])
    kinds = list(dict.fromkeys(row["saving"]["kind"] for row in rows if row["saving"]))
    heads = ["method", "seconds", "speed-up", *(name.upper() for name in quality), *(f"saved ({k})" for k in kinds)]
    body = ""
    for row in rows:
        cells = [row["method"], f"{row['seconds']['total']:.2f}", f"{row['speedup']:.2f}×"]
        cells += [_number((row["quality"] or {}).get(name)) for name in quality]
        saving = row["saving"] or {"kind": None}
        cells += [f"{saving['reuse_steps']:.1%}" if saving["kind"] == kind else "–" for kind in kinds]
        body += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    return f"<table><tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>{body}</table>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _video(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f"""<figure><video src="data:video/mp4;base64,{data}" controls loop muted playsinline></video>
<figcaption>{escape(caption)}</figcaption></figure>"""
