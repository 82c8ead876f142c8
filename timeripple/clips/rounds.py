"""What a busy machine does to seconds, and how it shows: the same clips made several times, and stages that are the
same work in every method."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from timeripple.attention.config import ReuseConfig
from timeripple.clips.generate import Generation
from timeripple.clips.methods import Method

DISTURBED = 0.15  # by how much the same work may take longer in one method than in another
SHORT = 0.5  # seconds, of stages that are too short to tell


def together(generations: list[Generation]) -> Generation:
    """One clip made several times: the first, with the median seconds of every stage."""
    first, *others = generations
    if not others:
        return first
    rounds = tuple(generation.seconds for generation in generations)
    return replace(first, seconds={stage: median(each[stage] for each in rounds) for stage in rounds[0]}, rounds=rounds)


def speedups_by_round(generation: Generation, reference: Generation) -> list[float] | None:
    """Seconds of the reference over those of a clip, round by round; None where there was one round only, or where the
    reference is known from before."""
    pairs = zip(reference.rounds, generation.rounds, strict=False)
    return [base["total"] / own["total"] for base, own in pairs] or None


def disturbances(generations: list[Generation]) -> list[str]:
    """Sentences on what makes the seconds doubtful: stages that are the same work as in the first clip and yet took
    longer or shorter, by more than 15 %; and how far the rounds are apart."""
    reference, *others = generations
    sentences = []
    for generation in others:
        label = generation.method.label
        for stage, (base, own) in _same_work(reference, generation).items():
            if min(base, own) >= SHORT and abs(own / base - 1) > DISTURBED:
                sentences.append(
                    f"{label}: {stage} took {own:.1f} s where {reference.method.label} took {base:.1f} s for the same "
                    "work, as the machine was busy with something else; its speed-up may be off as much: measure "
                    "again, or several times (--repeat 3)."
                )
        if speedups := speedups_by_round(generation, reference):
            lowest, highest = min(speedups), max(speedups)
            sentences.append(f"{label}: {lowest:.2f} to {highest:.2f} times as fast in {len(speedups)} rounds.")
    return sentences


def _same_work(reference: Generation, generation: Generation) -> dict[str, tuple[float, float]]:
    """Stages whose work is the same in both, and their seconds in each."""
    stages = {"decoding": (reference.seconds["decode"], generation.seconds["decode"])}
    runs = {(each.method.steps, each.method.solver) for each in (reference, generation)}
    if len(runs) == 1 and all(_computes_all_but_attention(each.method) for each in (reference, generation)):
        base, own = (each.seconds["denoise"] - each.seconds["attention"] for each in (reference, generation))
        stages["denoising without attention"] = base, own
    return stages


def _computes_all_but_attention(method: Method) -> bool:
    return method.cache is None and (method.config is None or isinstance(method.config, ReuseConfig))
