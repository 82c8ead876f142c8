"""What is good: the words and the bands of each number the page shows."""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

RECORDED = Path(__file__).parents[1] / "assets" / "benchmarks"
ANOTHER_VIDEO = 25.0
PSNR_BANDS = [
    (ANOTHER_VIDEO, "another video"),
    (30.0, "visibly different"),
    (35.0, "small differences"),
    (40.0, "hard to tell apart"),
    (50.0, "indistinguishable"),
]
"""Upper ends in dB, and what a viewer sees of two clips that play side by side."""


class Measure(NamedTuple):
    """A number on its scale.

    value: as text; word: what it means; kind: where it differs from that of its row; low, high: ends of the scale;
    at: where the number lies; ends: of the bands below the last.
    """

    name: str
    value: str
    word: str
    low: float
    high: float
    at: float
    ends: tuple[float, ...] = ()
    kind: str = ""
    more: str = ""


def speedup(times: float, limit: float) -> Measure:
    """Between as fast as dense and what is possible if attention cost nothing."""
    word = f"at most {limit:.1f}× if attention cost nothing"
    more = "Amdahl's limit (theoretical): 1 / (1 − share of attention in the time of the dense run)"
    return Measure("Speed-up", f"{times:.2f}×", word, 1, max(limit, times), times, more=more)


def psnr(level: float | None) -> Measure | None:
    if level is None:
        return None
    word = next((word for end, word in PSNR_BANDS if level < end), PSNR_BANDS[-1][1])
    ends = tuple(end for end, _ in PSNR_BANDS[:-1])
    more = "; ".join(f"below {end:g} dB: {word}{seen_on_pond(end)}" for end, word in PSNR_BANDS[:-1])
    more += f"; above: {PSNR_BANDS[-1][1]}{seen_on_pond(PSNR_BANDS[-1][0])}"
    return Measure("PSNR", f"{level:.1f} dB", word, 20, 50, level, ends, more=more)


def ssim(level: float | None) -> Measure | None:
    if level is None:
        return None
    word = "1 is identical"
    return Measure("SSIM", f"{level:.3f}", word, 0.8, 1, level, (0.9, 0.95, 0.98))


def vmaf(level: float) -> Measure:
    """Netflix's scale of 20 for bad to 100 for excellent."""
    words = [(40, "poor"), (60, "fair"), (80, "good"), (101, "excellent")]
    word = next(word for end, word in words if level < end)
    return Measure("VMAF", f"{level:.0f} of 100", f"{word}, as people would see it", 0, 100, level, (40, 60, 80))


def saving(reuse_steps: float, all_steps: float, kind: str) -> Measure:
    word = f"{all_steps:.0%} over all steps"
    return Measure("Attention saved", f"{reuse_steps:.0%}", word, 0, 1, reuse_steps, kind=kind)


@cache
def _recorded() -> list[tuple[float, float]]:
    file = RECORDED / "end-to-end.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
    return [(row["psnr"], row["ssim"]) for row in rows if row.get("psnr") is not None]


def seen_on_pond(end: float) -> str:
    """What was recorded of the band that ends there: how many methods landed in it, and their mean SSIM."""
    ends = [0.0, *(each for each, _ in PSNR_BANDS)]
    low = ends[ends.index(end) - 1]
    found = [ssim for level, ssim in _recorded() if low <= level < (end if end < PSNR_BANDS[-1][0] else 1000)]
    return f" (on Pond, SSIM {sum(found) / len(found):.3f}, mean of {len(found)} recorded)" if found else ""
