"""Method: the idea in four moving pictures and seven drawings, and what the paper and we measured, side by side."""

import json
from html import escape

import gradio as gr

from timeripple.attention.config import ReuseConfig
from timeripple.inspection import figures, views
from timeripple.inspection.attention_maps import standing_out
from timeripple.inspection.laboratory import Specimen
from timeripple.inspection.probe import Inspection
from ui import markup
from ui.glossary import explained
from ui.method_pictures import PICTURES
from ui.source import first_step, recorded_inspection
from ui.timing_tab import RECORDED, machine

PAPER = [  # HunyuanVideo on one H100, arXiv 2511.12035: method, PSNR dB, SSIM, latency in seconds, speed-up
    ["dense", "–", "–", "694.0", "1.00×"],
    ["TimeRipple 75 %", "35.06", "0.950", "330.0", "2.10×"],
    ["TimeRipple 85 %", "31.28", "–", "260.9", "2.66×"],
    ["SVG 70 %", "25.78", "–", "409.6", "1.69×"],
    ["Δ-DiT", "26.09", "–", "569.4", "1.22×"],
]
BESIDE = {"TimeRipple 75 %": "token:0.75", "TimeRipple 85 %": "token:0.85"}
"""What of ours saves as much as the paper's."""
REFERENCES = {
    "TimeRipple (Miao et al., CVPR 2026)": "https://arxiv.org/abs/2511.12035",
    "Wan (the architecture of Pond)": "https://arxiv.org/abs/2503.20314",
    "FlashAttention (attention in blocks)": "https://arxiv.org/abs/2205.14135",
    "Token merging (ToMe)": "https://arxiv.org/abs/2210.09461",
    "DiTFastAttn (residual sharing)": "https://arxiv.org/abs/2406.08552",
    "Pyramid Attention Broadcast (output cache)": "https://arxiv.org/abs/2408.12588",
    "Sparse VideoGen (skip masks)": "https://arxiv.org/abs/2502.01776",
}
BUDGET = 0.7
SIDE = 12  # pixels of a token


def method_tab() -> None:
    """Adds the content of the tab."""
    if seen := recorded_inspection():
        gr.HTML(walkthrough(seen))
    gr.HTML(explained("budget", "θ", "Eq. 3", "RoPE group", "refresh", "ramp"))
    gr.HTML(paper_and_here())
    gr.HTML(markup.table("What the paper reports of others: HunyuanVideo, one H100, latencies estimated (paper)",
                         ["method", "PSNR dB", "SSIM", "latency, s", "speed-up"], PAPER))  # fmt: skip
    drawings = "".join(
        f"""<figure class="tr-card tr-step">{picture()}
        <figcaption><h3>{number}. {escape(title)}</h3><p>{escape(words)}</p></figcaption></figure>"""
        for number, (title, words, picture) in enumerate(PICTURES, start=1)
    )
    gr.HTML(f'<section class="tr-method">{drawings}</section>')
    links = "".join(f'<li><a href="{url}">{escape(name)}</a></li>' for name, url in REFERENCES.items())
    gr.HTML(f'<section class="tr-references"><h3>References</h3><ul>{links}</ul></section>')


def walkthrough(seen: Inspection) -> str:
    """Frames, channels, merged rows and attention that is given back, on the tokens of a run."""
    step = first_step(seen)
    layer, head, channel = views.strongest_effect(seen, step)
    planes = views.channel_planes(seen, step, layer, head, "query", channel)
    specimen = Specimen.of(seen.qkv(step, layer, slice(head, head + 1)), seen.grid, ReuseConfig("token", budget=BUDGET))
    shares = specimen.reused(specimen.try_reuse(saving=BUDGET).theta)[0, 0].numpy()
    config, at = ReuseConfig("token", budget=BUDGET), standing_out(seen.frames, seen.grid)
    attention = views.token_view(seen, step, layer, head, at, config).reuse
    frames, most = seen.frames, float(abs(planes).max())
    moving = [
        ("Frames become tokens", f"{seen.grid.tokens:,} tokens, {seen.grid.height} × {seen.grid.width} in every frame; "
         "dense attention compares each with all others.", frames),
        ("Neighbours repeat themselves", f"Channel {channel} of the queries in layer {layer}, head {head}: windows of "
         "neighbours hold nearly one value.",
         figures.frames_of(frames, planes, most, True, over=False, side=SIDE)),
        ("Rows that agree are merged", f"The brighter, the more tokens share one row of attention: here {BUDGET:.0%} "
         "of the work is left out (realised).", figures.frames_of(frames, shares, 1.0, False, side=SIDE)),
        ("The result is given back", "One row is computed for all who share it, and each gets the output: what one "
         "token of the ball attends to, with reuse.",
         figures.frames_of(frames, attention, float(attention.max()), False, side=SIDE)),
    ]  # fmt: skip
    items = "".join(
        f"""<li><img src="{markup.moving(clip)}" alt=""><h3>{number}. {escape(title)}</h3><p>{escape(words)}</p></li>"""
        for number, (title, words, clip) in enumerate(moving, start=1)
    )
    return f'<ol class="tr-walk">{items}</ol><p class="tr-note">On the recorded run of the red ball, one head.</p>'


def paper_and_here() -> str:
    """The paper's numbers and ours at the same budgets, one kind a column."""
    file = RECORDED / "end-to-end.json"
    if not file.is_file():
        return ""
    result = json.loads(file.read_text(encoding="utf-8"))
    sizes = sorted({row["tokens"] for row in result["rows"]})
    ours = {(row["method"], row["tokens"]): row for row in result["rows"]}
    columns = ["budget", "PSNR dB (paper)", "speed-up (paper, estimated)"]
    columns += [f"{what}, {count:,} tokens (recorded)" for count in sizes for what in ("PSNR dB", "speed-up")]
    rows = []
    for name, psnr, _, _, speedup in PAPER:
        if name in BESIDE:
            found = [ours.get((BESIDE[name], count)) for count in sizes]
            cells = [f"{row[key]:{form}}{end}" if row else "–" for row in found
                     for key, form, end in (("psnr", ".1f", ""), ("speedup", ".2f", "×"))]  # fmt: skip
            rows.append([name.removeprefix("TimeRipple "), psnr, speedup, *cells])
    caption = f"The paper on HunyuanVideo and an H100, beside Pond here, recorded on {machine(result)}"
    return markup.table(caption, columns, rows)
