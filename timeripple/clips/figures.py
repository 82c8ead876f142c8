"""Plotly figures from plain numbers: pure functions, for the app and for files alike.

Backgrounds are transparent, and lines and texts grey, so that they read on light and on dark pages. The colours are
those of Okabe and Ito, which people with colour-blindness tell apart.
"""

import math
import re
import textwrap
from collections.abc import Iterable
from html import escape
from typing import Any

import plotly.graph_objects as go

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
SIGNED, RISING = "RdBu_r", "Viridis"  # colour scales that people with colour-blindness can read
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up")
MARKERS = {"dense": "square", "refresh": "diamond", "reuse": "circle"}
STAGES = ("text", "attention", "planning", "rest of denoising", "decode")
INK, GRID = "#777777", "rgba(128, 128, 128, 0.25)"
HOVER = {"bgcolor": "#10202e", "bordercolor": "#10202e", "font": {"color": "#ffffff"}, "align": "left"}
LINE = 42  # characters of a title that a phone has room for


def saving_per_step(curves: list[tuple[str, list[float]]]) -> go.Figure:
    """Share of attention saved at every denoising step.

    curves: (label, saving per step in 0..1) per method; the label says the kind of its figures, as in
    "channel-0.75 (theoretical)". A refresh step, which pays for dense attention too, may lie below 0.
    """
    figure = go.Figure()
    for index, (label, per_step) in enumerate(curves):
        figure.add_scatter(
            x=list(range(1, len(per_step) + 1)),
            y=[100 * saving for saving in per_step],
            name=label,
            mode="lines+markers",
            line={"color": PALETTE[index % len(PALETTE)], "dash": DASHES[index % len(DASHES)], "shape": "hvh"},
            hovertemplate="step %{x}: %{y:.1f} %",
        )
    figure.update_xaxes(title="denoising step")
    figure.update_yaxes(title="attention saved, %")
    return styled(figure, "Attention saved at each denoising step")


def seconds_by_stage(runs: list[tuple[str, dict[str, float]]], kind: str = "measured here") -> go.Figure:
    """Where the time of every method went, as stacked bars.

    runs: (label, seconds) per method, in order from the top; seconds as in `Generation.seconds`: text, denoise,
    attention (a part of denoise), plan (a part of attention), decode. The bars add up to text + denoise + decode.
    """
    labels = [label for label, _ in runs]
    parts = [
        {
            "text": seconds["text"],
            "attention": seconds["attention"] - seconds["plan"],
            "planning": seconds["plan"],
            "rest of denoising": seconds["denoise"] - seconds["attention"],
            "decode": seconds["decode"],
        }
        for _, seconds in runs
    ]
    figure = go.Figure()
    for colour, stage in zip(PALETTE, STAGES, strict=False):
        figure.add_bar(
            y=labels,
            x=[part[stage] for part in parts],
            name=stage,
            orientation="h",
            marker={"color": colour},
            hovertemplate=f"%{{y}}, {stage}: %{{x:.2f}} s<extra></extra>",
        )
    figure.update_layout(barmode="stack", legend_traceorder="normal")
    figure.update_xaxes(title="seconds")
    figure.update_yaxes(autorange="reversed", type="category")
    return styled(figure, f"Seconds by stage ({kind})")


def saving_heatmap(by_head: dict[str, list[float]], label: str, kind: str) -> go.Figure:
    """Share of attention saved by layer and head, over all steps.

    by_head: share in 0..1 of every head by the name of its layer, in the order of the model; kind: "realised" or
    "theoretical".
    """
    shares = [[100 * share for share in heads] for heads in by_head.values()]
    figure = go.Figure(
        go.Heatmap(
            z=shares, x=[f"head {head}" for head in range(len(shares[0]))],
            y=[f"layer {layer}" for layer in range(len(shares))], zmin=min(0, *map(min, shares)), zmax=100,
            colorscale=RISING, colorbar={"thickness": 12, "ticksuffix": " %"}, texttemplate="%{z:.0f}",
            hovertemplate="%{y}, %{x}: %{z:.1f} %<extra></extra>",
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    title = f"Saved by layer and head ({kind})<br><sup>{escape(label)}</sup>"
    return styled(figure, title).update_layout(showlegend=False)


def schedule_curve(methods: list[tuple[str, tuple[Any, ...]]]) -> go.Figure:
    """What each denoising step is to do.

    methods: (label, steps as `ReuseConfig.schedule` gives them). A budget shows the share of attention to be saved,
    below 0 on refresh steps, which pay for dense attention too; a threshold shows theta, on an axis of its own.
    """
    figure = go.Figure()
    thresholds = False
    for index, (label, steps) in enumerate(methods):
        by_theta = any(step.theta is not None for step in steps)
        thresholds |= by_theta
        planned = [
            (step.theta or 0) if by_theta else 100 * ((step.saving_target or 0) - (step.kind == "refresh"))
            for step in steps
        ]
        figure.add_scatter(
            x=[step.index + 1 for step in steps], y=planned, name=label, mode="lines+markers",
            yaxis="y2" if by_theta else "y", customdata=[step.kind for step in steps],
            line={"color": PALETTE[index], "dash": DASHES[index], "shape": "hvh"},
            marker={"symbol": [MARKERS[step.kind] for step in steps], "size": 9},
            hovertemplate="step %{x}, %{customdata}: %{y:.3g}",
        )  # fmt: skip
    figure.update_xaxes(title="denoising step (● reuse, ◆ refresh, ■ dense)")
    figure.update_yaxes(title="attention to save, %")
    if thresholds:
        figure.update_layout(yaxis2={"title": "θ", "overlaying": "y", "side": "right", "rangemode": "tozero"})
    return styled(figure, "Schedule")


def fragments(figures: list[go.Figure]) -> list[str]:
    """Figures as HTML to put into one page; the first brings plotly.js along."""
    return [
        figure.to_html(full_html=False, include_plotlyjs=number == 0, config={"responsive": True})
        for number, figure in enumerate(figures)
    ]


def styled(figure: go.Figure, title: str) -> go.Figure:
    """The figure with a title and the look of all figures; the same object.

    Title and legend lie outside the axes whatever the size: the title in lines that a phone has room for, the legend at
    the lower edge.
    """
    lines = _in_lines(title)
    figure.update_layout(
        title={"text": "<br>".join(lines), "x": 0.02, "xanchor": "left", "yref": "container", "y": 1, "yanchor": "top",
               "pad": {"t": 14}, "font": {"size": 15}},
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK},
        hoverlabel=HOVER,
        showlegend=True,
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        margin={"l": 60, "r": 20, "t": 28 + 20 * len(lines), "b": 20},
    )  # fmt: skip
    figure.update_xaxes(gridcolor=GRID, zerolinecolor=INK, automargin=True)
    figure.update_yaxes(gridcolor=GRID, zerolinecolor=INK, automargin=True)
    return figure


def logarithmic(values: Iterable[float]) -> dict[str, Any]:
    """Settings of a logarithmic axis whose ticks say all of a number: Plotly's own say the first digit alone."""
    positive = [value for value in values if value > 0] or [1.0]
    ticks = round_numbers(10 ** math.floor(math.log10(min(positive))), 1.25 * max(positive))
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,.10g}" for tick in ticks]}


def round_numbers(low: float, high: float, most: int = 9) -> list[float]:
    """Ticks of a logarithmic axis between two numbers above 0: at most so many, as finely as that allows."""
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    few = decades[:: len(decades) // most + 1]
    for digits, powers in (((1, 1.5, 2, 3, 4, 5, 7), decades), ((1, 2, 5), decades), ((1,), few)):
        ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            break
    if len(ticks) < 2 and high > low:  # so near each other that they are as on a linear axis
        power = math.floor(math.log10(high - low))
        ticks = [float(f"{n}e{power}") for n in range(math.ceil(low / 10**power), math.floor(high / 10**power) + 1)]
    return ticks


def _in_lines(title: str) -> list[str]:
    """A title broken where a narrow page needs it; its own breaks stay."""
    parts = re.split(r"<br>(?:<sup>)?", title.replace("</sup>", ""))
    return [line for part in parts for line in textwrap.wrap(part, LINE)]
