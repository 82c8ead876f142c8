"""The synchronised player: one video that holds all clips and their differences, drawn on a canvas."""

from pathlib import Path

import gradio as gr
from gradio.data_classes import FileData

from timeripple.clips.video import FPS, SEAM

HERE = Path(__file__).parent


def player(**options) -> gr.HTML:
    """The component; it takes what `played` gives and shows nothing before."""
    html, css = ((HERE / f"player.{ending}").read_text(encoding="utf-8") for ending in ("html", "css"))
    js = "\n".join((HERE / f"{part}.js").read_text(encoding="utf-8") for part in ("picture", "charts", "player"))
    return gr.HTML(html_template=html, css_template=css, js_on_load=js, apply_default_css=False, **options)


def played(
    path: Path, names: list[str], report: dict, shown: tuple[int, int] = (0, 1), kind: str = "measured here"
) -> dict:
    """The value of the component.

    path: a video of `clips.video.player_frames`; names: of its clips; report: of their comparison; shown: the clips on
    side A and B; kind: of the figures in it.
    """
    rows, size = report["methods"], report.get("made", report)
    per_frame = [
        {name: [round(value, 4) for value in values] for name, values in (row["per_frame"] or {}).items() if values}
        for row in rows
    ]
    return {
        "video": FileData(path=str(path)).model_dump(),  # Gradio adds its address
        "fps": FPS,
        "seam": SEAM,
        "names": names,
        "shown": list(shown),
        "amplification": report.get("player_amplification") or rows[1]["amplification"],
        "kind": kind,
        "frames": size["num_frames"],
        "size": [size["width"], size["height"]],
        "per_frame": [values or None for values in per_frame],
    }
