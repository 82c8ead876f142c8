"""Words of the field, explained in one place and opened where they stand."""

from html import escape

WORDS = {
    "budget": "The share of attention that is to be saved on the steps that reuse; the threshold follows from it.",
    "θ": "The threshold: what deviates less from its neighbours than θ is reused, the rest is computed.",
    "Eq. 3": "Equation 3 of the paper: how far the values of a window of neighbours lie from their mean, as a"
    " root mean square. Below θ they are taken to be the same.",
    "ramp": "Steps over which the threshold rises from 0, as early steps decide what is in the video.",
    "refresh": "A step at which attention is computed both ways: the difference is kept, and given back on "
    "the steps that follow.",
    "metric": "How tokens are compared: by the root mean square of their rows, or by what a difference does "
    "to the logits.",
    "RoPE group": "Rotary position embedding turns every channel of Q and K with one axis, time, height or "
    "width: channels that turn with the same axis are a group.",
    "Amdahl": "Amdahl's law: if attention takes a share s of the time, no saving in it alone speeds a run up "
    "more than 1 / (1 − s).",
    "correlation": "How alike a channel is at two places: 1 the same, 0 unrelated, −1 opposite (Pearson).",
    "realised": "Rows of attention that were really not computed, by an ordinary kernel, here.",
    "theoretical": "Products that reuse makes unnecessary, but that no dense kernel can leave out.",
    "granularity": "What is reused: single entries (channel), whole rows that neighbours share (token), or "
    "windows of keys that matter little to a tile of queries (tile).",
    "PSNR": "Peak signal-to-noise ratio to the dense clip, in dB: every 6 dB halve the difference.",
    "drift": "How far the error of reuse has moved away from what it was at the refresh; below 1, giving it "
    "back helps.",
}


def explained(*words: str) -> str:
    """The words in a line; each opens its explanation."""
    items = "".join(
        f'<details class="tr-word"><summary>{escape(word)}</summary><p>{escape(WORDS[word])}</p></details>'
        for word in words
    )
    return f'<div class="tr-words"><span>What is</span>{items}</div>'
