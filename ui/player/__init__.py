"""The synchronised player: one video that holds A, B and their difference, drawn on a canvas that shows both alike."""

from pathlib import Path

import gradio as gr
from gradio.data_classes import FileData

from timeripple.clips.video import FPS, SEAM

HERE = Path(__file__).parent


def player(**options) -> gr.HTML:
    """The component; it takes what `played` gives and shows nothing before."""
    html, css, js = ((HERE / f"player.{ending}").read_text(encoding="utf-8") for ending in ("html", "css", "js"))
    return gr.HTML(html_template=html, css_template=css, js_on_load=js, apply_default_css=False, **options)


def played(path: Path, names: list[str], row: dict, kind: str = "measured here") -> dict:
    """The value of the component.

    path: a video of `clips.video.player_frames`; names: of its two clips; row: of the second in the report of their
    comparison; kind: of the figures in it.
    """
    video = FileData(path=str(path)).model_dump()  # Gradio adds its address
    per_frame, amplification = row["per_frame"], row["amplification"]
    return {
        "video": video, "fps": FPS, "seam": SEAM, "names": names, "amplification": amplification, "kind": kind,
        "per_frame": {name: [round(value, 4) for value in values] for name, values in per_frame.items() if values},
    }  # fmt: skip
