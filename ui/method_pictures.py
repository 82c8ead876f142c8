"""The idea in pictures: drawings of the method, as SVG."""

from html import escape

from timeripple.attention.config import ReuseConfig

STEPS = 20


def svg(width: int, height: int, label: str, *parts: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def square(x: float, y: float, tone: str, side: float = 16) -> str:
    return f'<rect class="{tone}" x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" rx="2"/>'


def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, tone: str = "tr-line") -> str:
    return f'<line class="{tone}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def neighbours() -> str:
    """Three frames of one channel of each group: equal along time, along y, along x."""
    parts = []
    groups = [("time", (1, 1)), ("height", (0, 1)), ("width", (1, 0))]
    for group, (name, varies) in enumerate(groups):
        for frame in range(3):
            for y in range(3):
                for x in range(3):
                    shade = (y * varies[0] * 3 + x * varies[1] + (group > 0) * frame) % 4
                    parts.append(square(78 + frame * 54 + x * 15, 6 + group * 54 + y * 15, f"tr-shade-{shade}", 13))
        parts.append(text(68, 31 + group * 54, name, "end"))
    return svg(
        260, 164, "Channels of group t repeat from frame to frame, of y and x along an axis of the frame", *parts
    )


def windows() -> str:
    """Two windows of two tokens in one channel: one within theta of its mean, one not."""
    parts = []
    for x, values, kept in ((20, (52, 60), False), (120, (30, 84), True)):
        mean = sum(values) / 2
        parts += [f'<rect class="tr-band" x="{x - 8}" y="{mean - 14:g}" width="76" height="28" rx="4"/>']
        parts += [line(x - 8, mean, x + 68, mean)]
        for i, value in enumerate(values):
            tone = "tr-moving" if kept or i == 0 else "tr-calm"
            parts.append(f'<circle class="{tone}" cx="{x + 10 + 40 * i}" cy="{value}" r="8"/>')
        parts.append(text(x + 30, 120, "computed" if kept else "Δ < θ: reused"))
    return svg(210, 130, "A token within the threshold of its window is reused, others are computed", *parts)


def merged_keys() -> str:
    """Four equal keys become one row with log 4 added to its logit."""
    parts = [square(10 + 20 * i, 30, "tr-calm") for i in range(4)] + [square(100, 30, "tr-moving")]
    parts += [line(122, 38, 142, 38), square(150, 22, "tr-calm", 32), square(190, 30, "tr-moving")]
    parts += [text(50, 66, "|G| = 4"), text(166, 72, "+ log 4")]
    return svg(215, 84, "Four equal keys become one with log 4 added to its logit", *parts)


def shared_queries() -> str:
    """Four query rows share one row of scores and one output."""
    parts = [square(10, 10 + 20 * i, "tr-calm") for i in range(4)]
    parts += [line(30, 18 + 20 * i, 74, 48) for i in range(4)]
    parts += [square(76, 38, "tr-calm", 20)] + [square(104 + 14 * i, 42, f"tr-shade-{i % 4}", 12) for i in range(5)]
    parts += [line(176, 48, 192, 18 + 20 * i) for i in range(4)]
    parts += [square(194, 10 + 20 * i, "tr-calm") for i in range(4)]
    return svg(220, 96, "Query rows of a group share one row of scores, and the output is given to each", *parts)


def feedback() -> str:
    """The error of reuse over the steps: measured at refreshes, extrapolated between."""
    parts, last = [line(10, 90, 206, 90)], None
    for i in range(5):
        x, y = 16 + 46 * i, 70 - 12 * i + (6 if i == 2 else 0)
        if last:
            slope = (y - last[1]) / (x - last[0])
            parts.append(line(x, y, x + 40, y + 40 * slope, "tr-dash") if i < 4 else "")
        parts.append(f'<path class="tr-moving" d="M{x} {y - 8} l8 8 l-8 8 l-8 -8 z"/>')
        last = (x, y)
    parts += [text(108, 108, "denoising steps"), text(60, 22, "error, measured at ◆")]
    return svg(215, 114, "The error is measured at refreshes and continued along its change between them", *parts)


def schedule() -> str:
    """The schedule of the default settings over 20 steps, as the library makes it."""
    tones = {"dense": "tr-shade-3", "refresh": "tr-moving", "reuse": "tr-calm"}
    steps = ReuseConfig().schedule(STEPS)
    parts = []
    for step in steps:
        height = 58 if step.kind != "reuse" else max(3, 58 * (1 - step.saving_target))
        place = f'x="{8 + 10 * step.index}" y="{64 - height:g}" width="8" height="{height:g}"'
        parts.append(f'<rect class="{tones[step.kind]}" {place} rx="1"/>')
    whole = ", ".join(str(step.index + 1) for step in steps if step.kind != "reuse")
    parts += [text(108, 82, f"dense at steps {whole} of {STEPS}")]
    return svg(216, 90, f"Attention computed at each of {STEPS} steps: all of it at steps {whole}", *parts)


def tiles() -> str:
    """A tile of queries computes some key windows and visits one representative of each other."""
    computed = {(0, 1), (1, 1), (1, 2)}
    parts = [square(10, 40, "tr-moving", 30), text(25, 88, "query tile")]
    for row in range(3):
        for column in range(4):
            x, y = 80 + 32 * column, 6 + 28 * row
            if (row, column) in computed:
                parts += [square(x + 12 * i, y + 12 * j, "tr-calm", 10) for i in range(2) for j in range(2)]
            else:
                parts.append(square(x + 7, y + 7, "tr-shade-2", 8))
    return svg(215, 96, "Windows that matter are computed key by key, others through one representative", *parts)


PICTURES = [
    (
        "Neighbours repeat themselves",
        "RoPE gives every channel of Q and K to time, height or width. Channel by channel, values barely change along "
        "some axes: here the rows of a group are three frames of one channel.",
        neighbours,
    ),
    (
        "Small windows, one threshold",
        "Two neighbours form a window. Where their deviation from the mean (Eq. 3) is below θ, the later one takes the "
        "earlier one's partial score: reused, not computed, not zeroed.",
        windows,
    ),
    (
        "Equal keys are one key",
        "Where a group agrees in all channels, reuse is algebra: |G| equal keys give one row of scores with log |G| "
        "added, and the mean of their values. Nothing is lost, and whole rows are left out.",
        merged_keys,
    ),
    (
        "Equal queries have one output",
        "Query rows of a group are computed once and the output is given to each of them. Savings on both sides "
        "multiply: half the rows on each leaves a quarter of the work.",
        shared_queries,
    ),
    (
        "The error is given back",
        "At a few refresh steps attention is computed both ways. The difference is kept, continued along its change, "
        "and added to the reused output on the steps between.",
        feedback,
    ),
    (
        "The schedule",
        "Three dense steps start, refreshes are dealt out evenly, and the budget says how many there may be: as many "
        "as the steps between can pay for.",
        schedule,
    ),
    (
        "Tiles decide for themselves",
        "The same key window may matter to one tile of queries and not to another. Tile reuse computes the windows "
        "that matter and visits one representative of each other; nothing is masked. A definition for study: "
        "where dense attention is fast, on GPUs and CPUs with matrix units, the choice costs more than it saves.",
        tiles,
    ),
]  # fmt: skip
